"""The trainer: the host's side of training.

`tfbio.training.loops` runs many steps in one graph; between two such loops the host reads averages, calls callbacks,
saves, and sees signals.
"""

import contextlib
import functools
import time
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfbio import losses, rules
from tfbio.training.averages import Averages
from tfbio.training.callbacks import CallbackModel, Progress
from tfbio.training.checkpoints import Checkpoints
from tfbio.training.checks import (
    NonFiniteLoss,
    check_batch,
    check_finite,
    check_no_collectives,
    check_scope,
    explained,
)
from tfbio.training.feeds import make_feed
from tfbio.training.interrupts import TrainingInterrupted, delayed_interrupts
from tfbio.training.loops import NO_STRATEGY, Loops
from tfbio.training.optimizing import make_optimizer, put_averages
from tfbio.training.statistics import MovingStatistics
from tfbio.training.workers import Workers

__all__ = ["Trainer"]

#: A loop aims at this many seconds, so that progress shows, and a signal is seen, about so often.
_SECONDS_PER_LOOP = 1.0


class Trainer:
    """Trains a plain Keras model with a learning rule.

    Args:
        model: a built Keras model that ends in logits. Under a strategy, made in its scope.
        rule: a `tfbio.rules` rule, name or config.
        optimizer: what `keras.optimizers.get` takes, for the model's variables. Its learning-rate schedule, clipping,
            weight decay and moving averages work; clipping is of the global gradient. As in Keras, `fit` ends with the
            averages in the model, and a further `fit` of the same trainer starts there; checkpoints hold the weights.
        loss: a `tfbio.losses` loss, name or config.
        strategy: a `tf.distribute.Strategy`; None for the current one.
        jit_compile: compile with XLA: `True`, `False`, or `"auto"`: without a strategy.
        feedback_optimizer: for feedback variables that learn, if the rule has any; None for `optimizer` itself, or, for
            a rule whose forward and feedback variables do not take all their steps together, for another one with the
            same settings.
        preprocessing: a layer or function applied to the inputs on the device, before the model: say the
            `info.preprocessing` of `tfbio.data.load`. Export can put it into the model.
        steps_per_loop: steps between two looks of the host; `"auto"` for about a second's worth.
        accumulation_steps: for batches beyond memory: in how many parts each replica takes its share of a batch, one
            after the other, for one update of their sum.

    Attributes:
        step: number of steps taken, an int64 variable.
        workers: the processes that take part; the chief alone writes.
    """

    def __init__(
        self,
        model: keras.Model,
        rule: Any = "bp",
        optimizer: Any = "adam",
        loss: Any = "softmax_cross_entropy",
        *,
        strategy: tf.distribute.Strategy | None = None,
        jit_compile: bool | str = "auto",
        feedback_optimizer: Any = None,
        preprocessing: Any = None,
        steps_per_loop: int | str = "auto",
        accumulation_steps: int = 1,
    ):
        if jit_compile not in (True, False, "auto"):
            raise ValueError(
                f"Invalid value for `jit_compile`: expected True, False or 'auto', received {jit_compile}."
            )
        if steps_per_loop != "auto" and (not isinstance(steps_per_loop, int) or steps_per_loop < 1):
            raise ValueError(
                f"Invalid value for `steps_per_loop`: expected 'auto' or a positive int, received {steps_per_loop!r}."
            )
        if not isinstance(accumulation_steps, int) or accumulation_steps < 1:
            raise ValueError(
                f"Invalid value for `accumulation_steps`: expected a positive int, received {accumulation_steps!r}."
            )
        self.model = model
        self.rule = rules.get(rule)
        self.loss = losses.get(loss)
        self.strategy = strategy or tf.distribute.get_strategy()
        self.workers = Workers(self.strategy)
        self.preprocessing = preprocessing
        self._steps_per_loop = steps_per_loop
        check_scope(model, self.strategy)
        alone = isinstance(self.strategy, NO_STRATEGY)
        if jit_compile == "auto":
            jit_compile = alone
        if jit_compile and not alone:
            check_no_collectives(model, "jit_compile", jit_compile)
        if accumulation_steps > 1 and not alone:
            check_no_collectives(model, "accumulation_steps", accumulation_steps)
        with self.strategy.scope():
            self.rule.build(model, self.loss)
            if accumulation_steps > 1 and self.rule.feedback_loops:
                raise ValueError(
                    f"Invalid value for `accumulation_steps`: expected 1, received {accumulation_steps}: the rule "
                    f"{type(self.rule).__name__} with several feedback iterations a batch needs all of it at once."
                )
            mixed = "mixed_float16" in {layer.dtype_policy.name for layer in model._flatten_layers()}
            forward, feedback = self.rule.forward_variables, self.rule.feedback_variables
            if feedback_optimizer is None and (len(self.rule.phases) > 1 or self.rule.feedback_loops):
                optimizer = keras.optimizers.get(optimizer)
                feedback_optimizer = type(optimizer).from_config(optimizer.get_config())
            if feedback_optimizer is None:
                forward, feedback = [*forward, *feedback], []
            self.optimizer = make_optimizer(optimizer, forward, self.strategy, "optimizer", mixed)
            self.feedback_optimizer = None
            if feedback:
                self.feedback_optimizer = make_optimizer(
                    feedback_optimizer, feedback, self.strategy, "feedback_optimizer", mixed
                )
            self.step = self.rule.step
            self.averages = Averages(self.loss)
            self._evaluation = Averages(self.loss)
        self._statistics = MovingStatistics(model, self.strategy)
        optimizers, averages = (self.optimizer, self.feedback_optimizer), (self.averages, self._evaluation)
        self._loops = Loops(
            self.rule, optimizers, self.strategy, jit_compile, preprocessing, averages, accumulation_steps
        )
        self._feeds: dict[tuple, tuple] = {}

    def _feed(self, data: Any, steps: int | None) -> Any:
        """The feed for `steps` batches of `data`, the same one each time, so that its loop is traced once."""
        key = (id(data), steps)
        if key not in self._feeds:
            feed = make_feed(data, self.strategy, steps)
            check_batch(self.model, self.loss, *feed.example(), self._loops.prepare)
            self._feeds[key] = (feed, data)  # holding `data` keeps its id its own
        return self._feeds[key][0]

    @property
    def state(self) -> tf.train.Checkpoint:
        """Everything that a checkpoint holds."""
        variables = {
            "model": self.model.variables,
            "rule": self.rule.variables,
            "optimizers": [variable for optimizer in self._optimizers for variable in optimizer.variables],
        }
        tracked = {name: [variable.value for variable in group] for name, group in variables.items()}
        return tf.train.Checkpoint(step=self.step, averages=self.averages.sums, **tracked)

    def restore(self, checkpoints: Checkpoints) -> int:
        """Goes back to the newest readable checkpoint; returns the step it stands at (0 without any)."""
        with self.strategy.scope():
            checkpoints.restore(self.state)
        return int(self.step.numpy())

    def fit(
        self,
        data: Any,
        *,
        validation_data: Any = None,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        checkpoints: Checkpoints | None = None,
        verbose: bool = True,
    ) -> keras.callbacks.History:
        """Trains until the model has seen `epochs` epochs in all, restored ones included.

        Args:
            data: a `tf.data.Dataset` of batches `(x, y)` or `(x, y, sample_weight)`, or a function from the epoch to
                one (`tfbio.training.feeds`). Every example counts once, in a last batch that is not full too.
            validation_data: the same, or a dict of several by name, evaluated after every epoch; figures carry the
                name (`val` for a single one) and an underscore in front.
            epochs: the total to reach. A second call with the same number does nothing.
            steps_per_epoch: for endless data, or to train on the first so many batches of every epoch.
            callbacks: Keras callbacks. Batch hooks are called once a loop; a callback with an attribute `every_steps`
                sees the end of a loop after every so many steps.
            checkpoints: where and when to save; also makes Ctrl-C and SIGTERM save and then stop.
            verbose: print a line an epoch, and a bar on a terminal.

        Returns:
            The `History`: `history.history["loss"]` and so on, an entry an epoch.

        Raises:
            ValueError: data that do not fit the model.
            NonFiniteLoss: the loss became infinite or NaN, or weights that were to be saved.
            TrainingInterrupted: a signal came, and `checkpoints` holds the state.
        """
        feed = self._feed(data, steps_per_epoch)
        loop = self._loops.training(feed)
        callbacks = list(callbacks)
        stops = [part.every_steps for part in (checkpoints, *callbacks) if getattr(part, "every_steps", None)]
        if validation_data is not None and not isinstance(validation_data, Mapping):
            validation_data = {"val": validation_data}
        for split in (validation_data or {}).values():
            self._feed(split, None)  # refuses what does not fit before the first step, not after the first epoch
        callbacks = [*callbacks, *([Progress()] if verbose and self.workers.chief else [])]
        model = CallbackModel(self.model, self.optimizer)
        hooks = keras.callbacks.CallbackList(
            callbacks, add_history=True, model=model, epochs=epochs, steps=feed.steps_per_epoch, verbose=int(verbose)
        )
        hooks.on_train_begin()
        begin = int(self.step.numpy())
        with _signals(checkpoints) as received:
            while (epoch := int(self.step.numpy()) // feed.steps_per_epoch) < epochs and not model.stop_training:
                started = time.monotonic()
                hooks.on_epoch_begin(epoch)
                self._train_epoch(feed, loop, epoch, hooks, stops, checkpoints, received)
                self._statistics.unite()
                logs = {"step": int(self.step.numpy()), **self.averages.result()}
                self.averages.reset()
                for name, split in (validation_data or {}).items():
                    logs.update({f"{name}_{key}": value for key, value in self.evaluate(split).items()})
                logs["seconds"] = time.monotonic() - started
                hooks.on_epoch_end(epoch, logs)
                self._save(checkpoints, received)
        step = int(self.step.numpy())
        if checkpoints is not None and step and (step > begin or checkpoints.last is None):
            self._write(checkpoints)
        self.finish()
        hooks.on_train_end()
        return next(c for c in hooks.callbacks if isinstance(c, keras.callbacks.History))

    @property
    def _optimizers(self) -> list[keras.optimizers.Optimizer]:
        return [optimizer for optimizer in (self.optimizer, self.feedback_optimizer) if optimizer is not None]

    def finish(self) -> None:
        """Puts moving averages in the weights' place, where an optimizer keeps some: how `fit` ends, as Keras's does.

        For who evaluates or exports what `restore` has read: checkpoints hold weights and averages.
        """
        for optimizer in self._optimizers:
            put_averages(optimizer)

    def _train_epoch(self, feed, loop, epoch, hooks, stops, checkpoints, received) -> None:
        """The rest of an epoch, loop by loop."""
        first = int(self.step.numpy()) % feed.steps_per_epoch
        handle = feed.open(epoch, first)
        count, last = 1, feed.steps_per_epoch
        while first < last:
            count = count if self._steps_per_loop == "auto" else self._steps_per_loop
            step = int(self.step.numpy())
            count = min(count, last - first, *(every - step % every for every in stops))
            (count,) = self.workers.agree(count)
            hooks.on_train_batch_begin(first)
            started = time.monotonic()
            with explained("training", functools.partial(feed.faults, epoch, first, count)):
                loss = float(loop(handle, tf.constant(epoch), tf.constant(first), tf.constant(count)))
            first = int(self.step.numpy()) - epoch * last
            if not tf.math.is_finite(loss):
                raise NonFiniteLoss(f"The loss became {loss}", int(self.step.numpy()), self.model, checkpoints)
            hooks.on_train_batch_end(first - 1, self.averages.result())
            elapsed = max(time.monotonic() - started, 1e-6)
            count = max(1, min(10 * count, round(count * _SECONDS_PER_LOOP / elapsed)))
            if first < last:
                self._save(checkpoints, received)

    def _save(self, checkpoints: Checkpoints | None, received: list[int]) -> None:
        """Saves if it is time or a signal came, and then stops if a signal came."""
        if checkpoints is None:
            return
        step = int(self.step.numpy())
        signal, due = self.workers.agree(received[0] if received else 0, int(checkpoints.due(step)))
        if signal or due:
            path = self._write(checkpoints)
            if signal:
                raise TrainingInterrupted(f"Stopped at step {step}; the state is in {path}.", signal)

    def _write(self, checkpoints: Checkpoints) -> str:
        """Saves the state as it is now, if a run can go on from it; returns the checkpoint's path."""
        step = int(self.step.numpy())
        check_finite([*self.rule.forward_variables, *self.rule.feedback_variables], step, self.model, checkpoints)
        self._statistics.unite()
        return checkpoints.save(self.state, step, self.workers)

    def evaluate(self, data: Any, steps: int | None = None) -> dict[str, float]:
        """Averages over all examples of a data set.

        Args:
            data: as for `fit`. Figures do not depend on order or batch size.
            steps: for endless data, or to look at the first so many batches.

        Returns:
            `loss`, and `error` in [0, 1] and `accuracy` if the loss classifies.
        """
        feed = self._feed(data, steps)
        self._evaluation.reset()
        loop = self._loops.evaluation(feed)
        with explained("evaluation", functools.partial(feed.faults, 0, 0, None)):
            loop(feed.open(0, 0), tf.constant(0), tf.constant(0), tf.constant(feed.steps_per_epoch))
        figures = self._evaluation.result()
        return figures | ({"accuracy": 1.0 - figures["error"]} if "error" in figures else {})


def _signals(checkpoints: Checkpoints | None) -> Any:
    """Signals wait for the end of a loop only if there is a place to save to."""
    return delayed_interrupts() if checkpoints is not None else contextlib.nullcontext([])
