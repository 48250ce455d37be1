"""Averages over examples, kept on the device: one small vector of sums, read between loops."""

import tensorflow as tf

from tfbio.losses import Loss

__all__ = ["Averages"]

# What is added is a multiple of this. In 53 bits, sums of such numbers are exact up to 2²⁵, in whatever order and
# groups they are taken: a checkpoint holds the sum over replicas, and goes back to them in equal shares.
_RESOLUTION = 2.0**-28


class Averages:
    """Running sums of each example's loss and error.

    Replicas add to copies of their own, which are summed when the vector is read. Create it in the strategy's scope.

    Args:
        loss: `error` is averaged beside `loss` if it classifies.
    """

    def __init__(self, loss: Loss):
        self._loss = loss
        self.names = ("loss", "error") if loss.classifies else ("loss",)
        self.sums = tf.Variable(
            tf.zeros(len(self.names) + 1, tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def add(self, y: tf.Tensor, outputs: tf.Tensor, importance: tf.Tensor) -> None:
        """Counts a replica's examples: labels, logits and factors `(batch,)`. Called on a replica, in the graph."""
        columns = [self._loss.per_example(y, outputs)]
        if self._loss.classifies:
            columns.append(self._loss.mistakes(y, outputs))
        sums = [tf.reduce_sum(tf.math.multiply_no_nan(tf.cast(column, tf.float32), importance)) for column in columns]
        self.sums.assign_add(tf.cast(_rounded(tf.stack([*sums, tf.reduce_sum(importance)])), tf.float64))

    def result(self) -> dict[str, float]:
        """The averages so far; NaN before the first example. A host read."""
        *sums, count = _rounded(tf.convert_to_tensor(self.sums)).numpy().tolist()
        return {name: total / count if count else float("nan") for name, total in zip(self.names, sums, strict=True)}

    def reset(self) -> None:
        """Starts anew."""
        self.sums.assign(tf.zeros_like(self.sums))


def _rounded(sums: tf.Tensor) -> tf.Tensor:
    return tf.round(sums / _RESOLUTION) * _RESOLUTION
