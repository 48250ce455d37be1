"""Feedback where layers are called: with the kernels as feedback it is backpropagation, on every form of model."""

import copy
import gc
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from network_models import Residual, RootMeanSquare, Scale, encoder, nested, u_net, vision

import tfbio
from tfbio import with_feedback
from tfbio.network import output_layers

RANDOM = np.random.default_rng(0)


def images(*shape):
    return RANDOM.normal(size=(4, *shape)).astype("float32")


def tokens():
    x = RANDOM.integers(1, 11, (4, 6))
    x[1, 3:] = x[2, 5:] = 0
    return x


def subclassed():
    model = Residual()
    model(np.zeros((1, 7), "float32"))
    return model


def mobile_net():
    return keras.applications.MobileNetV2(
        weights=None, classes=5, classifier_activation=None, input_shape=(32, 32, 3), alpha=0.35
    )


# Name → model, inputs, number of layers that get feedback, those that make the outputs.
MODELS = {
    "subclassed": (subclassed, lambda: images(7), 3, 1),
    "attention": (encoder, tokens, 13, 1),
    "grouped attention": (lambda: encoder("grouped"), tokens, 13, 1),
    "class token and scales": (vision, lambda: images(8, 8, 3), 8, 1),
    "two outputs": (u_net, lambda: images(8, 8, 3), 6, 2),
    "nested and tied": (nested, lambda: images(7), 5, 1),
    "convolutions": (mobile_net, lambda: images(32, 32, 3), 53, 1),
}
ALL = pytest.mark.parametrize("name", MODELS)


def gradients(network, model, x, seed=0):
    """The gradients of a random projection of the outputs, and of the penalties, with dropout as it comes first."""
    seeds = [v for v in model.non_trainable_variables if v.name == "seed_generator_state"]
    before = [np.array(v) for v in seeds]
    with tf.GradientTape() as tape:
        outputs = tf.nest.flatten(network(x, training=True))
        loss = sum(
            tf.reduce_sum(tf.cast(output, "float32") * tf.random.stateless_normal(tf.shape(output), (seed, number)))
            for number, output in enumerate(outputs)
        )
        loss += sum(tf.cast(each, "float32") for each in network.losses)
    result = tape.gradient(loss, model.trainable_variables, unconnected_gradients="zero")
    for v, value in zip(seeds, before, strict=True):
        v.assign(value)
    return [tf.convert_to_tensor(gradient).numpy() for gradient in result], float(loss)


@ALL
def test_with_the_kernels_as_feedback_it_is_backpropagation(name):
    make, inputs, count, last = MODELS[name]
    model, x = make(), inputs()
    expected, loss = gradients(model, model, x)
    network = with_feedback(model, "symmetric")
    assert len(network.feedback_layers) == count
    assert {id(v) for v in model.variables} <= {id(v) for v in network.variables}
    actual, same = gradients(network, model, x)
    assert same == loss
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-6 * np.abs(e).max())
    random = with_feedback(model, "random")
    kinds = [type(each.feedback).__name__ for each in random.feedback_layers]
    assert kinds.count("Symmetric") == last and kinds.count("Random") == count - last
    assert len(random.non_trainable_variables) == len(model.non_trainable_variables) + count - last
    assert not any("call" in vars(layer) for layer in model._flatten_layers())  # nothing is left behind


@pytest.mark.parametrize("name", ["subclassed", "attention", "class token and scales", "two outputs"])
def test_random_feedback_is_used(name):
    """The first kernel's cosine to backpropagation is that of random directions: about 0, over seeds."""
    make, inputs, *_ = MODELS[name]
    model, x = make(), inputs()
    first = next(number for number, v in enumerate(model.trainable_variables) if len(v.shape) > 1)
    exact = np.ravel(gradients(model, model, x)[0][first])
    cosines = []
    for seed in range(8):
        network = with_feedback(model, tfbio.feedback.Random(seed=seed), "same")
        g = np.ravel(gradients(network, model, x)[0][first])
        cosines.append(g @ exact / np.linalg.norm(g) / np.linalg.norm(exact))
    assert abs(np.mean(cosines)) < 0.2 and max(cosines) < 0.9, cosines


def test_a_layer_called_twice_has_one_feedback(float64):
    """Against a few lines of NumPy: tied weights, and an error that goes back through the same feedback twice."""
    x = inputs = keras.Input((4,))
    tied, top = L.Dense(4, "tanh", use_bias=False), L.Dense(3, use_bias=False)
    model = keras.Model(inputs, top(tied(tied(x))))
    rule = tfbio.rules.FeedbackAlignment(seed=1)
    rule.build(model, "mean_squared_error")
    (w, b), (v, _) = ([np.asarray(each) for each in layer.pairs[0]] for layer in rule.feedback_layers)
    x, y = RANDOM.normal(size=(5, 4)), RANDOM.normal(size=(5, 3))
    h1 = np.tanh(x @ w)
    h2 = np.tanh(h1 @ w)
    e = (h2 @ v - y) / 5
    d2 = e @ v.T * (1 - h2**2)
    d1 = d2 @ b.T * (1 - h1**2)
    ours = rule.compute(x, y).forward
    np.testing.assert_allclose(ours[0], x.T @ d1 + h1.T @ d2, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours[1], h2.T @ e, rtol=1e-6, atol=1e-12)


def test_masks_and_training_reach_the_layers():
    model, x = encoder(), tokens()
    network = with_feedback(model, "random")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of Keras: masks that a layer destroys
        gradients(network, model, x)
    np.testing.assert_array_equal(network(x), model(x))
    longer = np.where(x == 0, 0, x)
    longer[1, 3:] = 0
    padded = np.concatenate([x, np.zeros((4, 0), int)], 1)
    np.testing.assert_array_equal(network(longer), network(padded))
    exact = with_feedback(model, "symmetric")
    table = [v.path for v in model.trainable_variables].index("table/embeddings")
    assert np.abs(gradients(exact, model, x)[0][table]).max() > 0


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_dtype_policies_are_kept(policy):
    keras.config.set_dtype_policy(policy)
    model, x = encoder(), tokens()
    expected, _ = gradients(model, model, x)
    actual, _ = gradients(with_feedback(model, "symmetric"), model, x)
    epsilon = 2.0**-8 if policy == "mixed_bfloat16" else 2.0**-11
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == "float32" and np.linalg.norm(a - e) <= 20 * epsilon * np.linalg.norm(e)


def test_while_it_runs_others_see_plain_layers(tmp_path):
    """Copies, files and other threads' calls, made in the middle of a call."""
    seen = {}

    class Spy(L.Layer):
        def call(self, x):
            if tf.executing_eagerly() and seen.get("armed"):
                seen["armed"] = False
                seen["copy"] = copy.deepcopy(dense)
                seen["clone"] = type(dense).from_config(dense.get_config())
            return x

    dense = L.Dense(3, name="dense")
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), Spy(), dense])
    network, x = with_feedback(model, "random"), images(4)
    seen["armed"] = True
    network(x, training=True)
    for other in (seen["copy"], seen["clone"]):
        assert "call" not in vars(other) or vars(other)["call"].__self__ is other
        other(x)
    model.save(tmp_path / "model.keras")
    gc.collect()
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_an_error_within_a_call_puts_everything_back():
    class Broken(L.Layer):
        def call(self, x, training=None):
            if training and getattr(self, "armed", False):
                raise RuntimeError("broken")
            return x

    broken = Broken()
    model = keras.Sequential([keras.Input((4,)), L.Dense(4), broken, L.Dense(3)])
    network = with_feedback(model, "random")
    broken.armed = True
    with pytest.raises(RuntimeError, match="broken"):
        network(images(4), training=True)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    broken.armed = False
    network(images(4), training=True)


def test_weights_that_do_not_mix_inputs_are_recognised_by_numbers():
    class Mixing(Scale):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], shape[-1]), initializer="zeros")

        def call(self, x):
            return x @ self.kernel

    for layer in (Scale(), RootMeanSquare(), L.BatchNormalization(), L.PReLU()):
        model = keras.Sequential([keras.Input((6,)), L.Dense(4), layer, L.Dense(3)])
        assert len(with_feedback(model, "random").feedback_layers) == 2
    model = keras.Sequential([keras.Input((6,)), L.Dense(4), Mixing(name="mixing"), L.Dense(3)])
    with pytest.raises(ValueError, match=r"'mixing' \(Mixing\) has weights that mix its inputs.*feedback_kernels"):
        with_feedback(model, "random")


def test_a_layer_with_kernels_must_be_affine_in_its_input():
    class Rectified(L.Layer):
        feedback_kernels = ("kernel",)

        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 4))

        def call(self, x):
            return keras.ops.relu(x @ self.kernel)

    class Curved(L.Dense):
        def call(self, x):
            return keras.ops.tanh(super().call(x))

    class Affine(L.Dense):
        def call(self, x):
            return 2 * super().call(x) + 1

    for cls, build in ((Rectified, Rectified), (Curved, lambda **options: Curved(4, **options))):
        model = keras.Sequential([keras.Input((6,)), build(name="mine"), L.Dense(3)])
        with pytest.raises(ValueError, match=rf"'mine' \({cls.__name__}\) is not affine in its input.*`activation`"):
            with_feedback(model, "random")
    model = keras.Sequential([keras.Input((6,)), Affine(4), L.Dense(3)])
    assert len(with_feedback(model, "random").feedback_layers) == 2


def test_inputs_may_be_passed_by_name():
    class Named(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.head = L.Dense(4, "tanh"), L.Dense(3)

        def call(self, x):
            return self.head(inputs=self.first(inputs=x))

    model, x = Named(), images(6)
    model(x)
    network = with_feedback(model, "random")
    assert [each.layer for each in network.feedback_layers] == [model.first, model.head]
    for a, e in zip(
        gradients(with_feedback(model, "symmetric"), model, x)[0], gradients(model, model, x)[0], strict=True
    ):
        np.testing.assert_array_equal(a, e)


def test_layers_of_several_inputs_are_refused():
    class Bilinear(L.Layer):
        feedback_kernels = ("kernel",)

        def build(self, shapes):
            self.kernel = self.add_weight(name="kernel", shape=(shapes[0][-1], 4))

        def call(self, inputs):
            return inputs[0] @ self.kernel + inputs[1]

    a, b = keras.Input((5,)), keras.Input((4,))
    model = keras.Model([a, b], L.Dense(3)(Bilinear(name="both")([L.Dense(5)(a), b])))
    with pytest.raises(ValueError, match=r"'both' \(Bilinear\) takes several inputs at once"):
        with_feedback(model, "random")


def test_all_that_can_not_be_treated_is_said_at_once():
    low_rank = L.Dense(4, name="low_rank")
    model = keras.Sequential([keras.Input((5, 4, 2)), low_rank, L.ConvLSTM1D(4, 2, name="memory"), L.Dense(3)])
    low_rank.enable_lora(2)
    with pytest.raises(ValueError, match="2 that have none") as caught:
        with_feedback(model, "random")
    message = str(caught.value)
    for part in (
        "'low_rank' (Dense) has no plain kernel of that name (LoRA",
        "'memory' (ConvLSTM1D) has kernels that act within",
    ):
        assert part in message, message


def test_layers_whose_calls_can_not_be_seen_are_refused():
    integers = L.Dense(4, name="integers")
    model = keras.Sequential([keras.Input((4,)), integers, L.Dense(3)])
    integers.quantize("int8")
    with pytest.raises(ValueError, match=r"received \['integers'\], which are quantized.*Train before quantizing"):
        with_feedback(model, "random")
    with keras.RematScope(mode="full"):
        again = L.Dense(4, name="again")
    with pytest.raises(ValueError, match=r"received \['again'\], which are called again.*RematScope"):
        with_feedback(keras.Sequential([keras.Input((4,)), again, L.Dense(3)]), "random")


@pytest.mark.parametrize(
    "allowed", [["block_*"], ["block_0", "block_1"], [L.MultiHeadAttention, "*/dense*"], ["Block"]]
)
def test_names_patterns_and_classes_keep_backpropagation(allowed):
    model, x = encoder(), tokens()
    network = with_feedback(model, "random", "same", allow_backpropagation=allowed)
    expected = 1 if "dense" not in str(allowed[-1]) else len(network.feedback_layers)
    assert len(network.feedback_layers) == expected
    rule = tfbio.rules.FeedbackAlignment(allow_backpropagation=allowed)
    again = tfbio.rules.FeedbackAlignment.from_config(rule.get_config())
    again.build(model, "softmax_cross_entropy")
    assert again.compute(x, np.zeros(4, int)).loss.dtype == tf.float32


def test_names_that_mean_nothing_are_refused():
    for argument in ("allow_backpropagation", "output_layers"):
        with pytest.raises(ValueError, match=rf"`{argument}`.*\['blok_\*'\], which mean none; it has .*'block_0/"):
            with_feedback(encoder(), "random", **{argument: ["blok_*"]})


def test_last_layers():
    x = inputs = keras.Input((4,))
    h = L.Dense(4, name="a")(x)
    assert [layer.name for layer in output_layers(keras.Model(inputs, L.Add()([L.Dense(4, name="b")(h), h])))] == ["b"]
    both = keras.Model(inputs, [L.Dense(2, name="c")(L.ReLU()(h)), L.Activation("tanh")(h)])
    assert {layer.name for layer in output_layers(both)} == {"c", "a"}
    tied = L.Dense(4, name="tied")
    assert [layer.name for layer in output_layers(keras.Model(inputs, tied(tied(h))))] == ["tied"]
    network = with_feedback(both, "random", output_layers=["c"])
    assert [type(each.feedback).__name__ for each in network.feedback_layers] == ["Random", "Symmetric"]


def test_the_last_layer_of_a_loop_is_found():
    timed = L.TimeDistributed(L.Dense(3, name="head"), name="timed")
    model = keras.Sequential([keras.Input((5, 4)), L.GRU(4, return_sequences=True), timed])
    assert [layer.name for layer in output_layers(model)] == ["head"]
    assert [layer.name for layer in output_layers(keras.Model(model.inputs, model.layers[0].output))] == ["gru_cell"]
    network, x = with_feedback(model, "symmetric"), images(5, 4)
    for a, e in zip(gradients(network, model, x)[0], gradients(model, model, x)[0], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_calls_hidden_in_a_function_are_not_missed():
    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.head = L.Dense(4, "tanh"), L.Dense(3)

        @tf.function
        def inner(self, x):
            return self.first(x)

        def call(self, x):
            return self.head(self.inner(x))

    model, x = Hidden(), tf.constant(images(4))
    model(x)
    with pytest.raises(ValueError, match="called within a loop, a branch or a function|tf.function within it"):
        with_feedback(model, "random")


def test_a_subclassed_model_must_have_been_called():
    with pytest.raises(ValueError, match="expected a built model.*call it on a batch"):
        with_feedback(Residual(), "random")
