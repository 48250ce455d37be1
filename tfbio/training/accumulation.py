"""Gradient accumulation: a batch in microbatches, one after the other, so that memory holds what one of them needs.

The weights of examples carry the global batch, and updates are linear in them, so the microbatches' gradients add up to
the batch's: $\\sum_b w_b g_b = \\sum_m \\sum_{b \\in m} w_b g_b$. The sums live within a step and no checkpoint knows
them.

All microbatches have one shape. What the last ones lack is examples of zeros whose weight is 0.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfbio.training.batches import Examples

__all__ = ["sum_over_microbatches"]


def sum_over_microbatches(compute: Callable[..., Any], count: int, zeros: Any, examples: Examples) -> Any:
    """The sum of what `compute` returns for the microbatches of a batch.

    Args:
        compute: called with a microbatch's number, an int32 scalar (0 if there is one only), and its examples; returns
            nested tensors in the structure, shapes and dtypes of `zeros`.
        count: the number of microbatches. Each has one `count`-th of the examples, rounded up, as they follow one
            another.
        zeros: where the sum starts.
        examples: the batch.

    Returns:
        The sum, in the structure of `zeros`.
    """
    if count == 1:
        return compute(0, examples)
    rows = tf.nest.map_structure(lambda tensor: _split(tensor, count), tuple(examples[:3]))

    def add(number: tf.Tensor, sums: Any) -> tuple:
        own = compute(number, Examples(*tf.nest.map_structure(lambda tensor: tensor[number], rows)))
        sums = tf.nest.map_structure(lambda total, g: tf.ensure_shape(total + g, total.shape), sums, own)
        return number + 1, sums

    # One at a time: TensorFlow would run a microbatch's forward pass beside the one before.
    start = (tf.constant(0), zeros)
    return tf.while_loop(lambda number, _: number < count, add, start, parallel_iterations=1)[1]


def _split(tensor: tf.Tensor, count: int) -> tf.Tensor:
    """`(examples, …)` as `(count, rows, …)`, filled up with zeros."""
    examples = tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]
    rows = -(-examples // count)
    missing = [[0, count * rows - examples]] + [[0, 0]] * (tensor.shape.rank - 1)
    return tf.reshape(tf.pad(tensor, missing), [count, rows, *_sizes(tensor)])


def _sizes(tensor: tf.Tensor) -> list:
    """The sizes of all axes but the first, as numbers where they are known."""
    sizes = tf.shape(tensor)
    return [sizes[axis] if size is None else size for axis, size in enumerate(tensor.shape) if axis]
