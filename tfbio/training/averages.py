r"""Averages over examples, kept on the device: one small vector of sums, read between loops.

The loss is a mean over terms, $\sum v \ell / \sum v c$, column by column where several outputs have one each
(`tfbio.losses.base`). Everything else is a mean over examples, $\sum v f / \sum v$.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfbio.losses import Loss

__all__ = ["Averages"]

# What is added is a multiple of this. In 53 bits, sums of such numbers are exact up to 2²⁵, in whatever order and
# groups they are taken: a checkpoint holds the sum over replicas, and goes back to them in equal shares.
_RESOLUTION = 2.0**-28


class Averages(keras.metrics.Metric):
    """Running sums of each example's loss and of the figures beside it, and of a rule's logs.

    All are weighted by the data's sample weights; logs count as often as there are examples in the batch that they are
    of. Replicas add to copies of their own, which are summed when the vector is read. Create it in a strategy's scope.

    Args:
        loss: what is averaged: a built rule's.
        logs: names of the rule's logs.
        accuracy: what to call the share of right decisions, where the loss has an `error`; None leaves it out.
    """

    def __init__(self, loss: Loss, logs: tuple[str, ...] = (), accuracy: str | None = None):
        super().__init__(name="averages", dtype="float64")
        self._loss, self._logs = loss, logs
        self._accuracy = accuracy if "error" in loss.figure_names else None
        length = 2 * len(loss.columns) + len(loss.figure_names) + len(logs) + 1
        self.sums = self.add_variable((length,), "zeros", dtype="float64", name="sums")

    def update_state(
        self, y: Any, outputs: Any, sample_weight: tf.Tensor, logs: Mapping[str, tf.Tensor] | None = None
    ) -> None:
        """Counts a replica's examples. Called on a replica, in the graph.

        Args:
            y: labels.
            outputs: the network's outputs.
            sample_weight: `(rows,)`.
            logs: the rule's, by name; None where there are none to count, as in an evaluation.
        """
        loss, total = self._loss, tf.reduce_sum(sample_weight)

        def summed(values: tf.Tensor) -> tf.Tensor:
            weights = tf.reshape(sample_weight, [-1, *[1] * (len(values.shape) - 1)])
            return tf.reduce_sum(tf.math.multiply_no_nan(tf.cast(values, tf.float32), weights), axis=0)

        shape = keras.tree.map_structure(lambda output: tuple(output.shape), outputs)
        figures = loss.figures(y, outputs)
        parts = [summed(loss.per_example(y, outputs)), loss.totals(y, shape, sample_weight)]
        parts += [summed(figures[name]) for name in loss.figure_names]
        for name in self._logs:  # of no examples, a log may be anything
            log = 0.0 if logs is None else logs[name]
            parts.append(tf.math.multiply_no_nan(tf.cast(log, tf.float32), total))
        sums = tf.concat([tf.reshape(tf.cast(part, tf.float32), [-1]) for part in (*parts, total)], axis=0)
        self.sums.assign_add(tf.cast(_rounded(sums), tf.float64))

    def result(self) -> dict[str, tf.Tensor]:
        """The averages so far: `loss`, of several outputs also each one's, figures and logs; 0 of nothing."""
        return self._averages(tf.unstack(_rounded(tf.convert_to_tensor(self.sums))), tf.math.divide_no_nan)

    @property
    def directions(self) -> dict[str, str]:
        """ "up" or "down" by the names of those averages of which it is known what is better."""
        errors = [name for name in self._loss.figure_names if name.endswith("error")]
        known = dict.fromkeys(["loss", *self._loss.columns, *errors], "down")
        return {**known, self._accuracy: "up"} if self._accuracy else known

    def read(self, phase: str | None = None) -> dict[str, float]:
        """The averages so far, NaN of nothing. A host read.

        Args:
            phase: what has ended, for the error; None in its course.

        Raises:
            ValueError: the phase has ended, and no example had any weight.
        """
        sums = _rounded(tf.convert_to_tensor(self.sums)).numpy().tolist()
        if phase and not sums[-1]:
            raise ValueError(
                f"Invalid value for `sample_weight`: expected examples of some weight in {phase}, received zeros alone."
            )
        return self._averages(sums, lambda value, count: value / count if count else float("nan"))

    def _averages(self, sums: list, ratio: Callable[[Any, Any], Any]) -> dict[str, Any]:
        *sums, total = sums
        columns, names = len(self._loss.columns), (*self._loss.figure_names, *self._logs)
        losses = [ratio(*pair) for pair in zip(sums[:columns], sums[columns : 2 * columns], strict=True)]
        whole = sum(factor * value for factor, value in zip(self._loss.loss_weights, losses, strict=True))
        others = {name: ratio(value, total) for name, value in zip(names, sums[2 * columns :], strict=True)}
        parts = dict(zip(self._loss.columns, losses, strict=True)) if columns > 1 else {}
        accuracy = {self._accuracy: 1.0 - others["error"]} if self._accuracy else {}
        return {"loss": whole, **parts, **others, **accuracy}


def _rounded(sums: tf.Tensor) -> tf.Tensor:
    return tf.round(sums / _RESOLUTION) * _RESOLUTION
