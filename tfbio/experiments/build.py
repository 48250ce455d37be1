"""Builds a run from its settings: data set, model, rule, optimizers, strategy, and the trainer that holds them."""

import inspect
import json
from typing import Any

import keras

from tfbio import keras_internals, losses, rules
from tfbio.experiments import description
from tfbio.experiments.initial_weights import load_initial_weights
from tfbio.experiments.settings import Run
from tfbio.schedules import InEpochs
from tfbio.training import Trainer
from tfbio.training.feeds import first_batch
from tfbio.training.strategies import make_strategy

__all__ = ["BuiltRun", "made"]

_EVALUATION_BATCH = 512


class BuiltRun:
    """A run built from its settings.

    Args:
        run: the settings.
        starts: whether the run starts with its first weights. If a checkpoint is read after this, `run.initial_weights`
            is not, and may be gone.

    Attributes:
        train_data: the training set, in batches.
        info: what is known of the data set (`tfbio.data.DatasetInfo`).
        trainer: the `tfbio.Trainer` with model, rule, optimizers and strategy.
    """

    def __init__(self, run: Run, starts: bool = True):
        self.run = run
        strategy = make_strategy(run.strategy, run.tpu)  # first: several workers must meet before any of them computes
        keras.config.set_dtype_policy(run.precision)
        keras.utils.set_random_seed(run.seed)
        self.train_data, self.info = run.load(split="train", batch_size=run.batch_size, seed=run.seed)
        with strategy.scope():
            model = run.model(input_shape=self.info.shape, classes=self.info.classes)
            if starts and run.initial_weights is not None:
                load_initial_weights(model, run.initial_weights)
            self.trainer = Trainer(
                model,
                made(run.rule, rules.LearningRule),
                self._optimizer(run.optimizer),
                run.loss,
                strategy=strategy,
                jit_compile=run.jit_compile,
                feedback_optimizer=self._optimizer(run.feedback_optimizer),
                preprocessing=self.info.preprocessing,
                accumulation_steps=run.accumulation_steps,
                metrics=keras.tree.map_structure(_metric, run.metrics),
            )

    def _optimizer(self, part: Any) -> keras.optimizers.Optimizer | None:
        """The optimizer that a setting means. Its schedule learns how many steps an epoch has."""
        if part is None:
            return None
        optimizer = keras.optimizers.get(made(part, keras.optimizers.Optimizer))
        schedule = keras_internals.learning_rate_schedule(optimizer)
        if isinstance(schedule, InEpochs) and schedule.steps_per_epoch is None:
            schedule.steps_per_epoch = description.batches(self.train_data)["steps_per_epoch"]
        return optimizer

    def split(self, name: str) -> Any:
        """Loads a split for evaluation: unshuffled, without augmentation, all of it.

        Args:
            name: "train", "validation" or "test".

        Returns:
            The data set in batches; None for a validation split that was not set aside.
        """
        return self._load(name, shuffle=False) if name in self.info.splits else None

    def sample(self) -> tuple[Any, Any]:
        """Draws a batch `(x, y)` from the whole training split, without augmentation.

        The draw is a function of the run's seed alone, so that it is the same for every worker and after a restart.
        """
        return first_batch(self._load("train", shuffle=True))

    def _load(self, split: str, shuffle: bool) -> Any:
        plain = {"augmentation": None, "drop_remainder": False}
        parameters = inspect.signature(self.run.load).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            plain = {name: value for name, value in plain.items() if name in parameters}
        options = {"batch_size": _EVALUATION_BATCH, "seed": self.run.seed, "shuffle": shuffle, **plain}
        return self.run.load(split=split, **options)[0]

    def describe(self) -> dict[str, Any]:
        """Describes this run as plain data. A run that differs may not continue in its directory."""
        trainer = self.trainer
        optimizers = {"optimizer": trainer.optimizer, "feedback_optimizer": trainer.feedback_optimizer}
        optimizers = {name: keras.saving.serialize_keras_object(o) for name, o in optimizers.items() if o is not None}
        content = {
            "dataset": {"set": self.info.name, "examples": self.info.examples, "shape": self.info.shape},
            "preprocessing": description.preprocessing(self.info.preprocessing),
            "batches": description.batches(self.train_data),
            "network": description.network(trainer.model),
            "model": [[variable.name, list(variable.shape)] for variable in trainer.model.variables],
            "rule": {"class_name": type(trainer.rule).__name__, **trainer.rule.get_config()},
            **{name: {"class_name": o["class_name"], **o["config"]} for name, o in optimizers.items()},
            "loss": description.loss(losses.get(self.run.loss)),
            "initial_weights": self.run.initial_weights,
            "batch_size": self.run.batch_size,
            "seed": self.run.seed,
            "precision": self.run.precision,
        }
        return description.nameless(json.loads(json.dumps(content, default=str)))

    def labels(self) -> dict[str, str]:
        """Returns what tables and pictures call this run."""
        if self.run.labels:
            return dict(self.run.labels)
        rule = type(self.trainer.rule).__name__
        return {"dataset": self.info.name, "network": self.trainer.model.name, "rule": rule}


def made(part: Any, kind: type) -> Any:
    """Returns `part`, or the result of calling it if it is a function or class that makes one."""
    return part() if callable(part) and not isinstance(part, kind) else part


def _metric(part: Any) -> Any:
    """Returns a metric as `Trainer` takes it. Functions are metrics themselves, so that classes alone are called."""
    return part() if inspect.isclass(part) else part
