"""The `Feedback` wrapper on every layer and option, against the layer's own gradients and hand-made chains."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras import version

from tfbio.layers import Feedback

spec = importlib.util.spec_from_file_location("checked", Path(__file__).with_name("checked.py"))
checked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checked)
normal, make, randomise = checked.normal, checked.make, checked.randomise
gradients, assert_all_close = checked.gradients, checked.assert_all_close

# name → (layer's class, arguments, input shape)
CASES = {
    "dense": (L.Dense, {"units": 4}, (3, 5)),
    "dense relu": (L.Dense, {"units": 4, "activation": "relu"}, (3, 5)),
    "dense softmax": (L.Dense, {"units": 4, "activation": "softmax"}, (3, 5)),
    "dense tanh without bias": (L.Dense, {"units": 4, "activation": "tanh", "use_bias": False}, (3, 5)),
    "dense one unit": (L.Dense, {"units": 1, "activation": "tanh"}, (3, 5)),
    "dense one input": (L.Dense, {"units": 3}, (3, 1)),
    "dense on sequences": (L.Dense, {"units": 4, "activation": "gelu"}, (3, 6, 5)),
    "dense on images": (L.Dense, {"units": 4}, (2, 3, 3, 5)),
    "einsum matrix": (L.EinsumDense, {"equation": "ab,bc->ac", "output_shape": 4, "bias_axes": "c"}, (3, 5)),
    "einsum sequence": (
        L.EinsumDense,
        {"equation": "abc,cd->abd", "output_shape": (None, 4), "bias_axes": "d", "activation": "relu"},
        (2, 3, 5),
    ),
    "einsum heads": (
        L.EinsumDense,
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 4), "bias_axes": "de"},
        (2, 3, 5),
    ),
    "einsum merges heads": (
        L.EinsumDense,
        {"equation": "abde,dec->abc", "output_shape": (None, 4), "activation": "tanh"},
        (2, 3, 2, 5),
    ),
    "einsum ellipsis": (L.EinsumDense, {"equation": "...x,xy->...y", "output_shape": 4, "bias_axes": "y"}, (2, 3, 5)),
    "einsum per position": (L.EinsumDense, {"equation": "abc,bcd->abd", "output_shape": (3, 4)}, (2, 3, 5)),
    "conv1d": (L.Conv1D, {"filters": 4, "kernel_size": 3}, (2, 8, 3)),
    "conv1d same strides": (L.Conv1D, {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"}, (2, 9, 3)),
    "conv1d causal dilation": (
        L.Conv1D,
        {"filters": 4, "kernel_size": 3, "dilation_rate": 2, "padding": "causal", "activation": "tanh"},
        (2, 8, 3),
    ),
    "conv2d": (L.Conv2D, {"filters": 4, "kernel_size": 3}, (2, 7, 8, 3)),
    "conv2d same strides relu": (
        L.Conv2D,
        {"filters": 4, "kernel_size": (3, 2), "strides": (2, 1), "padding": "same", "activation": "relu"},
        (2, 7, 8, 3),
    ),
    "conv2d dilation": (L.Conv2D, {"filters": 4, "kernel_size": 3, "dilation_rate": 2}, (2, 8, 8, 3)),
    "conv2d without bias": (L.Conv2D, {"filters": 4, "kernel_size": 2, "use_bias": False}, (2, 6, 6, 3)),
    "conv2d 1x1": (L.Conv2D, {"filters": 4, "kernel_size": 1, "activation": "softmax"}, (2, 4, 4, 3)),
    "conv3d": (L.Conv3D, {"filters": 3, "kernel_size": 2, "activation": "tanh"}, (2, 4, 5, 4, 2)),
    "conv3d same strides": (
        L.Conv3D,
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        (2, 4, 5, 4, 2),
    ),
    "conv1d transpose": (L.Conv1DTranspose, {"filters": 4, "kernel_size": 3, "strides": 2}, (2, 5, 3)),
    "conv1d transpose same": (
        L.Conv1DTranspose,
        {"filters": 4, "kernel_size": 3, "padding": "same", "activation": "relu", "use_bias": False},
        (2, 5, 3),
    ),
    "conv2d transpose": (L.Conv2DTranspose, {"filters": 4, "kernel_size": 3, "activation": "tanh"}, (2, 4, 5, 3)),
    "conv2d transpose output padding": (
        L.Conv2DTranspose,
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
        (2, 4, 5, 3),
    ),
    "conv3d transpose": (
        L.Conv3DTranspose,
        {"filters": 2, "kernel_size": 2, "strides": 2, "padding": "same"},
        (2, 2, 3, 2, 3),
    ),
    "depthwise1d": (L.DepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}, (2, 7, 3)),
    "depthwise2d": (L.DepthwiseConv2D, {"kernel_size": 3, "activation": "relu"}, (2, 6, 6, 3)),
    "depthwise2d multiplier strides": (
        L.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "strides": 2, "padding": "same"},
        (2, 6, 6, 3),
    ),
    "depthwise2d dilation": (
        L.DepthwiseConv2D,
        {"kernel_size": 2, "dilation_rate": 2, "use_bias": False},
        (2, 6, 6, 3),
    ),
    "separable1d": (L.SeparableConv1D, {"filters": 4, "kernel_size": 3, "activation": "tanh"}, (2, 7, 3)),
    "separable2d": (L.SeparableConv2D, {"filters": 4, "kernel_size": 3}, (2, 6, 6, 3)),
    "separable2d options": (
        L.SeparableConv2D,
        {
            "filters": 5,
            "kernel_size": 3,
            "depth_multiplier": 2,
            "strides": 2,
            "padding": "same",
            "use_bias": False,
            "activation": "relu",
        },
        (2, 6, 6, 3),
    ),
    "separable2d strides and dilation": (
        L.SeparableConv2D,
        {"filters": 4, "kernel_size": 2, "strides": 2, "dilation_rate": 2, "padding": "same"},
        (2, 6, 6, 3),
    ),
}
if tuple(int(number) for number in version().split(".")[:2]) < (3, 15):
    del CASES["separable2d strides and dilation"]  # Keras refuses the two together
FIRST = {"data_format": "channels_first"}
# TensorFlow's CPU kernels do not take these; XLA compiles them.
COMPILED_CASES = {
    "conv2d channels first": (L.Conv2D, {"filters": 4, "kernel_size": 3, "padding": "same", **FIRST}, (2, 3, 6, 6)),
    "conv2d transpose channels first": (L.Conv2DTranspose, {"filters": 4, "kernel_size": 3, **FIRST}, (2, 3, 5, 5)),
    "conv2d transpose dilation": (
        L.Conv2DTranspose,
        {"filters": 4, "kernel_size": 2, "dilation_rate": 2},
        (2, 4, 5, 3),
    ),
    "conv2d groups": (L.Conv2D, {"filters": 4, "kernel_size": 3, "groups": 2, "activation": "tanh"}, (2, 6, 6, 6)),
    "depthwise2d channels first": (L.DepthwiseConv2D, {"kernel_size": 3, "activation": "relu", **FIRST}, (2, 3, 6, 6)),
}


ALL = pytest.mark.parametrize("cls, arguments, shape", CASES.values(), ids=CASES)
ONE_KERNEL = {name: case for name, case in CASES.items() if "separable" not in name}


@ALL
def test_symmetric_feedback_is_backpropagation(cls, arguments, shape):
    layer, x = make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, "symmetric")
    y, expected = gradients(layer, x, dy, layer.trainable_variables)
    outputs, actual = gradients(wrapper, x, dy, layer.trainable_variables)
    np.testing.assert_array_equal(outputs, y)
    assert_all_close(actual, expected)
    assert wrapper.trainable_variables == layer.trainable_variables
    assert not wrapper.non_trainable_variables
    assert layer.activation is cls(**arguments).activation  # it was off while the call was traced


@ALL
def test_feedback_equal_to_the_kernel_is_backpropagation(cls, arguments, shape):
    """Through the variable, that is the same path that random feedback takes."""
    layer, x = make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, "random")
    wrapper.build(shape)
    for kernel, b in wrapper.pairs:
        b.assign(kernel)
    assert_all_close(
        gradients(wrapper, x, dy, layer.trainable_variables)[1], gradients(layer, x, dy, layer.trainable_variables)[1]
    )


@pytest.mark.parametrize("cls, arguments, shape", ONE_KERNEL.values(), ids=ONE_KERNEL)
def test_the_input_gradient_is_that_of_a_layer_with_the_feedback_as_kernel(cls, arguments, shape):
    layer, x = make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, "random")
    wrapper.build(shape)
    randomise(wrapper)

    affine = make(cls, {**arguments, "activation": None}, shape)  # the same weights
    with tf.GradientTape() as tape:
        a = affine(x)
        tape.watch(a)
        y = layer.activation(a)
    delta = tape.gradient(y, a, dy)
    exact_dx, *exact = gradients(affine, x, delta, affine.trainable_variables)[1]
    affine.kernel.assign(wrapper.pairs[0][1])
    _, (dx,) = gradients(affine, x, delta, [])

    outputs, actual = gradients(wrapper, x, dy, layer.trainable_variables)
    np.testing.assert_array_equal(outputs, layer(x))
    assert_all_close(actual, [dx, *exact])
    assert not np.allclose(actual[0], exact_dx, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("cls, arguments, shape", COMPILED_CASES.values(), ids=COMPILED_CASES)
def test_options_that_this_cpu_takes_only_when_compiled(cls, arguments, shape):
    layer, x = make(cls, arguments, shape), normal(shape)
    symmetric, random = Feedback(layer, "symmetric"), Feedback(layer, "random")
    random.build(shape)
    randomise(random)
    affine = make(cls, {**arguments, "activation": None}, shape)
    fed = make(cls, {**arguments, "activation": None}, shape)
    fed.kernel.assign(random.pairs[0][1])
    dy = normal(layer.compute_output_shape(shape), 1)

    @tf.function(jit_compile=True)
    def compiled(x, dy):
        variables = layer.trainable_variables
        with tf.GradientTape() as tape:
            a = affine(x)
            tape.watch(a)
            y = layer.activation(a)
        delta = tape.gradient(y, a, dy)
        results = [gradients(f, x, dy, variables) for f in (layer, symmetric, random)]
        return *results, gradients(fed, x, delta, [])[1]

    (y, expected), (same, actual), (outputs, (dx, *exact)), expected_dx = compiled(x, dy)
    assert_all_close([same, *actual], [y, *expected])
    assert_all_close([outputs, dx, *exact], [y, *expected_dx, *expected[1:]])
    assert not np.allclose(dx, expected[0], rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("padding, strides, dilation", [("SAME", 2, 1), ("VALID", 3, 1), ("VALID", 1, 2)])
def test_convolution_against_tensorflow_s_input_gradient(padding, strides, dilation):
    arguments = {"filters": 4, "kernel_size": 3, "padding": padding, "strides": strides, "dilation_rate": dilation}
    wrapper, x = Feedback(make(L.Conv2D, arguments, (2, 8, 9, 3)), "random"), normal((2, 8, 9, 3))
    dy = normal(wrapper(x).shape, 1)
    randomise(wrapper)
    kernel, b = wrapper.pairs[0]
    size = 2 * dilation + 1
    holes = np.zeros((size, size, 3, 4))  # a dilated kernel is a larger one with zeros between its entries
    holes[::dilation, ::dilation] = b
    options = {"out_backprop": dy, "strides": [1, strides, strides, 1], "padding": padding}
    dx = tf.raw_ops.Conv2DBackpropInput(input_sizes=x.shape, filter=holes, **options)
    dw = tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=holes.shape, **options)[::dilation, ::dilation]
    assert_all_close(gradients(wrapper, x, dy, [kernel])[1], [dx, dw])


def test_dense_against_numpy():
    wrapper = Feedback(make(L.Dense, {"units": 4, "activation": "tanh"}, (3, 5)), "random")
    x, dy = normal((3, 5)), normal((3, 4), 1)
    wrapper(x)
    randomise(wrapper)
    w, b = (np.asarray(v) for v in wrapper.pairs[0])
    delta = dy * (1 - np.tanh(x @ w + wrapper.layer.bias) ** 2)
    x, delta = np.asarray(x), np.asarray(delta)
    _, actual = gradients(wrapper, tf.constant(x), dy, wrapper.layer.trainable_variables)
    assert_all_close(actual, [delta @ b.T, x.T @ delta, delta.sum(axis=0)])


SEPARABLE = {name: case for name, case in CASES.items() if "separable" in name}


@pytest.mark.parametrize("cls, arguments, shape", SEPARABLE.values(), ids=SEPARABLE)
def test_a_separable_convolution_is_the_chain_of_its_two_kernels(cls, arguments, shape):
    layer, x = make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, "random")
    wrapper.build(shape)
    randomise(wrapper)

    arguments = dict(arguments)
    above = {name: arguments.pop(name) for name in ("filters", "activation", "use_bias") if name in arguments}
    depthwise, pointwise = (L.DepthwiseConv1D, L.Conv1D) if cls is L.SeparableConv1D else (L.DepthwiseConv2D, L.Conv2D)
    first = Feedback(depthwise(**arguments, use_bias=False, dtype="float64"), "random")
    second = Feedback(pointwise(**above, kernel_size=1, dtype="float64"), "random")
    y = second(first(x))
    first.layer.kernel.assign(layer.depthwise_kernel)
    second.layer.kernel.assign(layer.pointwise_kernel)
    if layer.use_bias:
        second.layer.bias.assign(layer.bias)
    first.pairs[0][1].assign(wrapper.pairs[0][1])
    second.pairs[0][1].assign(wrapper.pairs[1][1])

    variables = [*first.layer.trainable_variables, *second.layer.trainable_variables]
    y, expected = gradients(lambda x: second(first(x)), x, dy, variables)
    outputs, actual = gradients(wrapper, x, dy, layer.trainable_variables)
    assert_all_close([outputs, *actual], [y, *expected])
    exact = gradients(layer, x, dy, layer.trainable_variables)[1]
    assert not np.allclose(actual[0], exact[0], rtol=0.1, atol=1e-3)
    assert not np.allclose(actual[1], exact[1], rtol=0.1, atol=1e-3)  # the depthwise kernel's own gradient
    assert_all_close(actual[2:], exact[2:])
