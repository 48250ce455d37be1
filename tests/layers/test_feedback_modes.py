"""The `Feedback` wrapper under mixed precision, in graphs and compiled; masks, penalties, layers of one's own."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfbio import feedback
from tfbio.layers import Feedback, kernels

spec = importlib.util.spec_from_file_location("checked", Path(__file__).with_name("checked.py"))
checked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checked)
normal, make, randomise = checked.normal, checked.make, checked.randomise
gradients, assert_all_close = checked.gradients, checked.assert_all_close

CASES = {
    "dense": (L.Dense, {"units": 4, "activation": "tanh"}, (3, 5)),
    "conv2d": (L.Conv2D, {"filters": 4, "kernel_size": 3, "strides": 2, "activation": "relu"}, (2, 7, 8, 3)),
    "separable2d": (L.SeparableConv2D, {"filters": 4, "kernel_size": 3, "padding": "same"}, (2, 6, 6, 3)),
}
ALL = pytest.mark.parametrize("cls, arguments, shape", CASES.values(), ids=CASES)


@pytest.mark.parametrize("policy, compute", [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")])
@ALL
def test_mixed_precision(cls, arguments, shape, policy, compute):
    layer, x = make(cls, arguments, shape, dtype=policy), normal(shape, dtype=compute)
    dy = normal(layer(x).shape, 1, compute)
    symmetric, random = Feedback(layer, "symmetric"), Feedback(layer, "random")
    y, expected = gradients(layer, x, dy, layer.trainable_variables)
    outputs, actual = gradients(symmetric, x, dy, layer.trainable_variables)
    assert outputs.dtype == y.dtype == compute
    for a, e, dtype in zip(actual, expected, [compute] + ["float32"] * len(expected), strict=False):
        assert a.dtype == e.dtype == dtype
        np.testing.assert_array_equal(tf.cast(a, tf.float32), tf.cast(e, tf.float32))
    random.build(shape)
    assert all(b.dtype == "float32" for _, b in random.pairs)
    for kernel, b in random.pairs:
        b.assign(kernel)
    for a, e in zip(gradients(random, x, dy, layer.trainable_variables)[1], expected, strict=True):
        np.testing.assert_array_equal(tf.cast(a, tf.float32), tf.cast(e, tf.float32))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@ALL
def test_graphs_and_xla_equal_eager(cls, arguments, shape, jit_compile):
    layer, x = make(cls, arguments, shape), normal(shape)
    dy = normal(layer(x).shape, 1)
    wrapper = Feedback(layer, "random")
    wrapper.build(shape)

    @tf.function(jit_compile=jit_compile)
    def compiled(x, dy):
        return gradients(wrapper, x, dy, layer.trainable_variables)

    for number in range(2):  # the graph reads the feedback of the day
        y, expected = gradients(wrapper, x, dy, layer.trainable_variables)
        outputs, actual = compiled(x, dy)
        assert_all_close([outputs, *actual], [y, *expected], rtol=1e-10)
        for _, b in wrapper.pairs:
            b.assign(normal(b.shape, 30 + number))


def test_the_unused_forward_pass_is_not_in_the_graph():
    """With random feedback, a dense layer's step takes the three products that backpropagation takes."""
    layer = make(L.Dense, {"units": 4, "activation": "tanh"}, (3, 5))
    wrapper = Feedback(layer, "random")
    wrapper.build((3, 5))

    @tf.function
    def step(x, dy):
        return gradients(wrapper, x, dy, layer.trainable_variables)

    graph = step.get_concrete_function(normal((3, 5)), normal((3, 4))).graph
    used, found = [tensor.op for tensor in graph.outputs], set()
    while used:
        if (op := used.pop()) not in found:
            found.add(op)
            used.extend(tensor.op for tensor in op.inputs)
    assert sum(op.type == "MatMul" for op in found) == 3


def test_several_calls_add_their_gradients():
    layer = make(L.Dense, {"units": 5, "activation": "tanh"}, (3, 5))
    x, dy = normal((3, 5)), normal((3, 5), 1)
    wrapper = Feedback(layer, "symmetric")
    variables = layer.trainable_variables
    actual = gradients(lambda x: wrapper(wrapper(x)), x, dy, variables)[1]
    assert_all_close(actual, gradients(lambda x: layer(layer(x)), x, dy, variables)[1])


def test_the_penalty_on_outputs_stays():
    layer = make(L.Dense, {"units": 4, "activation": "relu", "activity_regularizer": "l2"}, (3, 5))
    x, wrapper = normal((3, 5)), Feedback(layer, "symmetric")
    layer(x)
    expected = [float(loss) for loss in layer.losses]
    wrapper(x)
    assert expected[0] > 0
    np.testing.assert_allclose([float(loss) for loss in wrapper.losses], expected, rtol=1e-6)


def test_masks_pass():
    x = L.Masking(0.0)(tf.constant([[[1.0, 2.0], [0.0, 0.0]]]))
    layer = L.Dense(3)
    assert layer(x)._keras_mask.numpy().tolist() == [[True, False]]
    assert Feedback(layer, "random")(x)._keras_mask.numpy().tolist() == [[True, False]]


def test_a_layer_of_ones_own_names_its_kernels():
    @keras.saving.register_keras_serializable(package="tests")
    class TwoLayers(keras.layers.Layer):
        feedback_kernels = ("first", "second")

        def build(self, shape):
            self.first = self.add_weight(shape=(shape[-1], 6), name="first")
            self.second = self.add_weight(shape=(6, 4), name="second")

        def call(self, x):
            return x @ self.first @ self.second

    layer, x, dy = make(TwoLayers, {}, (3, 5)), normal((3, 5)), normal((3, 4), 1)
    wrapper = Feedback(layer, "random")
    wrapper.build((3, 5))
    randomise(wrapper)
    (w1, b1), (w2, b2) = (map(np.asarray, pair) for pair in wrapper.pairs)
    expected = [dy @ b2.T @ b1.T, np.asarray(x).T @ (dy @ b2.T), (np.asarray(x) @ w1).T @ np.asarray(dy)]
    outputs, actual = gradients(wrapper, x, dy, layer.trainable_variables)
    assert_all_close([outputs, *actual], [x @ w1 @ w2, *expected])


def test_layers_without_plain_kernels_are_refused():
    lora = make(L.Dense, {"units": 4, "name": "low_rank"}, (3, 5))
    lora.enable_lora(2)
    for layer in (L.BatchNormalization(name="batch_norm"), lora):
        with pytest.raises(ValueError, match=rf"'{layer.name}' \({type(layer).__name__}\).*feedback_kernels"):
            Feedback(layer, "random").build((3, 5))
    with pytest.raises(ValueError, match="expected a built layer.*'unbuilt'"):
        kernels(L.Dense(3, name="unbuilt"))


def test_feedback_by_name_config_and_object():
    for identifier in ("random", {"class_name": "random"}, feedback.Random, feedback.Random()):
        assert isinstance(Feedback(L.Dense(3), identifier).feedback, feedback.Random)
    with pytest.raises(ValueError, match="Invalid value for `feedback`.*'nothing'"):
        Feedback(L.Dense(3), "nothing")
