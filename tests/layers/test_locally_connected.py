"""Locally connected layers against loops in NumPy, Keras's convolutions, and each other."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbio.layers import (
    LocallyConnected1D,
    LocallyConnected2D,
    LocallyConnected2DTranspose,
    from_convolution,
)

# name → (arguments, input shape)
CASES = {
    "valid": ({"kernel_size": 3}, (2, 7, 6, 3)),
    "same": ({"kernel_size": (3, 2), "padding": "same"}, (2, 7, 6, 3)),
    "valid strides": ({"kernel_size": (2, 3), "strides": (2, 3)}, (2, 8, 9, 2)),
    "same strides": ({"kernel_size": 5, "strides": 2, "padding": "same", "activation": "tanh"}, (2, 9, 8, 3)),
    "strides beyond the kernel": ({"kernel_size": 1, "strides": 2, "padding": "same"}, (2, 5, 6, 3)),
    "valid dilation": ({"kernel_size": 2, "dilation_rate": (2, 3)}, (2, 6, 7, 2)),
    "same dilation": ({"kernel_size": 3, "dilation_rate": 2, "padding": "same", "use_bias": False}, (2, 6, 5, 2)),
    "whole image": ({"kernel_size": (4, 3), "activation": "relu"}, (2, 4, 3, 2)),
    "one pixel": ({"kernel_size": 1}, (2, 4, 3, 2)),
}
STRIDES_AND_DILATION = ({"kernel_size": (2, 3), "strides": 2, "dilation_rate": 2, "padding": "same"}, (2, 7, 6, 2))
ALL = pytest.mark.parametrize("arguments, shape", [*CASES.values(), STRIDES_AND_DILATION], ids=[*CASES, "both"])
TIED = pytest.mark.parametrize("arguments, shape", CASES.values(), ids=CASES)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["gather", "slices"])
FORMATS = pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def make(cls, arguments, shape, filters=4, **more):
    layer = cls(filters, **{**arguments, **more}, dtype="float64")
    layer.build(shape)
    for number, variable in enumerate(layer.weights):
        variable.assign(normal(variable.shape, 10 + number))
    return layer


def gradients(layer, x, dy):
    """`(outputs, [dx, dv…])` for the error `dy` at the outputs."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return y, tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], tf.convert_to_tensor(dy))


def first(images):
    return np.moveaxis(images, -1, 1)


def assert_all_close(actual, expected, rtol=1e-11):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * max(np.abs(e).max(), 1e-300))


def loop(layer, x, dy):
    """The layer without activation, and its gradients, pixel by pixel; channels last."""
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.strides, layer.dilation_rate
    kernel, channels = np.asarray(layer.kernel), x.shape[-1]
    rows, columns, _, filters = kernel.shape
    kernel = kernel.reshape(rows, columns, kh, kw, channels, filters)
    top = left = 0
    if layer.padding == "same":
        top = max((rows - 1) * sh + (kh - 1) * dh + 1 - x.shape[1], 0) // 2
        left = max((columns - 1) * sw + (kw - 1) * dw + 1 - x.shape[2], 0) // 2
    y, dx, dw_ = np.zeros((len(x), rows, columns, filters)), np.zeros_like(x), np.zeros_like(kernel)
    for r, c, i, j in itertools.product(range(rows), range(columns), range(kh), range(kw)):
        v, h = r * sh + i * dh - top, c * sw + j * dw - left
        if 0 <= v < x.shape[1] and 0 <= h < x.shape[2]:
            y[:, r, c] += x[:, v, h] @ kernel[r, c, i, j]
            dx[:, v, h] += dy[:, r, c] @ kernel[r, c, i, j].T
            dw_[r, c, i, j] += x[:, v, h].T @ dy[:, r, c]
    return y, [dx, dw_.reshape(layer.kernel.shape)]


@ALL
@IMPLEMENTATIONS
def test_against_a_loop(arguments, shape, implementation):
    layer = make(LocallyConnected2D, {**arguments, "activation": None}, shape, implementation=implementation)
    x, dy = normal(shape), normal(layer.compute_output_shape(shape), 1)
    y, (dx, dw, *db) = gradients(layer, x, dy)
    expected, others = loop(layer, x, dy)
    if layer.use_bias:
        expected = expected + np.asarray(layer.bias)
        assert_all_close(db, [dy.sum(axis=0)])
    assert_all_close([y, dx, dw], [expected, *others])


@ALL
def test_compiled_it_is_the_same_by_either_implementation(arguments, shape):
    layers = [make(LocallyConnected2D, arguments, shape, implementation=name) for name in ("gather", "slices")]
    x, dy = normal(shape), normal(layers[0].compute_output_shape(shape), 1)
    y, expected = gradients(layers[0], x, dy)
    compiled = tf.function(lambda x, dy: [gradients(layer, x, dy) for layer in layers], jit_compile=True)
    for outputs, actual in compiled(x, dy):
        assert_all_close([outputs, *actual], [y, *expected])


@pytest.mark.parametrize("implementation, gathers", [("auto", True), ("gather", True), ("slices", False)])
def test_the_implementation_is_the_one_asked_for(implementation, gathers):
    layer = make(LocallyConnected2D, {"kernel_size": 3}, (2, 6, 6, 2), implementation=implementation)
    graph = tf.function(layer.__call__).get_concrete_function(tf.TensorSpec((2, 6, 6, 2), "float64")).graph
    assert ("GatherV2" in {op.type for op in graph.get_operations()}) == gathers


@TIED
@FORMATS
def test_with_tied_weights_it_is_the_convolution(arguments, shape, data_format):
    convolution = make(keras.layers.Conv2D, arguments, shape)
    layer_shape = shape if data_format == "channels_last" else first(np.zeros(shape)).shape
    tied = from_convolution(convolution, shape)
    layer = make(LocallyConnected2D, arguments, layer_shape, data_format=data_format)
    layer.set_weights(tied.get_weights())
    x, dy = normal(shape), normal(convolution.compute_output_shape(shape), 1)
    y, (dx, dw, *db) = gradients(convolution, x, dy)
    assert_all_close([tied(x)], [y])
    if data_format == "channels_first":  # the convolution itself can't do that on this CPU
        outputs, actual = gradients(layer, first(x), first(dy))
        outputs, actual = np.moveaxis(outputs, 1, -1), [np.moveaxis(actual[0], 1, -1), *actual[1:]]
    else:
        outputs, actual = gradients(layer, x, dy)
    summed = [np.sum(v, axis=(0, 1)) for v in actual[1:]]
    assert_all_close([outputs, actual[0], *summed], [y, dx, np.reshape(dw, summed[0].shape), *db])


@pytest.mark.parametrize("padding, strides, dilation", [("valid", 1, 2), ("same", 3, 1), ("same", 1, 1)])
@FORMATS
def test_one_dimension_with_tied_weights(padding, strides, dilation, data_format):
    arguments = {"kernel_size": 3, "padding": padding, "strides": strides, "dilation_rate": dilation}
    convolution = make(keras.layers.Conv1D, arguments, (2, 8, 3))
    tied, x = from_convolution(convolution, (2, 8, 3)), normal((2, 8, 3))
    assert isinstance(tied, LocallyConnected1D)
    shape = (2, 8, 3) if data_format == "channels_last" else (2, 3, 8)
    layer = make(LocallyConnected1D, arguments, shape, data_format=data_format)
    layer.set_weights(tied.get_weights())
    y = layer(x) if data_format == "channels_last" else np.moveaxis(layer(first(x)), 1, -1)
    assert_all_close([y], [convolution(x)])


@ALL
@IMPLEMENTATIONS
@FORMATS
def test_the_transposed_layer_is_the_adjoint(arguments, shape, implementation, data_format):
    arguments = {**arguments, "use_bias": False, "activation": None, "data_format": data_format}
    shape = shape if data_format == "channels_last" else first(np.zeros(shape)).shape
    layer = make(LocallyConnected2D, arguments, shape)
    x, y = normal(shape), normal(layer.compute_output_shape(shape), 1)
    size = shape[1:3] if data_format == "channels_last" else shape[2:]
    transposed = make(
        LocallyConnected2DTranspose,
        arguments,
        y.shape,
        layer.window_shape[2],
        output_size=size,
        implementation=implementation,
    )
    assert transposed.kernel.shape == layer.kernel.shape
    transposed.kernel.assign(layer.kernel)
    assert transposed.compute_output_shape(y.shape) == shape
    back, (dy, dw) = gradients(transposed, y, x)
    _, (dx, expected_dw) = gradients(layer, x, y)
    assert_all_close([back, dy, dw], [dx, layer(x), expected_dw])
    assert np.sum(layer(x) * y) == pytest.approx(np.sum(x * back), rel=1e-11)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_without_a_size_the_transposed_layer_takes_keras_s(padding):
    arguments = {"kernel_size": (3, 5), "strides": (2, 3), "padding": padding}
    layer, keras_s = LocallyConnected2DTranspose(3, **arguments), keras.layers.Conv2DTranspose(3, **arguments)
    expected = tuple(keras_s.compute_output_shape((1, 4, 5, 2)))
    assert layer.compute_output_shape((1, 4, 5, 2)) == layer(np.zeros((1, 4, 5, 2))).shape == expected


def test_the_transposed_layer_has_a_bias_at_each_pixel():
    layer = make(LocallyConnected2DTranspose, {"kernel_size": 3, "strides": 2, "padding": "same"}, (2, 4, 3, 5), 2)
    bias = np.asarray(layer.bias)
    assert bias.shape == (8, 6, 2)
    assert_all_close([layer(np.zeros((1, 4, 3, 5)))[0]], [bias])


def test_the_size_of_the_batch_may_be_unknown_or_zero():
    for model in (
        keras.Sequential([keras.Input((6, 5, 2)), LocallyConnected2D(3, 3, padding="same")]),
        keras.Sequential([keras.Input((6, 5, 2)), LocallyConnected2DTranspose(3, 3, 2)]),
    ):
        call = tf.function(model, input_signature=[tf.TensorSpec((None, 6, 5, 2))])
        for batch in (0, 1, 3):
            assert call(np.ones((batch, 6, 5, 2), np.float32)).shape == (batch, *model.output_shape[1:])


@pytest.mark.parametrize("cls", [LocallyConnected2D, LocallyConnected2DTranspose])
@pytest.mark.parametrize("policy, epsilon", [("mixed_bfloat16", 2.0**-8), ("mixed_float16", 2.0**-11)])
def test_mixed_precision(cls, policy, epsilon):
    x = normal((4, 6, 6, 8))
    exact = cls(5, 3, padding="same", dtype="float32")
    mixed = cls(5, 3, padding="same", dtype=policy)
    y, other = exact(x.astype("float32")), mixed(x.astype("float32"))
    assert other.dtype == policy.removeprefix("mixed_") and mixed.kernel.dtype == "float32"
    mixed.set_weights(exact.get_weights())
    error = tf.cast(mixed(x.astype("float32")), "float32") - y
    assert 0 < np.linalg.norm(error) < 4 * epsilon * np.linalg.norm(y)


@pytest.mark.parametrize(
    "layer",
    [
        LocallyConnected1D(3, 2, 2, "same", "channels_first", 3, "tanh", kernel_constraint="max_norm", name="a"),
        LocallyConnected2D(
            3,
            (2, 1),
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(seed=1),
            bias_initializer="ones",
            kernel_regularizer="l2",
            bias_regularizer="l1",
            activity_regularizer="l2",
            bias_constraint="non_neg",
            implementation="slices",
        ),
        LocallyConnected2DTranspose(3, 2, (2, 1), (8, 6), padding="same", dtype="mixed_bfloat16"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_configs_round_trip(layer):
    config = layer.get_config()
    copy = type(layer).from_config(json.loads(json.dumps(config)))
    assert json.dumps(copy.get_config()) == json.dumps(config)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert json.dumps(copy.get_config()) == json.dumps(config)


def test_models_are_saved_and_loaded(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((7, 6, 2)),
            LocallyConnected2D(3, 3, 2, "same", activation="tanh"),
            LocallyConnected2DTranspose(2, 3, 2, (7, 6), padding="same"),
        ]
    )
    model.save(tmp_path / "model.keras")
    x = normal((2, 7, 6, 2)).astype("float32")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


def test_penalties_and_constraints():
    layer = LocallyConnected2D(2, 2, kernel_regularizer="l2", bias_regularizer="l1", bias_initializer="ones")
    layer.build((None, 3, 3, 1))
    expected = [0.01 * np.sum(np.square(layer.kernel)), 0.01 * 2 * 2 * 2]
    np.testing.assert_allclose(sorted(map(float, layer.losses)), sorted(expected), rtol=1e-6)
    layer = LocallyConnected2D(2, 2, kernel_constraint="non_neg", bias_constraint="max_norm")
    layer.build((None, 3, 3, 1))
    assert isinstance(layer.kernel.constraint, keras.constraints.NonNeg)
    assert isinstance(layer.bias.constraint, keras.constraints.MaxNorm)


@pytest.mark.parametrize(
    "arguments, shape, message",
    [
        ({"filters": 0}, None, "`filters`: expected a positive integer, received 0"),
        ({"kernel_size": (3, 3, 3)}, None, "`kernel_size`: expected a positive integer, or 2 of them"),
        ({"strides": (1, 0)}, None, "`strides`"),
        ({"dilation_rate": 1.5}, None, "`dilation_rate`"),
        ({"padding": "causal"}, None, "`padding`: expected one of"),
        ({"data_format": "last"}, None, "`data_format`"),
        ({"implementation": "dense"}, None, "`implementation`"),
        ({"kernel_size": 5}, (None, 4, 6, 2), "at least .5, 5. pixels.*received .4, 6."),
        ({}, (None, None, 6, 2), "fixed size.*received .None, None, 6, 2. at 'here'"),
        ({}, (None, 6, 2), "2 spatial axes"),
    ],
)
def test_bad_arguments(arguments, shape, message):
    with pytest.raises(ValueError, match=f"Invalid value for .*{message}"):
        LocallyConnected2D(**{"filters": 2, "kernel_size": 3, "name": "here", **arguments}).build(shape)


def test_bad_sizes():
    with pytest.raises(ValueError, match="`output_size`: expected the input size of a layer whose output is .4, 4."):
        LocallyConnected2DTranspose(2, 3, 2, (9, 8), padding="same").build((None, 4, 4, 1))
    layer = LocallyConnected2D(2, 3)
    layer.build((None, 6, 6, 1))
    with pytest.raises(ValueError, match="incompatible"):
        layer(np.zeros((1, 7, 6, 1)))
