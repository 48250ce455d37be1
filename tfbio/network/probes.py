"""Numeric tests of what a layer does with its inputs, for layers that nothing is known of.

Both run the layer on the kind of inputs that it was seen to be called with, at random values, with random weights, and
change nothing.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.keras_internals import changed, children
from tfbio.network.instrumented import Call

__all__ = ["is_affine", "mixes_inputs", "own_weights"]

# Sizes that a call leaves open, outputs that are looked at, and how large a deviation rounding may make.
_OPEN, _ROWS, _ROUNDING = 3, 8, 1e-3


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights that a layer holds itself, not through layers within it."""
    held = {id(weight) for child in children(layer) for weight in child.weights}
    return [weight for weight in layer.weights if id(weight) not in held]


def mixes_inputs(call: Call) -> bool:
    """True if the layer's own weights mix its inputs, so that its derivative is a way that weights travel back.

    Scales, offsets, positions, class tokens, and normalisation do not: whatever their values, they rescale the gradient
    of each output with respect to the inputs, and never turn it. Kernels do. The gradients of some outputs are compared
    for two random draws of the weights.

    Args:
        call: a call of the layer.
    """
    layer, random = call.layer, np.random.default_rng(0)
    args, kwargs = _values(call, random)
    sources = [each for each in tf.nest.flatten((args, kwargs)) if tf.is_tensor(each) and each.dtype.is_floating]
    first, second = (_rows(layer, args, kwargs, sources, _draw(layer, seed)) for seed in (1, 2))
    for a, b in zip(first, second, strict=True):
        aa, bb, ab = np.vdot(a, a), np.vdot(b, b), np.vdot(a, b)
        if aa * bb - ab * ab > _ROUNDING * aa * bb:  # the square of the sine between them
            return True
    return False


def is_affine(call: Call) -> bool:
    """True if the layer, without its `activation`, is affine in its input: $f(αx + (1-α)x') = αf(x) + (1-α)f(x')$.

    Args:
        call: a call of the layer with one floating input.
    """
    layer, random, share = call.layer, np.random.default_rng(0), 0.3
    args, kwargs = _values(call, random)
    others, _ = _values(call, random)
    between = tf.nest.map_structure(lambda x, other: share * x + (1 - share) * other, args[0], others[0])
    f = [_run(layer, (x, *args[1:]), kwargs, _draw(layer, 1)) for x in (args[0], others[0], between)]
    expected = share * f[0] + (1 - share) * f[1]
    return bool(np.linalg.norm(f[2] - expected) <= _ROUNDING * np.linalg.norm(expected))


def _values(call: Call, random: np.random.Generator) -> Any:
    """The call's arguments, with random values in the place of floating tensors, and ones in that of others."""

    def value(argument: Any) -> Any:
        if not tf.is_tensor(argument):
            return argument
        shape = [_OPEN if size is None else size for size in argument.shape]
        if not argument.dtype.is_floating:
            return tf.ones(shape, argument.dtype)
        return tf.constant(random.normal(size=shape), call.layer.variable_dtype)

    return tf.nest.map_structure(value, (call.args, call.kwargs))


def _draw(layer: keras.layers.Layer, seed: int) -> list[tuple[keras.Variable, tf.Tensor]]:
    """The layer's own weights with random positive values, since some are variances."""
    random = np.random.default_rng(seed)
    floating = [weight for weight in own_weights(layer) if keras.backend.is_float_dtype(weight.dtype)]
    return [(weight, tf.constant(random.uniform(0.5, 1.5, weight.shape), weight.dtype)) for weight in floating]


def _run(layer: keras.layers.Layer, args: tuple, kwargs: dict, weights: list) -> np.ndarray:
    with (
        changed(layer, "activation", keras.activations.linear),
        changed(layer, "dtype_policy", layer.variable_dtype),
        keras.StatelessScope(state_mapping=weights),
    ):
        return np.asarray(tf.nest.flatten(layer(*args, **kwargs))[0], "float64")


def _rows(
    layer: keras.layers.Layer, args: tuple, kwargs: dict, sources: Sequence[tf.Tensor], weights: list
) -> list[np.ndarray]:
    """The gradients of some of the layer's outputs with respect to its inputs: rows of its Jacobian."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(sources)
        with changed(layer, "dtype_policy", layer.variable_dtype), keras.StatelessScope(state_mapping=weights):
            outputs = layer(*args, **kwargs)
        flat = tf.reshape(tf.nest.flatten(outputs)[0], [-1])
        numbers = np.random.default_rng(3).choice(len(flat), min(_ROWS, len(flat)), replace=False)
        picked = [flat[number] for number in numbers]
    rows = [tape.gradient(each, sources, unconnected_gradients="zero") for each in picked]
    return [np.concatenate([np.ravel(np.asarray(part, "float64")) for part in row] or [[0.0]]) for row in rows]
