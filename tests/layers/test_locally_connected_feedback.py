"""Locally connected layers under the feedback rules, and the scales of their weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.fans import fans_of, with_fans
from tfbio.feedback import Random, SignSymmetric
from tfbio.layers import Feedback, LocallyConnected1D, LocallyConnected2D, LocallyConnected2DTranspose, fans

INITIALIZERS = keras.initializers
# name → (class, arguments, input shape)
CASES = {
    "1d": (LocallyConnected1D, {"kernel_size": 3, "strides": 2, "padding": "same"}, (2, 8, 3)),
    "2d": (LocallyConnected2D, {"kernel_size": 3, "strides": 2, "padding": "same", "activation": "tanh"}, (2, 7, 6, 3)),
    "2d dilation": (LocallyConnected2D, {"kernel_size": 2, "dilation_rate": 2, "use_bias": False}, (2, 6, 5, 3)),
    "2d channels first": (LocallyConnected2D, {"kernel_size": 3, "data_format": "channels_first"}, (2, 3, 5, 5)),
    "2d transpose": (
        LocallyConnected2DTranspose,
        {"kernel_size": 3, "strides": 2, "padding": "same", "output_size": (7, 6), "activation": "relu"},
        (2, 4, 3, 3),
    ),
}
ALL = pytest.mark.parametrize("cls, arguments, shape", CASES.values(), ids=CASES)


def normal(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def make(cls, arguments, shape):
    layer = cls(4, **arguments, dtype="float64")
    layer.build(shape)
    for number, variable in enumerate(layer.weights):
        variable.assign(normal(variable.shape, 10 + number))
    return layer


def gradients(layer, x, dy, variables):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return [y, *tape.gradient(y, [x, *(v.value for v in variables)], dy)]


def assert_all_close(actual, expected, rtol=1e-11):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * np.abs(e).max())


@ALL
@pytest.mark.parametrize("feedback", ["symmetric", "random"])
def test_feedback_equal_to_the_kernel_is_backpropagation(cls, arguments, shape, feedback):
    layer, x = make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, feedback)
    wrapper.build(shape)
    if feedback == "random":
        wrapper.pairs[0][1].assign(layer.kernel)
    variables = layer.trainable_variables
    assert_all_close(gradients(wrapper, x, dy, variables), gradients(layer, x, dy, variables))


@ALL
def test_the_input_gradient_is_that_of_a_layer_with_the_feedback_as_kernel(cls, arguments, shape):
    arguments = {**arguments, "activation": None}
    layer, other, x = make(cls, arguments, shape), make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, Random(seed=1))
    wrapper.build(shape)
    other.kernel.assign(wrapper.pairs[0][1])
    y, dx, *exact = gradients(wrapper, x, dy, layer.trainable_variables)
    expected, exact_dx, *expected_exact = gradients(layer, x, dy, layer.trainable_variables)
    assert_all_close([y, dx, *exact], [expected, gradients(other, x, dy, [])[1], *expected_exact])
    assert not np.allclose(dx, exact_dx, rtol=0.1, atol=1e-3)


def network():
    keras.utils.set_random_seed(0)
    options = {"padding": "same", "activation": "tanh"}
    layers = [LocallyConnected2D(4, 3, 2, **options, name="a"), LocallyConnected2D(6, 3, **options, name="b")]
    return keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Flatten(), L.Dense(10, name="logits")])


@pytest.mark.parametrize("name", ["bp", "fa", "usf", "brsf", "frsf", "kp", "dfa", "drtp"])
def test_every_rule_trains_them(name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8, 8, 1)).astype("float32"), rng.integers(0, 10, 40)
    model = network()
    before = model.get_weights()
    learner = tfbio.Learner(model, name)
    learner.compile(keras.optimizers.Adam(0.01), "softmax_cross_entropy")
    losses = learner.fit(x, y, batch_size=20, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert all(np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True))


def test_direct_feedback_cuts_between_them():
    assert [stage.output_shape[1:] for stage in tfbio.stages(network())] == [(4, 4, 4), (4 * 4 * 6,), (10,)]


def test_sign_symmetry_with_equal_magnitudes_is_backpropagation(float64):
    model = network()
    for variable in model.trainable_variables:
        variable.assign(0.3 * np.sign(np.random.default_rng(1).normal(size=variable.shape)))
    x, y = normal((5, 8, 8, 1)), np.arange(5)
    updates = []
    for rule in (tfbio.rules.SignSymmetry(scale="norm", last_layer="same"), tfbio.rules.Backpropagation()):
        rule.build(model, "softmax_cross_entropy")
        updates.append([gradient for gradient in rule.compute(x, y).forward])
    assert_all_close(*updates, rtol=1e-10)


# Variance-scaling initializers, with the standard deviation for fans of (27, 36): 3 * 3 taps, 3 inputs, 4 filters.
SCALED = {
    "glorot_uniform": np.sqrt(2 / 63),
    "glorot_normal": np.sqrt(2 / 63),
    "he_normal": np.sqrt(2 / 27),
    "lecun_uniform": np.sqrt(1 / 27),
    INITIALIZERS.VarianceScaling(2.0, "fan_out", "untruncated_normal"): np.sqrt(2 / 36),
    INITIALIZERS.RandomNormal(stddev=0.3): 0.3,
}
SHAPES = {
    "2d": (LocallyConnected2D, 4, (2, 12, 12, 3)),
    "2d channels first": (LocallyConnected2D, 4, (2, 3, 12, 12)),
    "2d transpose": (LocallyConnected2DTranspose, 3, (2, 10, 10, 4)),
}


@pytest.mark.parametrize("initializer, deviation", SCALED.items(), ids=range(len(SCALED)))
@pytest.mark.parametrize("cls, filters, shape", SHAPES.values(), ids=SHAPES)
def test_weights_and_feedback_are_scaled_by_the_fans_of_one_position(initializer, deviation, cls, filters, shape):
    data_format = "channels_first" if shape[1] == 3 else "channels_last"
    layer = cls(filters, 3, kernel_initializer=initializer, data_format=data_format)
    wrapper = Feedback(layer, Random(initializer, seed=1))
    wrapper.build(shape)
    kernel, feedback = (np.asarray(w) for w in wrapper.pairs[0])
    assert kernel.shape == (10, 10, 27, 4) and fans(layer, layer.kernel) == fans_of(layer.window_shape)
    for weights in (kernel, feedback):
        assert abs(weights.mean()) < 5 * deviation / np.sqrt(weights.size)
        # The standard error of a deviation is at most σ/√(2n); a truncated normal's cut is matched to 1e-3 by Keras.
        assert abs(weights.std() / deviation - 1) < 5 / np.sqrt(2 * weights.size) + 1e-3
        positions = weights.reshape(100, -1)
        assert len(np.unique(positions[:, 0])) == 100  # independent draws, not one repeated
    if initializer == "glorot_uniform":
        assert 0.99 < np.abs(kernel).max() / np.sqrt(6 / 63) <= 1 + 1e-6


@pytest.mark.parametrize(
    "scale, expected", [("glorot", np.sqrt(2 / 63)), ("xiao", np.sqrt(2 / 36)), (0.25, 0.25), ("norm", None)]
)
def test_sign_symmetric_scales_are_those_of_one_position(scale, expected):
    wrapper = Feedback(LocallyConnected2D(4, 3), SignSymmetric(scale=scale))
    wrapper.build((2, 12, 12, 3))
    kernel, feedback = (np.asarray(w) for w in wrapper.pairs[0])
    expected = np.sqrt(np.mean(kernel**2)) if expected is None else expected
    np.testing.assert_allclose(np.abs(feedback), expected, rtol=1e-5)


def test_fans_are_keras_s_and_change_nothing_where_they_are_the_shape_s():
    from keras.src.initializers.random_initializers import compute_fans

    for shape in [(3,), (3, 4), (5, 3, 4), (2, 3, 3, 4), (2, 2, 3, 3, 4)]:
        assert fans_of(shape) == tuple(map(float, compute_fans(shape)))
    for initializer in (INITIALIZERS.HeNormal(seed=3), INITIALIZERS.Orthogonal(seed=3)):
        np.testing.assert_array_equal(with_fans(initializer, (27.0, 36.0))((3, 3, 3, 4)), initializer((3, 3, 3, 4)))


def test_orthogonal_initializers_are_refused():
    with pytest.raises(ValueError, match="`initializer`: expected one of independent weights, received Orthogonal"):
        LocallyConnected2D(4, 3, kernel_initializer="orthogonal").build((None, 6, 6, 3))
    L.Conv2D(4, 3, kernel_initializer="orthogonal").build((None, 6, 6, 3))


def test_layers_of_one_initializer_draw_apart():
    first, second = (make_default(name) for name in "ab")
    assert not np.any(np.asarray(first.kernel) == np.asarray(second.kernel))


def make_default(name):
    layer = LocallyConnected2D(4, 3, name=name)
    layer.build((None, 6, 6, 3))
    return layer
