"""One call of `Trainer.fit`: the host's side of the loop.

`tfbio.training.loops` runs many steps in one graph; between two such loops the host reads averages, calls callbacks,
saves, and sees signals.
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfbio.training.checkpoints import Checkpoints
from tfbio.training.checks import NonFiniteLoss, translate_data_errors
from tfbio.training.evaluation import Evaluator
from tfbio.training.interrupts import TrainingInterrupted
from tfbio.training.loops import TrainingLoop
from tfbio.training.state import TrainingState
from tfbio.training.workers import Workers

__all__ = ["Fitting"]

#: A loop aims at this many seconds, so that progress shows, and a signal is seen, about so often.
_SECONDS_PER_LOOP = 1.0


class Fitting:
    """Trains epoch by epoch.

    Args:
        state: what moves.
        loop: runs steps.
        evaluator: evaluates after each epoch.
        workers: the processes that take part.
        feed: the batches to train on.
        splits: feeds to evaluate, by name.
        hooks: the callbacks.
        stops: numbers of steps at multiples of which a loop ends.
        steps_per_loop: as for `Trainer`.
        checkpoints: where and when to save, or None.
        received: numbers of the signals that came, while they come.
    """

    def __init__(
        self,
        state: TrainingState,
        loop: TrainingLoop,
        evaluator: Evaluator,
        workers: Workers,
        *,
        feed: Any,
        splits: Mapping[str, Any],
        hooks: keras.callbacks.CallbackList,
        stops: Sequence[int],
        steps_per_loop: int | str,
        checkpoints: Checkpoints | None,
        received: list[int],
    ):
        self._state, self._loop, self._evaluator, self._workers = state, loop, evaluator, workers
        self._feed, self._splits, self._hooks, self._stops = feed, splits, hooks, stops
        self._steps_per_loop, self._checkpoints, self._received = steps_per_loop, checkpoints, received

    def run(self, epochs: int) -> None:
        """Trains until `epochs` epochs are finished in all; saves at the end."""
        begin = int(self._state.step.numpy())
        while (epoch := self._state.position.epoch) < epochs and not self._hooks.model.stop_training:
            started = time.monotonic()
            self._hooks.on_epoch_begin(epoch)
            self._train(epoch)
            logs = {"step": int(self._state.step.numpy()), **self._state.figures(f"epoch {epoch + 1}")}
            self._state.reset_figures()
            for name, split in self._splits.items():
                figures = self._evaluator.evaluate(split, self._hooks)
                logs.update({f"{name}_{key}": value for key, value in figures.items()})
            logs["seconds"] = time.monotonic() - started
            self._hooks.on_epoch_end(epoch, logs)
            self._save_if_due()
        step = int(self._state.step.numpy())
        if self._checkpoints is not None and step and (step > begin or self._checkpoints.last is None):
            self._state.save(self._checkpoints, self._workers)

    def _train(self, epoch: int) -> None:
        """The rest of an epoch, loop by loop."""
        state, last, count = self._state, self._feed.steps_per_epoch, 1
        first = state.position.enter(last)
        if not first:
            state.reset_figures()
        handle = self._feed.open(epoch, first)
        while first < last:
            count = count if self._steps_per_loop == "auto" else self._steps_per_loop
            step = int(state.step.numpy())
            count = min(count, last - first, *(every - step % every for every in self._stops))
            (count,) = self._workers.agree(count)
            self._hooks.on_train_batch_begin(first)
            started = time.monotonic()
            with translate_data_errors("training", functools.partial(self._feed.faults, epoch, first, count)):
                loss = float(self._loop(self._feed, handle, epoch, first, count))
            now = int(state.step.numpy())
            first += now - step
            state.position.move(first)
            if not math.isfinite(loss):
                raise NonFiniteLoss(f"The loss became {loss}", now, self._hooks.model, self._checkpoints)
            self._hooks.on_train_batch_end(first - 1, state.figures())
            elapsed = max(time.monotonic() - started, 1e-6)
            count = max(1, min(10 * count, round(count * _SECONDS_PER_LOOP / elapsed)))
            if first < last:
                self._save_if_due()
        state.position.finish_epoch()
        state.average_statistics()

    def _save_if_due(self) -> None:
        """Saves if it is time or a signal came, and then stops if a signal came."""
        if self._checkpoints is None:
            return
        step = int(self._state.step.numpy())
        received = self._received[0] if self._received else 0
        signal, due = self._workers.agree(received, int(self._checkpoints.due(step)))
        if signal or due:
            path = self._state.save(self._checkpoints, self._workers)
            if signal:
                raise TrainingInterrupted(f"Stopped at step {step}; the state is in {path}.", signal)
