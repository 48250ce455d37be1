"""Random bits, and numbers made of them, as a function of a key and a position: the same with and without XLA, in every
process and replica (numbers but for the rounding of logarithms and cosines).

TensorFlow's stateless floats depend on whether XLA makes them, and its counter-based generators run on one core there.
This is a counter through an integer hash of low bias (two rounds of shift, exclusive or, multiplication; constants of
the hash prospector's `lowbias32`), with a word of the key before each round. XLA fuses it into one loop.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

__all__ = ["stateless_bits", "stateless_normal", "stateless_uniform"]


def stateless_bits(shape: Sequence[int] | tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Integers that are uniform on all of int32.

    Args:
        shape: of the result.
        key: `(2,)`, int64. Nearby keys give unrelated bits.

    Returns:
        int32.
    """
    first, second = tf.unstack(
        tf.random.stateless_uniform((2,), key, minval=None, maxval=None, dtype=tf.uint32, alg="philox")
    )
    x = tf.bitcast(tf.range(_count(shape)), tf.uint32) + first
    x = _mixed(x, 16) * tf.constant(0x7FEB352D, tf.uint32) + second
    x = _mixed(x, 15) * tf.constant(0x846CA68B, tf.uint32)
    return tf.reshape(tf.bitcast(_mixed(x, 16), tf.int32), shape)


def stateless_uniform(shape: Sequence[int] | tf.Tensor, key: tf.Tensor, upper: float = 1.0) -> tf.Tensor:
    """Numbers that are uniform on (0, `upper`), float32, of 16 random bits each: two from one integer.

    Args:
        shape, key: as for `stateless_bits`.
        upper: the largest number, less half of the step `upper` / 65,536 between two.
    """
    count = _count(shape)
    halves = tf.bitcast(stateless_bits([(count + 1) // 2], key), tf.uint16)
    return tf.reshape((tf.cast(tf.reshape(halves, [-1])[:count], tf.float32) + 0.5) * (upper * 2.0**-16), shape)


def stateless_normal(shape: Sequence[int] | tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Standard normal numbers, float32, within ±5.9 (Box & Muller 1958). Arguments as for `stateless_bits`."""
    count = _count(shape)
    radius, angle = tf.unstack(_fine(stateless_bits([2, (count + 1) // 2], key)))
    radius, angle = tf.sqrt(-2.0 * tf.math.log(radius)), 2.0 * math.pi * angle
    return tf.reshape(tf.concat([radius * tf.cos(angle), radius * tf.sin(angle)], 0)[:count], shape)


def _count(shape: Sequence[int] | tf.Tensor) -> int | tf.Tensor:
    """How many numbers; an int where the graph can know, so that it need not copy them to leave none out."""
    shape = tf.convert_to_tensor(shape, tf.int32)
    static = tf.get_static_value(shape)
    return tf.reduce_prod(shape) if static is None else int(static.prod())


def _fine(bits: tf.Tensor) -> tf.Tensor:
    """Uniform on (0, 1], float32, of 24 bits of each integer: logarithms ask for numbers close to 0."""
    bits = tf.bitwise.right_shift(tf.bitcast(bits, tf.uint32), tf.constant(8, tf.uint32))
    return (tf.cast(tf.bitcast(bits, tf.int32), tf.float32) + 0.5) * 2.0**-24


def _mixed(x: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32)))
