"""Layers with known weights and their gradients, for the tests of `Feedback`."""

import numpy as np
import tensorflow as tf


def normal(shape, seed=0, dtype="float64"):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


def make(cls, arguments, shape, dtype="float64"):
    """A built layer with random weights, biases included."""
    layer = cls(**arguments, dtype=dtype)
    layer.build(shape)
    for number, variable in enumerate(layer.weights):
        variable.assign(normal(variable.shape, 10 + number))
    return layer


def randomise(wrapper):
    for number, (_, b) in enumerate(wrapper.pairs):
        b.assign(normal(b.shape, 20 + number))


def gradients(layer, x, dy, variables):
    """`(outputs, [dx, dv…])` for the error `dy` at the outputs."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([x, *(v.value for v in variables)])
        y = layer(x)
    return y, tape.gradient(y, [x, *(v.value for v in variables)], dy)


def assert_all_close(actual, expected, rtol=1e-11):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * np.abs(e).max())
