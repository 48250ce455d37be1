"""Averages over examples, kept on the device: one small vector of sums, read between loops."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfbio.losses import Loss
from tfbio.training.batches import count_terms

__all__ = ["Averages"]

# What is added is a multiple of this. In 53 bits, sums of such numbers are exact up to 2²⁵, in whatever order and
# groups they are taken: a checkpoint holds the sum over replicas, and goes back to them in equal shares.
_RESOLUTION = 2.0**-28


class Averages:
    """Running sums of each example's loss and error, and of a rule's logs.

    All are weighted by the data's sample weights. The loss is the mean of its terms (`Loss.count`), the others are
    means over examples; a rule's logs count as often as there are examples in the batch that they are of.

    Replicas add to copies of their own, which are summed when the vector is read. Create it in the strategy's scope.

    Args:
        loss: `error` is averaged beside `loss` if it classifies.
        model: the network.
        logs: names of the rule's logs.
    """

    def __init__(self, loss: Loss, model: keras.Model, logs: tuple[str, ...] = ()):
        self._loss, self._model = loss, model
        self.names = ("loss", *(("error",) if loss.classifies else ()), *logs)
        self.sums = tf.Variable(
            tf.zeros(len(self.names) + 2, tf.float64),
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.SUM,
        )

    def add(self, y: Any, outputs: Any, sample_weight: tf.Tensor, logs: Mapping[str, tf.Tensor] | None = None) -> None:
        """Counts a replica's examples. Called on a replica, in the graph.

        Args:
            y: labels.
            outputs: the network's outputs.
            sample_weight: `(rows,)`.
            logs: the rule's, by name.
        """
        columns = [self._loss.per_example(y, outputs)]
        if self._loss.classifies:
            columns.append(self._loss.mistakes(y, outputs))
        sums = [tf.reduce_sum(tf.cast(column, tf.float32) * sample_weight) for column in columns]
        weight = tf.reduce_sum(sample_weight)
        for name in self.names[len(sums) :]:  # of no examples they may be anything
            sums.append(tf.where(weight > 0, tf.cast(logs[name], tf.float32) * weight, 0.0))
        terms = tf.reduce_sum(sample_weight * tf.cast(count_terms(self._loss, y, self._model), tf.float32))
        self.sums.assign_add(tf.cast(_rounded(tf.stack([*sums, weight, terms])), tf.float64))

    def result(self, phase: str | None = None) -> dict[str, float]:
        """The averages so far. A host read.

        Args:
            phase: what has ended, for the error; None in its course, where all may be NaN still.

        Raises:
            ValueError: the phase has ended, and no example had any weight.
        """
        *sums, weight, terms = _rounded(tf.convert_to_tensor(self.sums)).numpy().tolist()
        if phase and not weight:
            raise ValueError(
                f"Invalid value for `sample_weight`: expected examples of some weight in {phase}, received zeros alone."
            )
        counts = [terms] + [weight] * (len(sums) - 1)
        return {n: s / count if count else float("nan") for n, s, count in zip(self.names, sums, counts, strict=True)}

    def reset(self) -> None:
        """Starts anew."""
        self.sums.assign(tf.zeros_like(self.sums))


def _rounded(sums: tf.Tensor) -> tf.Tensor:
    return tf.round(sums / _RESOLUTION) * _RESOLUTION
