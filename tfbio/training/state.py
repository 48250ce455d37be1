"""The state of training: everything that a checkpoint holds, and the figures of the epoch that is under way.

A run goes on bit for bit from its variables, its step and its position in the course of epochs, because the order of
examples is a function of (seed, epoch).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.rules import LearningRule
from tfbio.training.averages import Averages
from tfbio.training.callback_states import CallbackStates
from tfbio.training.checkpoints import Checkpoints
from tfbio.training.checks import check_finite
from tfbio.training.metrics import Metrics
from tfbio.training.position import Position
from tfbio.training.preprocessing import Preprocessing
from tfbio.training.statistics import MovingStatistics
from tfbio.training.workers import Workers

__all__ = ["TrainingState"]


class TrainingState:
    """The state of a trainer. Create it in the strategy's scope.

    Args:
        rule: a built rule.
        optimizers: its built optimizers.
        metrics: the trainer's.
        preprocessing: the trainer's.
        strategy: where it trains.

    Attributes:
        step: number of steps taken, an int64 variable.
        position: where training stands in the course of epochs.
        callbacks: the states of `fit`'s callbacks.
    """

    def __init__(
        self,
        rule: LearningRule,
        optimizers: Sequence[keras.optimizers.Optimizer],
        metrics: Metrics,
        preprocessing: Preprocessing,
        strategy: tf.distribute.Strategy,
    ):
        self._rule, self._optimizers, self._strategy = rule, optimizers, strategy
        self._metrics, self._preprocessing = metrics, preprocessing
        self._averages = Averages(rule.loss, rule.logs, metrics.accuracy)
        self._statistics = MovingStatistics(rule.model, strategy)
        self.step = rule.step
        self.position = Position()
        self.callbacks = CallbackStates()

    def record(self, y: Any, outputs: Any, sample_weight: tf.Tensor, logs: Mapping[str, tf.Tensor]) -> None:
        """Counts a replica's examples of a step. Called on a replica, in the graph."""
        self._averages.update_state(y, outputs, sample_weight, logs)
        self._metrics.add(y, outputs, sample_weight)

    def figures(self, phase: str | None = None) -> dict[str, float]:
        """Averages and metrics since they were reset. A host read, by all workers.

        Args:
            phase: what has ended, as in `Averages.read`.
        """
        return {**self._averages.read(phase), **self._metrics.result()}

    def reset_figures(self) -> None:
        """Starts the figures anew."""
        self._averages.reset_state()
        self._metrics.reset()

    def average_statistics(self) -> None:
        """Gives every replica the mean of all replicas' moving statistics; every worker must call it."""
        self._statistics.average()

    @property
    def checkpoint(self) -> tf.train.Checkpoint:
        """Everything that a checkpoint holds."""
        variables = {
            "model": self._rule.model.variables,
            "rule": self._rule.variables,
            "optimizers": [variable for optimizer in self._optimizers for variable in optimizer.variables],
            "preprocessing": self._preprocessing.variables,
        }
        tracked = {name: [variable.value for variable in group] for name, group in variables.items()}
        return tf.train.Checkpoint(
            step=self.step,
            position=self.position.variable,
            averages=self._averages.sums.value,
            metrics=self._metrics.state,
            callbacks=self.callbacks,
            **tracked,
        )

    def save(self, checkpoints: Checkpoints, workers: Workers) -> str:
        """Saves the state as it is now; returns the checkpoint's path. Every worker calls it.

        Raises:
            NonFiniteLoss: no run can go on from it.
        """
        step, learned = int(self.step.numpy()), [*self._rule.forward_variables, *self._rule.feedback_variables]
        check_finite(learned, step, self._rule.model, checkpoints)
        self.average_statistics()
        return checkpoints.save(self.checkpoint, step, workers)

    def restore(self, checkpoints: Checkpoints) -> int:
        """Goes back to the newest readable checkpoint; returns the step it stands at (0 without any)."""
        with self._strategy.scope():
            checkpoints.restore(self.checkpoint)
        return int(self.step.numpy())
