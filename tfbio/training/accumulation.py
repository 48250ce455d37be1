"""Gradient accumulation: a batch in parts, one after the other, so that memory holds what one part needs.

The weights of examples carry the global batch, and updates are linear in them, so the parts' gradients add up to the
batch's: $\\sum_b w_b g_b = \\sum_p \\sum_{b \\in p} w_b g_b$. The sums live within a step and no checkpoint knows them.

All parts have one shape. What the last ones lack is examples of zeros whose weight is 0.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["in_parts"]


def in_parts(compute: Callable[..., Any], parts: int, zeros: Any, *batch: Any) -> Any:
    """The sum of what `compute` returns for the parts of a batch.

    Args:
        compute: called with a part's number, an int32 scalar (0 if there is one part only), and its share of `batch`;
            returns nested tensors in the structure, shapes and dtypes of `zeros`.
        parts: their number. Each has one `parts`-th of the examples, rounded up, as they follow one another.
        zeros: where the sum starts.
        *batch: nested tensors whose first axis is the examples'; the weights of examples among them.

    Returns:
        The sum, in the structure of `zeros`.
    """
    if parts == 1:
        return compute(0, *batch)
    batch = tf.nest.map_structure(lambda tensor: _split(tensor, parts), batch)

    def add(number: tf.Tensor, sums: Any) -> tuple:
        own = compute(number, *tf.nest.map_structure(lambda tensor: tensor[number], batch))
        sums = tf.nest.map_structure(lambda total, g: tf.ensure_shape(total + g, total.shape), sums, own)
        return number + 1, sums

    # One at a time: TensorFlow would run a part's forward pass beside the one before.
    start = (tf.constant(0), zeros)
    return tf.while_loop(lambda number, _: number < parts, add, start, parallel_iterations=1)[1]


def _split(tensor: tf.Tensor, parts: int) -> tf.Tensor:
    """`(examples, …)` as `(parts, rows, …)`, filled up with zeros."""
    examples = tf.shape(tensor)[0] if tensor.shape[0] is None else tensor.shape[0]
    rows = -(-examples // parts)
    missing = [[0, parts * rows - examples]] + [[0, 0]] * (tensor.shape.rank - 1)
    return tf.reshape(tf.pad(tensor, missing), [parts, rows, *_sizes(tensor)])


def _sizes(tensor: tf.Tensor) -> list:
    """The sizes of all axes but the first, as numbers where they are known."""
    sizes = tf.shape(tensor)
    return [sizes[axis] if size is None else size for axis, size in enumerate(tensor.shape) if axis]
