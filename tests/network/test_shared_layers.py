"""Cutting behind calls, not layers: layer objects that are used several times."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.analysis.alignment import alignment
from tfbio.network.stages import named_stages, run

RANDOM = np.random.default_rng(0)


def with_one_relu():
    relu = L.ReLU(name="relu")
    return keras.Sequential(
        [keras.Input((5,)), L.Dense(7, name="a"), relu, L.Dense(6, name="b"), relu, L.Dense(3, name="logits")]
    )


def with_separate_relus():
    return keras.Sequential(
        [
            *(keras.Input((5,)), L.Dense(7, name="a"), L.ReLU(name="r1"), L.Dense(6, name="b"), L.ReLU(name="r2")),
            L.Dense(3, name="logits"),
        ]
    )


def image(*layers):
    return keras.Sequential([keras.Input((9, 9, 2)), *layers, L.Flatten(), L.Dense(3, name="logits")])


def with_one_pooling():
    pool, drop = L.MaxPooling2D(), L.Dropout(0.2, seed=1)
    return image(L.Conv2D(3, 2, activation="relu"), pool, drop, L.Conv2D(4, 2, activation="tanh"), drop, pool)


def with_one_dense():
    dense, activation = L.Dense(5, name="dense"), L.Activation("tanh")
    x = inputs = keras.Input((5,))
    for _ in range(3):
        x = activation(dense(x))
    return keras.Model(inputs, L.Dense(3, name="logits")(x))


def residual_with_one_relu():
    relu = L.ReLU(name="relu")
    x = inputs = keras.Input((8, 8, 3))
    x = relu(L.Conv2D(4, 3, padding="same", name="stem")(x))
    for number in range(2):
        y = relu(L.Conv2D(4, 3, padding="same", name=f"block_{number}_a")(x))
        x = relu(L.Add(name=f"block_{number}_add")([x, L.Conv2D(4, 3, padding="same", name=f"block_{number}_b")(y)]))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.GlobalAveragePooling2D(name="pool")(x)))


def nested():
    relu = L.ReLU(name="relu")
    inner = keras.Sequential([keras.Input((5,)), L.Dense(6), relu, L.Dense(5), relu], name="inner")
    x = inputs = keras.Input((5,))
    return keras.Model(inputs, L.Dense(3, name="logits")(relu(L.Dense(4)(inner(relu(x))))))


MODELS = {f.__name__: f for f in (with_one_relu, with_one_pooling, with_one_dense, residual_with_one_relu, nested)}
ALL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def batch(model):
    return RANDOM.normal(size=(4, *model.input_shape[1:])).astype("float32"), np.array([0, 2, 1, 1])


def summary(model):
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line), expand_nested=True)
    return lines


def saved(model, path):
    model.save(path)
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("config.json"))


def ends(model, cuts=None):
    return list(named_stages(model, cuts))


@ALL
def test_stages_are_the_same_function_of_the_same_variables_and_leave_no_trace(make, tmp_path):
    model = make()
    config, lines = model.get_config(), summary(model)
    before = saved(model, tmp_path / "before.keras")
    stages = tfbio.stages(model)
    x, _ = batch(model)
    h = x
    for stage in stages:
        h = stage(h)
    np.testing.assert_array_equal(h, model(x))
    assert len(stages) > 2
    assert {id(v) for stage in stages for v in stage.variables} == {id(v) for v in model.variables}
    assert model.get_config() == config and summary(model) == lines
    assert saved(model, tmp_path / "after.keras") == before


def test_default_stages():
    assert ends(with_one_relu()) == ["relu:0", "relu:1", "logits"]
    assert ends(residual_with_one_relu()) == ["relu:0", "relu:2", "pool", "logits"]
    assert len(ends(with_one_dense())) == 4 and len(ends(nested())) == 4


def test_cuts_name_a_call_of_a_layer_that_is_called_several_times():
    model = residual_with_one_relu()
    assert ends(model, ["relu:2", "relu:4"]) == ["relu:2", "relu:4", "logits"]
    assert ends(model, ["relu:0", "block_0_add"]) == ["relu:0", "block_0_add", "logits"]
    with pytest.raises(ValueError, match="'relu' is called 5 times; expected one of its calls, 'relu:0', 'relu:1', "):
        tfbio.stages(model, ["relu"])
    with pytest.raises(ValueError, match="can't be cut behind 'relu:1'.*nearest.*'relu:0', 'block_0_add'"):
        tfbio.stages(model, ["relu:1"])
    with pytest.raises(ValueError, match="no layer 'relu:7'; near it: .*'relu:"):
        tfbio.stages(model, ["relu:7"])
    with pytest.raises(ValueError, match="in the model's order"):
        tfbio.stages(model, ["relu:2", "relu:0"])


@ALL
@pytest.mark.parametrize("name", ["dfa", "drtp", "tp", "dtp", "ddtp"])
def test_every_rule_that_cuts_trains_it(make, name):
    model = make()
    inverse = {"pooling": "upsample"} if name in ("tp", "dtp") and make is with_one_pooling else None
    if make is residual_with_one_relu and name in ("tp", "dtp"):
        inverse = {"fully_connected": True}
    rule = tfbio.rules.get(name)
    if inverse is not None:
        rule = type(rule)(inverse=inverse)
    rule.build(model, "softmax_cross_entropy")
    update = rule.compute(*batch(model))
    assert all(np.isfinite(gradient).all() for gradient in (*update.forward, *update.feedback))
    assert np.abs(update.forward[0]).max() > 0


@pytest.mark.parametrize("name", ["dfa", "drtp", "sdtp", "dtp", "tp", "ldrl"])
def test_one_activation_object_or_several_are_the_same(name):
    updates, x, y = [], RANDOM.normal(size=(6, 5)).astype("float32"), np.array([0, 2, 1, 1, 0, 2])
    for make in (with_one_relu, with_separate_relus):
        keras.utils.set_random_seed(1)
        rule = tfbio.rules.get(name)
        rule.build(make(), "softmax_cross_entropy")
        update = rule.compute(x, y)
        updates.append([*update.forward, *update.feedback])
    for a, b in zip(*updates, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_shared_layer_s_gradient_is_the_sum_of_its_calls(float64):
    model = with_one_dense()
    rule = tfbio.rules.DirectFeedbackAlignment(seed=1)
    rule.build(model, "softmax_cross_entropy")
    x, y = RANDOM.normal(size=(6, 5)), np.array([0, 2, 1, 1, 0, 2])
    w, c = (v.numpy() for v in model.get_layer("dense").variables)
    h, kernel, bias = [x], 0, 0
    for _ in range(3):
        h.append(np.tanh(h[-1] @ w + c))
    logits = np.asarray(model(x))
    e = np.exp(logits)
    error = (e / e.sum(1, keepdims=True) - np.eye(3)[y]) / 6
    for below, above, b in zip(h, h[1:], rule.projections, strict=False):
        delta = error @ np.asarray(b) * (1 - above**2)
        kernel, bias = kernel + below.T @ delta, bias + delta.sum(0)
    actual = rule.compute(x, y).forward
    np.testing.assert_allclose(actual[0], kernel, rtol=1e-6)
    np.testing.assert_allclose(actual[1], bias, rtol=1e-6)


def test_figures_of_alignment_have_a_name_for_each_stage():
    rule = tfbio.rules.DirectFeedbackAlignment(seed=1)
    rule.build(residual_with_one_relu(), "softmax_cross_entropy")
    measured = alignment(rule, *batch(rule.model))
    assert {name for name in measured if name.startswith("feedback_angle")} == {
        "feedback_angle/relu:0",
        "feedback_angle/relu:2",
        "feedback_angle/pool",
    }


def test_figures_of_targets_have_a_name_for_each_stage():
    model = with_one_dense()
    rule = tfbio.rules.DifferenceTargetPropagation()
    rule.build(model, "softmax_cross_entropy")
    distances = [name for name in rule.diagnostics(*batch(model)) if name.startswith("target_distance")]
    assert distances == [f"target_distance/{name}" for name in ("dense:0", "dense:1", "dense:2", "logits")]


def test_a_layer_with_several_outputs_of_which_one_is_used_ends_a_stage():
    x = inputs = keras.Input((4, 5))
    sequence, state, _ = L.LSTM(6, return_sequences=True, return_state=True, name="memory")(x)
    model = keras.Model(inputs, L.Dense(3, name="logits")(L.Dense(5, "tanh", name="hidden")(state)))
    assert ends(model) == ["memory", "hidden", "logits"]
    x, h = RANDOM.normal(size=(3, 4, 5)).astype("float32"), None
    h = x
    for stage in tfbio.stages(model):
        h = stage(h)
    np.testing.assert_array_equal(h, model(x))


class Scaled(L.Layer):
    """Two inputs, a keyword argument, and another dtype."""

    def call(self, inputs, other=None, scale=1.0):
        return inputs * scale + other


def test_calls_are_replayed_with_all_of_their_arguments():
    x = inputs = keras.Input((5,))
    relu, scaled = L.ReLU(), Scaled(dtype="float64")
    x = relu(L.Dense(5)(x))
    for scale in (2.0, -3.0):
        x = relu(scaled(L.Dense(5)(x), other=x, scale=scale))
    model = keras.Model(inputs, L.Dense(3)(x))
    stages = tfbio.stages(model)
    assert [stage.outputs[0].dtype for stage in stages] == ["float32", "float32", "float32", "float32"]
    assert len(stages) == 4
    h = data = RANDOM.normal(size=(4, 5)).astype("float32")
    for stage in stages:
        h = stage(h)
    np.testing.assert_array_equal(h, model(data))


def test_dict_inputs_go_to_the_first_stage():
    a, b, relu = keras.Input((4,), name="a"), keras.Input((3,), name="b"), L.ReLU()
    x = relu(L.Dense(5)(L.Concatenate()([a, b])))
    model = keras.Model({"a": a, "b": b}, L.Dense(3)(relu(L.Dense(5)(x))))
    rule = tfbio.rules.DirectFeedbackAlignment(seed=1)
    rule.build(model, "softmax_cross_entropy")
    x = {"a": tf.ones((2, 4)), "b": tf.ones((2, 3))}
    np.testing.assert_array_equal(rule.compute(x, np.array([0, 1])).outputs, model(x))


def test_masks_reach_the_stages_above_in_training():
    x = inputs = keras.Input((5,), dtype="int32")
    x = L.Dense(4, "tanh", name="hidden")(L.Embedding(10, 3, mask_zero=True, name="embedding")(x))
    x = L.GlobalAveragePooling1D(dtype="float64", name="pool")(x)  # Keras records no mask with a call that casts
    model = keras.Model(inputs, L.Dense(2, name="logits")(x))
    assert ends(model) == ["embedding", "pool", "logits"]
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
    rule = tfbio.rules.DirectFeedbackAlignment(seed=1)
    rule.build(model, "softmax_cross_entropy")
    np.testing.assert_array_equal(rule.compute(tokens, np.array([0, 1])).outputs, model(tokens))
    with pytest.raises(ValueError, match="without masks between them.*mask_zero"):
        tfbio.rules.TargetPropagation().build(model, "softmax_cross_entropy")


def test_losses_are_those_of_every_call_and_of_each_weight_once():
    dense = L.Dense(5, "tanh", activity_regularizer="l2", kernel_regularizer="l1")
    model = keras.Sequential([keras.Input((5,)), dense, dense, L.Dense(3, kernel_regularizer="l2")])
    x = RANDOM.normal(size=(4, 5)).astype("float32")
    losses = run(tfbio.stages(model), tf.constant(x)).losses
    model(x)
    assert len(losses) == len(model.losses) == 4
    np.testing.assert_allclose(sorted(losses), sorted(model.losses), rtol=1e-6)


def test_an_inverse_mirrors_calls():
    model = with_one_relu()
    rule = tfbio.rules.TargetPropagation()
    rule.build(model, "softmax_cross_entropy")
    assert [g and g.output_shape for g in rule.inverses] == [None, (None, 7), (None, 6)]
    assert rule.inverses[1].layers[-1].activation is model.layers[1]  # the one ReLU, as the stage below has it
