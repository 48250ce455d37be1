"""The trainer: a network, a rule, a loss, optimizers and a strategy, and what can be done with them."""

import contextlib
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio import rules
from tfbio.keras_internals import Directions, supports_jit
from tfbio.training.callbacks import CallbackModel, Progress, as_list
from tfbio.training.checkpoints import Checkpoints
from tfbio.training.checks import check_batch, check_count, check_no_collectives, check_scope, check_seeds, data_in_one
from tfbio.training.evaluation import Evaluator, prediction_feed
from tfbio.training.feeds import make_feed
from tfbio.training.fitting import Fitting
from tfbio.training.interrupts import delayed_interrupts
from tfbio.training.loops import NO_STRATEGY, TrainingLoop
from tfbio.training.metrics import Metrics
from tfbio.training.optimizing import finalize_averages, make_optimizers
from tfbio.training.preprocessing import Preprocessing
from tfbio.training.sources import as_source, is_arrays
from tfbio.training.state import TrainingState
from tfbio.training.updater import Updater
from tfbio.training.workers import Workers

__all__ = ["Trainer"]


class Trainer:
    """Trains a plain Keras model with a learning rule.

    Args:
        model: a built Keras model that ends in logits. Under a strategy, made in its scope.
        rule: a `tfbio.rules` rule, name or config.
        optimizer: what `keras.optimizers.get` takes, for the model's variables. Its learning-rate schedule, clipping,
            weight decay and moving averages work; clipping is of the global gradient. As in Keras, `fit` ends with the
            averages in the model, and a further `fit` of the same trainer starts there; checkpoints hold the weights.
        loss: whatever `tfbio.losses.get` takes: a loss of tfbio's or Keras's, or one for each output.
        strategy: a `tf.distribute.Strategy`; None for the current one.
        jit_compile: compile with XLA: `True`, `False`, or `"auto"`: without a strategy, if all
            layers support it.
        feedback_optimizer: for feedback variables that learn, if the rule has any; None for `optimizer` itself, or, for
            a rule whose forward and feedback variables do not take all their steps together, for another one with the
            same settings.
        preprocessing: a layer or function applied to the inputs on the device, before the model: say the
            `info.preprocessing` of `tfbio.data.load`. Export can put it into the model.
        metrics: Keras metrics (objects, names, functions; for several outputs, a dict or list of them by output), of
            labels and `loss.predict(outputs)`: probabilities, where the loss brings the output activation. They are
            weighted by the data's sample weights, as Keras's `weighted_metrics` are, and exact under replicas; one that
            can't be is refused. `"accuracy"` of a loss that classifies is what `error` leaves.
        steps_per_loop: steps between two looks of the host; `"auto"` for about a second's worth.
        accumulation_steps: for batches beyond memory: in how many microbatches each replica takes its examples of a
            batch, one after the other, for one update of their sum.

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
        metrics: Any = (),
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
        check_count("accumulation_steps", accumulation_steps)
        self.model = model
        self.rule = rules.get(rule)
        self.strategy = strategy or tf.distribute.get_strategy()
        self.workers = Workers(self.strategy)
        self.preprocessing = preprocessing
        self._steps_per_loop = steps_per_loop
        check_scope(model, self.strategy)
        alone = isinstance(self.strategy, NO_STRATEGY)
        if jit_compile is True and not alone:
            check_no_collectives(model, "jit_compile", jit_compile)
        if accumulation_steps > 1 and not alone:
            check_no_collectives(model, "accumulation_steps", accumulation_steps)
        with self.strategy.scope():
            self.rule.build(model, loss)
            self.loss = self.rule.loss
            if accumulation_steps > 1 and self.rule.feedback_loops:
                raise ValueError(
                    f"Invalid value for `accumulation_steps`: expected 1, received {accumulation_steps}: the rule "
                    f"{type(self.rule).__name__} with several feedback iterations a batch needs all of it at once."
                )
            self.optimizer, self.feedback_optimizer = make_optimizers(
                self.rule, optimizer, feedback_optimizer, self.strategy
            )
            self.step = self.rule.step
            self._preprocess = Preprocessing(preprocessing)
            check_seeds(self._preprocess, self.strategy)
            if jit_compile == "auto":
                jit_compile = alone and supports_jit(model) and supports_jit(self._preprocess)
            self._compiled = jit_compile
            self._metrics = Metrics(metrics, self.loss, model, self.strategy, accumulation_steps)
            self._evaluator = Evaluator(model, self.loss, self._metrics, self.strategy, jit_compile, self._preprocess)
            self._state = TrainingState(self.rule, self._optimizers, self._metrics, self._preprocess, self.strategy)
        self.rule.check_optimizer(self.optimizer)
        updater = Updater(self.rule, self.optimizer, self.feedback_optimizer)
        self._loop = TrainingLoop(
            self.rule, updater, self.strategy, jit_compile, self._preprocess, self._state.record, accumulation_steps
        )
        self._trained: tuple[Any, tuple, Any] | None = None  # the last data that `fit` was given, and their feed
        self._checked: weakref.WeakSet = weakref.WeakSet()

    @property
    def epoch(self) -> int:
        """Number of epochs finished."""
        return self._state.position.epoch

    def restore(self, checkpoints: Checkpoints) -> int:
        """Goes back to the newest readable checkpoint; returns the step it stands at (0 without any)."""
        return self._state.restore(checkpoints)

    @data_in_one
    def fit(
        self,
        data: Any,
        *,
        validation_data: Any = None,
        epochs: int = 1,
        steps_per_epoch: int | None = None,
        batch_size: int | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
        checkpoints: Checkpoints | None = None,
        verbose: bool = True,
    ) -> keras.callbacks.History:
        """Trains until the model has seen `epochs` epochs in all, restored ones included.

        Args:
            data: a `tf.data.Dataset` of batches `(x, y)` or `(x, y, sample_weight)`, or a function from the epoch to
                one (`tfbio.training.feeds`); arrays `(x, y)` or `(x, y, sample_weight)`, in an order of their own in
                every epoch; or a `keras.utils.PyDataset`, whose batches come in their order. Every example counts once,
                in a last batch that is not full too. Sample weights have the shape `(batch,)`.
            validation_data: the same, or a dict of several by name, evaluated after every epoch; figures carry the
                name (`val` for a single one) and an underscore in front.
            epochs: the total to reach, over all calls. A second call with the same number does nothing.
            steps_per_epoch: for endless data, or to train on the first so many batches of every epoch.
            batch_size: of arrays: examples in a global batch; None for 32.
            callbacks: Keras callbacks. Batch hooks are called once a loop; a callback with an attribute `every_steps`
                sees the end of a loop after every so many steps.
            checkpoints: where and when to save; also makes Ctrl-C and SIGTERM save and then stop.
            verbose: print a line an epoch, and a bar on a terminal.

        Returns:
            The `History`: `history.history["loss"]` and so on, an entry an epoch.

        Raises:
            ValueError: data that do not fit the model; an epoch whose sample weights are all zero.
            NonFiniteLoss: the loss became infinite or NaN, or weights that were to be saved.
            TrainingInterrupted: a signal came, and `checkpoints` holds the state.
        """
        check_count("epochs", epochs, least=0)
        if validation_data is None or not isinstance(validation_data, Mapping):
            validation_data = {} if validation_data is None else {"val": validation_data}
        given = [data, *validation_data.values()]
        sizes = [batch_size if is_arrays(part) or not any(map(is_arrays, given)) else None for part in given]
        if self._trained is None or self._trained[0] is not data or self._trained[1] != (steps_per_epoch, batch_size):
            feed = self._feed(data, steps_per_epoch, sizes[0], shuffle=True)
            self._trained = (data, (steps_per_epoch, batch_size), feed)
        feed = self._trained[2]
        callbacks = keras.tree.flatten(as_list(callbacks))
        stops = [part.every_steps for part in (checkpoints, *callbacks) if getattr(part, "every_steps", None)]
        # Refused before the first step, not after the first epoch, if they do not fit.
        items = zip(validation_data.items(), sizes[1:], strict=True)
        splits = {name: self._feed(split, None, size) for (name, split), size in items}
        progress = [Progress()] if verbose and self.workers.chief else []
        hooks = self._hooks(
            [*callbacks, *progress],
            ["", *(f"{name}_" for name in splits)],
            add_history=True,
            epochs=epochs,
            steps=feed.steps_per_epoch,
            verbose=int(verbose),
        )
        hooks.on_train_begin()
        self._state.callbacks.begin(callbacks)
        # Signals wait for the end of a loop only if there is a place to save to.
        with delayed_interrupts() if checkpoints is not None else contextlib.nullcontext([]) as received:
            fitting = Fitting(
                self._state,
                self._loop,
                self._evaluator,
                self.workers,
                feed=feed,
                splits=splits,
                hooks=hooks,
                stops=stops,
                steps_per_loop=self._steps_per_loop,
                checkpoints=checkpoints,
                received=received,
            )
            fitting.run(epochs)
        self.finish()
        hooks.on_train_end()
        return next(c for c in hooks.callbacks if isinstance(c, keras.callbacks.History))

    @data_in_one
    def evaluate(
        self,
        data: Any,
        steps: int | None = None,
        *,
        batch_size: int | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
    ) -> dict[str, float]:
        """Averages over all examples of a data set.

        Args:
            data: as for `fit`. Figures do not depend on order or batch size.
            steps: for endless data, or to look at the first so many batches.
            batch_size: as for `fit`.
            callbacks: Keras callbacks; their hooks of tests are called.

        Returns:
            `loss`, `error` in [0, 1] and `accuracy` if the loss classifies, and the metrics.

        Raises:
            ValueError: data that do not fit the model; sample weights that are all zero.
        """
        return self._evaluator.evaluate(self._feed(data, steps, batch_size), self._hooks(callbacks))

    def predict(
        self,
        data: Any,
        steps: int | None = None,
        *,
        batch_size: int | None = None,
        callbacks: Iterable[keras.callbacks.Callback] = (),
    ) -> Any:
        """The network's outputs: logits, of which `loss.predict` makes probabilities.

        Args:
            data: as for `fit`, or inputs alone; labels are not looked at. Shuffled data come in the order of their
                first epoch.
            steps: for endless data, or for the first so many batches.
            batch_size: as for `fit`.
            callbacks: Keras callbacks; their hooks of predictions are called.

        Returns:
            An array `(examples, …)`, or as many as there are outputs, nested as the network's.
        """
        if not isinstance(data, (tuple, list, tf.data.Dataset, keras.utils.PyDataset)) and not callable(data):
            data = (data, np.zeros(len(tf.nest.flatten(data)[0])))
        feed = prediction_feed(as_source(data, batch_size, shuffle=False), self.strategy, steps)
        return self._evaluator.predict(feed, self._hooks(callbacks))

    def finish(self) -> None:
        """Puts moving averages in the weights' place, where an optimizer keeps some: how `fit` ends, as Keras's does.

        For who evaluates or exports what `restore` has read: checkpoints hold weights and averages.
        """
        for optimizer in self._optimizers:
            finalize_averages(optimizer)

    @property
    def _optimizers(self) -> list[keras.optimizers.Optimizer]:
        return [optimizer for optimizer in (self.optimizer, self.feedback_optimizer) if optimizer is not None]

    def _feed(self, data: Any, steps: int | None, batch_size: int | None = None, shuffle: bool = False) -> Any:
        """The feed for `steps` batches of `data`, which fit the model. Nothing is kept of them."""
        if steps is not None:
            check_count("steps", steps)
        feed = make_feed(as_source(data, batch_size, shuffle), self.strategy, steps)
        with contextlib.suppress(TypeError):  # lists and tuples have no weak references
            if data in self._checked and not self._metrics.needs_building:
                return feed
        x, y = feed.example()
        if self._compiled and any(part.dtype == tf.string for part in tf.nest.flatten((x, y))):
            raise ValueError(
                "Invalid value for `jit_compile`: expected False for data that are strings, which XLA does not know, "
                "received True, or 'auto' with layers that all support it. Pass jit_compile=False."
            )
        x = self._preprocess(x, training=False)
        check_batch(self.model, self.loss, x, y)
        if self._metrics.needs_building:
            self._metrics.build(y, self.model(tf.nest.map_structure(lambda part: part[:1], x), training=False))
        with contextlib.suppress(TypeError):
            self._checked.add(data)
        return feed

    def _hooks(
        self, callbacks: Iterable[keras.callbacks.Callback], prefixes: Iterable[str] = ("",), **options
    ) -> keras.callbacks.CallbackList:
        known = {f"{prefix}{name}": way for name, way in self._evaluator.directions.items() for prefix in prefixes}
        model = CallbackModel(self.model, self.optimizer, [*self._metrics.keras_metrics, Directions(known)])
        return keras.callbacks.CallbackList(as_list(callbacks), model=model, **options)
