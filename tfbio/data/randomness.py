"""Keys of the stateless random draws, one for each purpose, epoch and batch.

The generator is named (Philox) and not left to TensorFlow, whose own choice depends on the device: the same seed must
give the same order of examples wherever a run is resumed.
"""

import tensorflow as tf

__all__ = ["ALGORITHM", "AUGMENTATION", "ORDER", "key", "permutation"]

#: The generator behind every draw of this package.
ALGORITHM = "philox"

# Purposes: draws for different ends must not share a key.
ORDER = 0
AUGMENTATION = 1


def key(seed: int, purpose: int, *counters: int | tf.Tensor) -> tf.Tensor:
    """The key of the draws for one purpose at one point of a run.

    Args:
        seed: the run's seed.
        purpose: `ORDER` or `AUGMENTATION`.
        *counters: integers or integer scalar tensors that say where in the run: epoch, batch, …

    Returns:
        shape `(2,)`, int64, for the `seed` of the `tf.random.stateless_*` functions.
    """
    result = tf.constant([seed, purpose], tf.int64)
    for counter in counters:
        result = tf.random.experimental.stateless_fold_in(result, tf.cast(counter, tf.int64), alg=ALGORITHM)
    return result


def permutation(key: tf.Tensor, count: int) -> tf.Tensor:
    """A random order.

    Args:
        key: what `key` returned.
        count: how many to bring into an order.

    Returns:
        the numbers from 0 to `count - 1`, shape `(count,)`, int32.
    """
    # Sorted by 64 random bits each: ties, which would favour the earlier number, practically never happen.
    numbers = tf.random.stateless_uniform([count], key, minval=None, maxval=None, dtype=tf.int64, alg=ALGORITHM)
    return tf.argsort(numbers, stable=True)
