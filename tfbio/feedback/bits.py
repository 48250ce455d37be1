"""Random bits as a function of a key and a position: the same with and without XLA, in every process and replica.

TensorFlow's stateless floats depend on whether XLA makes them, and its counter-based generators run on one core there.
This is a counter through an integer hash of low bias (two rounds of shift, exclusive or, multiplication; constants of
the hash prospector's `lowbias32`), with a word of the key before each round. XLA fuses it into one loop.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

__all__ = ["stateless_bits"]


def stateless_bits(shape: Sequence[int], key: tf.Tensor) -> tf.Tensor:
    """Integers that are uniform on all of int32.

    Args:
        shape: of the result, fully known.
        key: `(2,)`, int64. Nearby keys give unrelated bits.

    Returns:
        int32.
    """
    first, second = tf.unstack(
        tf.random.stateless_uniform((2,), key, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    )
    x = tf.bitcast(tf.range(math.prod(shape)), tf.uint32) + first
    x = _mixed(x, 16) * tf.constant(0x7FEB352D, tf.uint32) + second
    x = _mixed(x, 15) * tf.constant(0x846CA68B, tf.uint32)
    return tf.reshape(tf.bitcast(_mixed(x, 16), tf.int32), shape)


def _mixed(x: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
