"""Direct feedback behind layers at any depth: subclassed models, composite layers, several outputs."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfbio import losses
from tfbio.network.blocks import meant_layers
from tfbio.rules import Backpropagation, DirectFeedbackAlignment, DirectRandomTargetProjection

RANDOM = np.random.default_rng(0)


def build(rule, model, loss="softmax_cross_entropy"):
    rule.build(model, loss)
    return rule


def gradients(rule, x, y):
    update = rule.compute(x, y)
    return dict(zip([v.path for v in rule.forward_variables], map(np.asarray, update.forward), strict=True))


class Residual(keras.Model):
    def __init__(self, width=6):
        super().__init__()
        self.stem = L.Dense(width, "tanh", name="stem")
        self.first, self.second = L.Dense(width, "tanh", name="first"), L.Dense(width, name="second")
        self.head = L.Dense(3, name="head")

    def call(self, x):
        x = self.stem(x)
        x = x + self.first(x)
        return self.head(tf.nn.relu(x + self.second(x)))


class Block(L.Layer):
    """A transformer's: attention and a dense layer, around each of which the input goes."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.attention = L.MultiHeadAttention(2, 3, name="attention")
        self.dense = L.Dense(width, "tanh", name="dense")
        self.norm = L.LayerNormalization(name="norm")

    def build(self, shape):
        self.attention.build(shape, shape)
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x):
        x = x + self.attention(x, x)
        return self.norm(x + self.dense(x))


class Encoder(keras.Model):
    def __init__(self, width=4, count=3):
        super().__init__()
        self.stem = L.Dense(width, name="stem")
        self.blocks = [Block(width, name=f"block_{number}") for number in range(count)]
        self.pool, self.head = L.GlobalAveragePooling1D(), L.Dense(3, name="head")

    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


def made(cls, *shape, **options):
    model = cls(**options)
    model(np.zeros((1, *shape)))
    return model


def dense(*units):
    layers = [each for n in units[:-1] for each in (L.Dense(n), L.ReLU())]
    return keras.Sequential([keras.Input((5,)), *layers, L.Dense(units[-1])])


@pytest.mark.parametrize("rule", [DirectFeedbackAlignment, DirectRandomTargetProjection])
@pytest.mark.parametrize("storage", ["dense", "shared", "regenerated", "broadcast"])
def test_behind_the_last_layers_of_the_stages_gradients_are_those_of_the_stages(rule, storage):
    model = dense(8, 7, 6, 3)
    x, y = RANDOM.normal(size=(6, 5)).astype("float32"), np.array([0, 2, 1, 1, 0, 2])
    chain = build(rule(seed=1, storage=storage), model)
    blocks = build(rule(seed=1, storage=storage, blocks=[stage.layers[-1].name for stage in chain.stages[:-1]]), model)
    assert len(chain.stages) == 4 and blocks.stages == []
    a, b = gradients(chain, x, y), gradients(blocks, x, y)
    assert a.keys() == b.keys()
    for path in a:
        assert np.abs(a[path]).max() > 0
        np.testing.assert_array_equal(a[path], b[path])
    for (name, *first), (other, *second) in zip(chain.pathways(x), blocks.pathways(x), strict=True):
        assert name == other
        for u, v in zip(first, second, strict=True):
            np.testing.assert_allclose(u, v, rtol=1e-6)


def test_a_subclassed_residual_network_against_numpy(float64):
    model = made(Residual, 5)
    rule = build(DirectFeedbackAlignment(seed=1, blocks=["stem", "first", "second"]), model)
    x, y = RANDOM.normal(size=(4, 5)), np.array([0, 2, 1, 1])
    (w0, c0), (w1, c1), (w2, c2), (w3, c3) = (
        [v.numpy() for v in layer.variables] for layer in (model.stem, model.first, model.second, model.head)
    )
    h0 = np.tanh(x @ w0 + c0)
    h1 = np.tanh(h0 @ w1 + c1)
    x1 = h0 + h1
    h2 = x1 @ w2 + c2
    x2 = np.maximum(x1 + h2, 0)
    e = np.exp(x2 @ w3 + c3)
    error = (e / e.sum(1, keepdims=True) - np.eye(3)[y]) / 4
    b0, b1, b2 = map(np.asarray, rule.projections)
    deltas = [error @ b0 * (1 - h0**2), error @ b1 * (1 - h1**2), error @ b2, error]
    expected = [
        part for h, d in zip([x, h0, x1, x2], deltas, strict=True) for part in (h.T @ d, d.sum(0))
    ]  # nothing comes back around the blocks
    for actual, value in zip(rule.compute(x, y).forward, expected, strict=True):
        np.testing.assert_allclose(actual, value, rtol=1e-6, atol=1e-12)
    assert list(rule.signals.values()) == [("stem",), ("first",), ("second",), ("loss",)]


def test_an_encoder_against_a_tape_of_its_own(float64):
    model = made(Encoder, 6, 5)
    rule = build(DirectFeedbackAlignment(seed=1), model)  # its blocks repeat
    assert [each.name for each in rule.network.cuts] == ["block_0", "block_1", "block_2"]
    x, y = RANDOM.normal(size=(4, 6, 5)), np.array([0, 2, 1, 1])
    values = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as tape:
        h, hidden = model.stem(x), []
        for block in model.blocks:
            hidden.append(block(h))
            h = tf.stop_gradient(hidden[-1])
        logits = model.head(model.pool(h))
    error = (tf.nn.softmax(logits) - tf.one_hot(y, 3, dtype=tf.float64)) / 4
    parts = [
        tape.gradient(h, values, tf.reshape(error @ b.value, h.shape), "zero")
        for h, b in zip(hidden, rule.projections, strict=True)
    ]
    parts.append(tape.gradient(logits, values, error, "zero"))
    for actual, *expected in zip(rule.compute(x, y).forward, *parts, strict=True):
        np.testing.assert_allclose(actual, sum(map(np.asarray, expected)), rtol=1e-7, atol=1e-14)
    assert {signal for path, signals in rule.signals.items() for signal in signals if "block_1" in path} == {"block_1"}
    assert [signals for path, signals in rule.signals.items() if path.endswith("stem")] == [("block_0",)]


class ConstantError(losses.MeanSquaredError):
    """A loss that is linear in the outputs, so that its error stays whatever the network says."""

    def error(self, y, outputs):
        return tf.cast(y, outputs.dtype) + 0 * outputs

    def per_example(self, y, outputs):
        return tf.reduce_sum(tf.cast(y, outputs.dtype) * outputs, axis=-1)


def test_weights_above_a_block_do_not_change_its_gradients_at_a_given_error(float64):
    model = made(Encoder, 6, 5)
    x, error = RANDOM.normal(size=(4, 6, 5)), RANDOM.normal(size=(4, 3))
    rule, exact = (build(r, model, ConstantError()) for r in (DirectFeedbackAlignment(seed=1), Backpropagation()))
    before, exact_before = gradients(rule, x, error), gradients(exact, x, error)
    for variable in [*model.blocks[1].trainable_variables, *model.blocks[2].trainable_variables, model.head.kernel]:
        variable.assign(RANDOM.normal(size=variable.shape))
    after, exact_after = gradients(rule, x, error), gradients(exact, x, error)
    below = [v.path for v in (*model.stem.trainable_variables, *model.blocks[0].trainable_variables)]
    for path in below:
        np.testing.assert_array_equal(before[path], after[path])
    assert not np.allclose(exact_before[below[0]], exact_after[below[0]], rtol=0.1)
    assert any(not np.allclose(before[path], after[path], rtol=0.1) for path in before if path not in below)


def test_names_paths_patterns_and_classes():
    model = made(Encoder, 6, 5)

    def meant(*blocks):
        return meant_layers(model, list(blocks))

    assert meant("block_*") == meant(Block) == meant("Block") == model.blocks
    assert meant(Block, "stem") == [model.stem, *model.blocks]
    assert meant("block_1", "block_1/attention") == [model.blocks[1], model.blocks[1].attention]
    assert meant(L.MultiHeadAttention) == [block.attention for block in model.blocks]
    nested = build(DirectFeedbackAlignment(blocks=["block_1", "block_1/attention"]), model).network
    assert [each.name for each in nested.cuts] == ["block_1/attention", "block_1"]
    for unknown in ("blok", L.Conv2D):
        with pytest.raises(ValueError, match="`blocks`: expected names, patterns or classes.*mean none; it has"):
            build(DirectFeedbackAlignment(blocks=[unknown]), model)
    with pytest.raises(ValueError, match="without `cuts`"):
        build(DirectFeedbackAlignment(cuts=["stem"], blocks=["stem"]), model)


def test_errors_that_get_around_blocks_are_said(caplog):
    model = made(Encoder, 6, 5)
    build(DirectFeedbackAlignment(blocks=[L.MultiHeadAttention]), model)
    (line,) = [record.getMessage() for record in caplog.records if "around" in record.getMessage()]
    assert "block_0/dense" in line and "(from block_1/attention, block_2/attention, loss)" in line
    caplog.clear()
    build(DirectFeedbackAlignment(blocks=["stem", Block]), model)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_learns_from_what_is_said_once_where_nobody_chose(caplog):
    build(DirectFeedbackAlignment(), made(Encoder, 6, 5))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "behind block_0, block_1, block_2. Of 17 layers with kernels, 16 share a signal" in line
    caplog.clear()
    build(DirectFeedbackAlignment(), dense(8, 7, 3))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_plain_attention_in_a_graph_is_cut_into_stages_which_leave_nothing_around():
    x = inputs = keras.Input((6, 5))
    x = L.Dense(4)(x)
    for _ in range(2):
        x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 3)(x, x))
        x = L.LayerNormalization()(x + L.Dense(4)(L.Dense(8, "gelu")(x)))
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))
    rule = build(DirectFeedbackAlignment(), model)
    assert len(rule.stages) == 6 and all(len(signals) == 1 for signals in rule.signals.values())


def test_composite_blocks_around_which_a_mask_goes_in_a_graph():
    """As in keras-hub's BERT: the mask is an input of every block, so that no tensor is passed by all paths."""

    class Masked(Block):
        def call(self, x, mask):
            return super().call(x * tf.cast(mask, x.dtype)[..., None])

    x, mask = inputs = keras.Input((6, 4)), keras.Input((6,), dtype="bool")
    for number in range(3):
        x = Masked(4, name=f"masked_{number}")(x, mask)
    model = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling1D()(x)))
    rule = build(DirectFeedbackAlignment(seed=1), model)
    assert [each.name for each in rule.network.cuts] == ["masked_0", "masked_1", "masked_2"]
    update = rule.compute([np.ones((2, 6, 4), "float32"), np.ones((2, 6), bool)], np.array([0, 1]))
    assert all(np.isfinite(g).all() for g in update.forward)


def test_masks_of_keras_pass_through_cuts():
    class Tokens(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = L.Embedding(10, 4, mask_zero=True, name="embedding")
            self.hidden = L.Dense(4, "tanh", name="hidden")
            self.pool, self.head = L.GlobalAveragePooling1D(), L.Dense(3)

        def call(self, x):
            return self.head(self.pool(self.hidden(self.embedding(x))))

    model, tokens = Tokens(), np.array([[1, 2, 0, 0], [3, 4, 5, 0]])
    model(tokens)
    rule = build(DirectFeedbackAlignment(seed=1, blocks=["embedding", "hidden"]), model)
    np.testing.assert_array_equal(rule.compute(tokens, np.array([0, 1])).outputs, model(tokens))


class TwoHeads(keras.Model):
    def __init__(self):
        super().__init__()
        self.trunk = [L.Dense(6, "tanh", name="a"), L.Dense(7, "tanh", name="b")]
        self.heads = [L.Dense(2, name="left"), L.Dense(3, name="right")]

    def call(self, x):
        for layer in self.trunk:
            x = layer(x)
        return {"left": self.heads[0](x), "right": tf.reshape(self.heads[1](x), [-1, 3, 1])}


def two_heads_as_a_graph():
    x = inputs = keras.Input((5,))
    x = L.Dense(7, "tanh", name="b")(L.Dense(6, "tanh", name="a")(x))
    outputs = {"left": L.Dense(2, name="left")(x), "right": L.Reshape((3, 1))(L.Dense(3, name="right")(x))}
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("graph", [False, True], ids=["subclassed", "graph"])
def test_the_errors_of_several_outputs_go_back_side_by_side(graph, float64):
    model = two_heads_as_a_graph() if graph else made(TwoHeads, 5)
    rule = DirectFeedbackAlignment(seed=1, blocks=None if graph else ["a", "b"])
    build(rule, model, {"left": "mean_squared_error", "right": "mean_squared_error"})
    assert [b.shape for b in rule.projections] == [(5, 6), (5, 7)]
    x, y = RANDOM.normal(size=(4, 5)), {"left": RANDOM.normal(size=(4, 2)), "right": RANDOM.normal(size=(4, 3, 1))}
    weights = {layer.name: [v.numpy() for v in layer.variables] for layer in model._flatten_layers() if layer.variables}
    h1 = np.tanh(x @ weights["a"][0] + weights["a"][1])
    h2 = np.tanh(h1 @ weights["b"][0] + weights["b"][1])
    left = (h2 @ weights["left"][0] + weights["left"][1] - y["left"]) / 4
    right = (h2 @ weights["right"][0] + weights["right"][1] - y["right"][..., 0]) / 12  # of three terms each
    error = np.concatenate([left, right], 1)
    b1, b2 = map(np.asarray, rule.projections)
    d1, d2 = error @ b1 * (1 - h1**2), error @ b2 * (1 - h2**2)
    expected = {"a": (x, d1), "b": (h1, d2), "left": (h2, left), "right": (h2, right)}
    actual = gradients(rule, x, y)
    for name, (h, d) in expected.items():
        (kernel,) = [g for path, g in actual.items() if path.endswith(f"{name}/kernel")]
        np.testing.assert_allclose(kernel, h.T @ d, rtol=1e-6, atol=1e-6 * np.abs(kernel).max())
    for (_, forward, feedback), size in zip(rule.pathways(x), (6, 7), strict=True):
        assert forward.shape == feedback.shape == (5, size)


def test_what_makes_the_output_learns_from_the_loss():
    model = made(Encoder, 6, 5)
    rule = build(DirectFeedbackAlignment(blocks=["block_*", "head"]), model)
    assert [each.name for each in rule.network.cuts] == ["block_0", "block_1", "block_2"]
    with pytest.raises(ValueError, match="expected layers with others above them, received \\['head'\\]"):
        build(DirectFeedbackAlignment(blocks=["head"]), model)


def test_a_layer_that_is_called_several_times_has_a_cut_for_each_call():
    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.tied, self.head = L.Dense(5, "tanh", name="tied"), L.Dense(3, name="head")

        def call(self, x):
            return self.head(self.tied(self.tied(x)))

    model = made(Tied, 5)
    rule = build(DirectFeedbackAlignment(seed=1, blocks=["tied"]), model)
    assert list(rule.signals.values()) == [("tied:0", "tied:1"), ("loss",)] and not rule.network.leaks
    graph = keras.Sequential([keras.Input((5,)), model.tied, model.tied, model.head])
    x, y = RANDOM.normal(size=(4, 5)).astype("float32"), np.array([0, 2, 1, 1])
    chain = build(DirectFeedbackAlignment(seed=1), graph)
    for a, b in zip(rule.compute(x, y).forward, chain.compute(x, y).forward, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_block_may_return_several_tensors():
    class Pair(L.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a, self.b = L.Dense(4), L.Dense(3)

        def build(self, shape):
            self.a.build(shape)
            self.b.build(shape)

        def call(self, x):
            return {"a": self.a(x), "b": self.b(x), "count": tf.shape(x)[0]}

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.pair, self.head = Pair(name="pair"), L.Dense(3, name="head")

        def call(self, x):
            pair = self.pair(x)
            return self.head(tf.concat([pair["a"], pair["b"]], 1))

    rule = build(DirectFeedbackAlignment(seed=1, blocks=["pair"]), made(Model, 5))
    assert [(each.name, each.shape) for each in rule.network.cuts] == [("pair:0", (4,)), ("pair:1", (3,))]
    assert list(rule.signals.values()) == [("pair:0",), ("pair:1",), ("loss",)]


def test_a_subclassed_model_whose_layers_do_not_repeat_asks_for_blocks():
    model = made(Residual, 5)
    with pytest.raises(ValueError, match="cut the subclassed Residual.*It has \\['stem', 'first', 'second', 'head'\\]"):
        build(DirectFeedbackAlignment(), model)
    with pytest.raises(ValueError, match="subclassed"):
        build(DirectFeedbackAlignment(cuts=["stem"]), model)


def test_calls_that_can_not_be_seen_are_refused():
    class Hidden(Residual):
        @tf.function
        def inner(self, x):
            return self.first(x)

        def call(self, x):
            return self.head(self.inner(self.stem(x)))

    with pytest.raises(ValueError, match="in the open.*tf.function of its own"):
        build(DirectFeedbackAlignment(blocks=["first"]), made(Hidden, 5))


def test_it_goes_through_its_config_and_leaves_the_model_alone(tmp_path):
    rule = DirectFeedbackAlignment(blocks=["stem", L.MultiHeadAttention], seed=1)
    config = rule.get_config()
    assert config["blocks"] == ("stem", "MultiHeadAttention")
    assert type(rule).from_config(config).get_config() == config
    model = made(Encoder, 6, 5)
    before = model.blocks[0].call
    build(DirectFeedbackAlignment(seed=1), model).compute(np.zeros((2, 6, 5), "float32"), np.array([0, 1]))
    assert model.blocks[0].call == before and "call" not in vars(model.blocks[0])


def test_in_a_graph_and_in_training(float64):
    model = made(Encoder, 6, 5)
    rule = build(DirectFeedbackAlignment(seed=1), model)
    x, y = RANDOM.normal(size=(4, 6, 5)), np.array([0, 2, 1, 1])
    eager = rule.compute(x, y).forward
    for a, b in zip(tf.function(lambda: rule.compute(x, y).forward)(), eager, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
