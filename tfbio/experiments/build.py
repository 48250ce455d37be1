"""Builds a run from its settings: data set, model, rule, optimizers, strategy, and the trainer that holds them."""

import inspect
import json
from typing import Any

import keras

from tfbio import rules
from tfbio.experiments import description
from tfbio.experiments.settings import Run
from tfbio.training import Trainer
from tfbio.training.strategies import make_strategy

__all__ = ["BuiltRun"]

_EVALUATION_BATCH = 512


class BuiltRun:
    """A run built from its settings.

    Args:
        run: the settings.

    Attributes:
        train_data: the training set, in batches.
        info: what is known of the data set (`tfbio.data.DatasetInfo`).
        trainer: the `tfbio.Trainer` with model, rule, optimizers and strategy.
    """

    def __init__(self, run: Run):
        self.run = run
        strategy = make_strategy(run.strategy, run.tpu)  # first: several workers must meet before any of them computes
        keras.config.set_dtype_policy(run.precision)
        keras.utils.set_random_seed(run.seed)
        self.train_data, self.info = run.load(split="train", batch_size=run.batch_size, seed=run.seed)
        with strategy.scope():
            model = run.model(input_shape=self.info.shape, classes=self.info.classes)
            self.trainer = Trainer(
                model,
                _made(run.rule, rules.LearningRule),
                _made(run.optimizer, keras.optimizers.Optimizer),
                run.loss,
                strategy=strategy,
                jit_compile=run.jit_compile,
                feedback_optimizer=_made(run.feedback_optimizer, keras.optimizers.Optimizer),
                preprocessing=self.info.preprocessing,
                accumulation_steps=run.accumulation_steps,
            )

    def split(self, name: str) -> Any:
        """Loads a split for evaluation: unshuffled, without augmentation, all of it.

        Args:
            name: "train", "validation" or "test".

        Returns:
            The data set in batches; None for a validation split that was not set aside.
        """
        if name not in self.info.splits:
            return None
        plain = {"augmentation": None, "drop_remainder": False}
        parameters = inspect.signature(self.run.load).parameters
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            plain = {name: value for name, value in plain.items() if name in parameters}
        options = {"batch_size": _EVALUATION_BATCH, "seed": self.run.seed, "shuffle": False, **plain}
        return self.run.load(split=name, **options)[0]

    def describe(self) -> dict[str, Any]:
        """Describes this run as plain data. A run that differs may not continue in its directory."""
        trainer = self.trainer
        optimizers = {"optimizer": trainer.optimizer, "feedback_optimizer": trainer.feedback_optimizer}
        optimizers = {name: keras.saving.serialize_keras_object(o) for name, o in optimizers.items() if o is not None}
        content = {
            "dataset": {"set": self.info.name, "examples": self.info.examples, "shape": list(self.info.shape)},
            "preprocessing": self.info.preprocessing.get_config(),
            "batches": description.batches(self.train_data),
            "network": description.network(trainer.model),
            "model": [[variable.name, list(variable.shape)] for variable in trainer.model.variables],
            "rule": {"class_name": type(trainer.rule).__name__, **trainer.rule.get_config()},
            **{name: {"class_name": o["class_name"], **o["config"]} for name, o in optimizers.items()},
            "loss": type(trainer.loss).__name__,
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


def _made(part: Any, kind: type) -> Any:
    """Returns `part`, or the result of calling it if it is a function or class that makes one."""
    return part() if callable(part) and not isinstance(part, kind) else part
