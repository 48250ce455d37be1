"""Feedback alignment against backpropagation, a backward pass written in NumPy, and its own claims."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.experiments import config
from tfbio.rules import Backpropagation, FeedbackAlignment, FeedbackRule

RANDOM = np.random.default_rng(0)


def build(rule, model, loss="softmax_cross_entropy"):
    rule.build(model, loss)
    return rule


def compute(rule, x, y, weights=None):
    """The gradients, with all state (batch statistics, dropout's generators) put back afterwards."""
    state = [variable.numpy() for variable in rule.model.variables]
    update = rule.compute(x, y, weights)
    for variable, value in zip(rule.model.variables, state, strict=True):
        variable.assign(value)
    return [np.asarray(gradient) for gradient in update.forward]


def assert_close(actual, expected, rtol=1e-10):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * np.abs(e).max())


def cosine(a, b):
    return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


def mobile():
    """Separable and depthwise convolutions, normalisation, dropout, nesting, a residual sum, a layer used twice."""
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = L.ReLU(6.0)(L.BatchNormalization()(x))
    block = keras.Sequential([keras.Input((4, 4, 4)), L.DepthwiseConv2D(3, padding="same"), L.BatchNormalization()])
    block.add(L.Conv2D(4, 1, activation="swish"))
    x = x + L.Dropout(0.3)(block(x))
    x = L.AveragePooling2D(2)(L.SeparableConv2D(6, 3, padding="same", activation="relu")(x))
    shared = L.Dense(6, "tanh")
    x = L.LayerNormalization()(L.Add()([shared(x), shared(shared(x))]))
    x = L.PReLU()(L.Flatten()(x))
    return keras.Model(inputs, L.Dense(3)(x))


def text():
    x = inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(7, 4)(x)
    x = L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", activation="relu")(x)
    x = L.EinsumDense("abde,dec->abc", (None, 4))(x)
    x = L.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, L.Dense(3)(L.Dense(6, "gelu")(x)))


def autoencoder():
    layers = [L.Conv2D(4, 3, strides=2, padding="same", activation="tanh"), L.GroupNormalization(2)]
    layers += [L.Flatten(), L.Dense(8, "tanh"), L.Dense(64), L.Reshape((4, 4, 4)), L.UpSampling2D()]
    layers += [L.Conv2DTranspose(3, 3, padding="same", activation="relu"), L.Conv2DTranspose(3, 1)]
    return keras.Sequential([keras.Input((8, 8, 3)), *layers])


IMAGES, CLASSES = RANDOM.normal(size=(6, 8, 8, 3)), RANDOM.integers(0, 3, 6)
MODELS = {
    "mobile": (mobile, IMAGES, CLASSES, "softmax_cross_entropy"),
    "text": (text, RANDOM.integers(0, 7, (6, 5)), CLASSES, "softmax_cross_entropy"),
    "autoencoder": (autoencoder, IMAGES, IMAGES, "mean_squared_error"),
}


@pytest.mark.parametrize("make, x, y, loss", MODELS.values(), ids=MODELS)
def test_feedback_equal_to_the_kernels_is_backpropagation(make, x, y, loss, float64):
    model = make()
    exact = compute(build(Backpropagation(), model, loss), x, y)
    assert_close(compute(build(FeedbackRule("symmetric"), model, loss), x, y), exact)

    rule = build(FeedbackAlignment(last_layer="same"), model, loss)
    random = compute(rule, x, y)
    differs = [not np.allclose(a, b, rtol=1e-3) for a, b in zip(random, exact, strict=True)]
    assert differs[0] and not all(differs)  # the last layer's own gradient is exact
    for layer in rule.feedback_layers:
        for kernel, b in layer.pairs:
            b.assign(kernel)
    assert_close(compute(rule, x, y), exact)


def test_embedding_learns_through_feedback(float64):
    """The table's gradient is the sum of what comes back through B at each place a token stands."""
    model = keras.Sequential([keras.Input((2,), dtype="int32"), L.Embedding(4, 3), L.Flatten(), L.Dense(2)])
    rule = build(FeedbackAlignment(last_layer="same"), model, "mean_squared_error")
    tokens, y = np.array([[0, 1], [1, 1], [3, 0]]), RANDOM.normal(size=(3, 2))
    ((_, b),) = rule.feedback_layers[0].pairs
    back = ((np.asarray(model(tokens)) - y) / 3 @ np.asarray(b).T).reshape(3, 2, 3)
    expected = np.zeros((4, 3))
    np.add.at(expected, tokens, back)
    np.testing.assert_allclose(compute(rule, tokens, y)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("last_layer", ["same", "symmetric"])
@pytest.mark.parametrize("weights", [None, RANDOM.uniform(size=5)], ids=["mean", "weights"])
def test_three_dense_layers_against_numpy(last_layer, weights, float64):
    layers = [L.Dense(7, "tanh", bias_initializer="random_normal"), L.Dense(6, "sigmoid"), L.Dense(4)]
    model = keras.Sequential([keras.Input((5,)), *layers])
    rule = build(FeedbackAlignment(last_layer=last_layer), model)
    x, y = RANDOM.normal(size=(5, 5)), np.array([0, 3, 1, 1, 2])
    w1, c1, w2, c2, w3, c3 = map(np.asarray, model.weights)
    b2, b3 = (np.asarray(layer.pairs[0][1]) for layer in rule.feedback_layers[1:])
    assert np.array_equal(b3, w3) == (last_layer == "symmetric")

    h1 = np.tanh(x @ w1 + c1)
    h2 = 1 / (1 + np.exp(-(h1 @ w2 + c2)))
    e = np.exp(h2 @ w3 + c3)
    delta3 = (e / e.sum(1, keepdims=True) - np.eye(4)[y]) * (np.full(5, 1 / 5) if weights is None else weights)[:, None]
    delta2 = delta3 @ b3.T * h2 * (1 - h2)
    delta1 = delta2 @ b2.T * (1 - h1**2)
    expected = [x.T @ delta1, delta1.sum(0), h1.T @ delta2, delta2.sum(0), h2.T @ delta3, delta3.sum(0)]
    assert_close(compute(rule, x, y, weights), expected, 1e-6 if weights is None else 1e-10)


@pytest.mark.parametrize("last_layer", ["same", "symmetric"])
def test_the_first_layer_s_signal_is_unrelated_to_backpropagation_s_at_the_start(last_layer, float64):
    """Of one example, the cosine of the two gradients is that of two unrelated vectors of n units: σ = 1/√n."""
    units = 1024
    model = keras.Sequential([keras.Input((20,)), L.Dense(units, "tanh"), L.Dense(units, "tanh"), L.Dense(10)])
    x, y = RANDOM.normal(size=(1, 20)), np.array([3])
    exact = compute(build(Backpropagation(), model), x, y)
    actual = compute(build(FeedbackAlignment(last_layer=last_layer, seed=1), model), x, y)
    assert np.linalg.norm(actual[0]) > 0
    assert abs(cosine(actual[0], exact[0])) < 5 / np.sqrt(units)
    assert cosine(actual[4], exact[4]) > 1 - 1e-12  # the output layer's own gradient is exact
    if last_layer == "symmetric":
        assert cosine(actual[2], exact[2]) > 1 - 1e-12
    else:
        assert abs(cosine(actual[2], exact[2])) < 5 / np.sqrt(units)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_kernels_above_a_layer_do_not_change_its_signal(activation, float64):
    """With the error at the output held: kernels act on the way back through activations' derivatives alone."""
    layers = [L.Dense(8, activation, use_bias=False) for _ in range(3)]
    model = keras.Sequential([keras.Input((5,)), *layers, L.Dense(3)])
    network = tfbio.with_feedback(model, "random", last_layer="same")
    x, error = tf.constant(RANDOM.normal(size=(6, 5))), tf.constant(RANDOM.normal(size=(6, 3)))

    def signal(network):
        kernel = model.layers[0].kernel.value
        with tf.GradientTape() as tape:
            outputs = network(x, training=True)
        return np.asarray(tape.gradient(outputs, kernel, error))

    before, exact = signal(network), signal(model)
    for layer, factor in zip(model.layers[1:], (3.0, 0.5, 2.0), strict=True):  # positive: relu's derivative stays
        layer.kernel.assign(factor * layer.kernel)
    np.testing.assert_allclose(signal(network), before, rtol=1e-12)
    np.testing.assert_allclose(signal(model), 3 * exact, rtol=1e-12)
    model.layers[3].kernel.assign(RANDOM.normal(size=(8, 3)))  # no activation above: any kernel
    if activation == "linear":
        for layer in model.layers[1:3]:
            layer.kernel.assign(RANDOM.normal(size=(8, 8)))
    np.testing.assert_allclose(signal(network), before, rtol=1e-12)
    assert not np.allclose(signal(model), 3 * exact, rtol=0.1)


def test_the_signal_is_linear_in_the_scale(float64):
    model = keras.Sequential([keras.Input((5,)), L.Dense(7, "tanh"), L.Dense(6, "tanh"), L.Dense(4)])
    x, y = RANDOM.normal(size=(5, 5)), np.array([0, 3, 1, 1, 2])
    one, three = (
        compute(build(FeedbackAlignment(scale=scale, seed=1, last_layer="same"), model), x, y) for scale in (1.0, 3.0)
    )
    for number, power in enumerate([2, 2, 1, 1, 0, 0]):
        np.testing.assert_allclose(three[number], 3**power * one[number], rtol=1e-10)


def test_feedback_is_fixed_and_owned_by_the_rule():
    model = keras.Sequential([keras.Input((5,)), L.Dense(7), L.Dense(4)])
    rule = build(FeedbackAlignment(last_layer="same"), model)
    assert [layer.layer for layer in rule.feedback_layers] == model.layers
    assert [id(b) for layer in rule.feedback_layers for _, b in layer.pairs] == [id(b) for b in rule.variables]
    assert not any(b.trainable for b in rule.variables)


def signed_network(**options):
    """Networks with a kernel of each sort: a convolution, a separable one (two kernels), a locally connected one."""
    keras.utils.set_random_seed(1)
    hidden = [L.Conv2D(4, 3, **options), L.SeparableConv2D(5, 3, depth_multiplier=2, activation="tanh")]
    hidden += [tfbio.layers.LocallyConnected2D(3, 2, activation="tanh"), L.Flatten(), L.Dense(6, "tanh")]
    return keras.Sequential([keras.Input((8, 8, 3)), *hidden, L.Dense(3)])


def pairs_of(rule):
    return [(np.asarray(w), np.asarray(b)) for layer in rule.feedback_layers for w, b in layer.pairs]


def test_signed_feedback_has_the_signs_of_every_kernel_and_the_magnitudes_of_the_random_one():
    model = signed_network()
    options = {"scale": 3.0, "seed": 1, "last_layer": "same"}
    plain, signed = (pairs_of(build(FeedbackAlignment(signed_init=init, **options), model)) for init in (False, True))
    assert len(signed) == 6
    for (w, b), (_, random) in zip(signed, plain, strict=True):
        np.testing.assert_array_equal(np.sign(b), np.sign(w))
        np.testing.assert_array_equal(np.abs(b), np.abs(random))
        assert np.any(np.sign(random) != np.sign(w))  # else nothing was to be done


def test_signed_feedback_of_one_magnitude_is_the_kernels_signs():
    """As in Xiao et al.'s code; a forward weight of zero has no sign to give, and the draw keeps its own."""
    model = signed_network(kernel_initializer="zeros")
    (first, *others) = pairs_of(build(FeedbackAlignment("ones", scale=0.2, last_layer="same", signed_init=True), model))
    np.testing.assert_allclose(first[1], np.full(first[0].shape, 0.2))
    for w, b in others:
        np.testing.assert_allclose(b, 0.2 * np.sign(w))
    (w, b), *_ = pairs_of(build(FeedbackAlignment(last_layer="same", signed_init=True), model))
    assert not w.any() and b.min() < 0 < b.max()


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_signed_feedback_never_moves(jit_compile):
    """Not with the weights, either, whose signs change."""
    model = signed_network()
    rule = FeedbackAlignment(signed_init=True, last_layer="same")
    trainer = tfbio.Trainer(model, rule, keras.optimizers.Adam(0.1), jit_compile=jit_compile)
    before = pairs_of(rule)
    x, y = IMAGES.astype("float32"), CLASSES
    trainer.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(6), epochs=3, verbose=False)
    for (w0, b0), (w, b) in zip(before, pairs_of(rule), strict=True):
        np.testing.assert_array_equal(b, b0)
        assert np.any(np.sign(w) != np.sign(w0))


def test_signed_feedback_from_gin(tmp_path):
    config.parse(["runs/digits.gin", "rules/fa.gin"], ["FeedbackAlignment.signed_init=True"])
    rule = config.load_run().rule()
    assert rule.signed_init
    for w, b in pairs_of(build(rule, config.load_run().model((8, 8, 1), 10))):
        np.testing.assert_array_equal(np.sign(w), np.sign(b))
