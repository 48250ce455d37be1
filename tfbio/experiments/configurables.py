"""What gin files can name: tfbio's and Keras's classes and functions, and what users register.

A user's module gets here by `import` in a gin file, and by `tfbio.register` on its classes and functions. Nothing is
changed by that: gin has wrappers of its own.
"""

import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any

import gin
import keras

from tfbio import data, feedback, losses, models, optimizers, rules, schedules
from tfbio.experiments.settings import Run
from tfbio.experiments.study import study
from tfbio.serialization import each_registered

__all__ = ["register"]

_KERAS = {
    "optimizers": keras.optimizers.Optimizer,
    "optimizers.schedules": keras.optimizers.schedules.LearningRateSchedule,
    "initializers": keras.initializers.Initializer,
    "metrics": keras.metrics.Metric,
    "callbacks": keras.callbacks.Callback,
}


def register() -> None:
    """Makes everything known to gin, and later what users register."""
    gin.external_configurable(Run, name="train", module="tfbio")
    gin.external_configurable(study, name="study", module="tfbio")
    gin.external_configurable(data.load, name="load", module="tfbio.data")
    _add("tfbio.models", models, models.__all__)
    _add("tfbio.rules", rules, [n for n in rules.__all__ if n not in ("get", "LearningRule", "Update")])
    _add("tfbio.feedback", feedback, ("Random", "SignedRandom", "SignSymmetric", "Symmetric"))
    _add("tfbio.losses", losses, ("MeanSquaredError", "PerOutput", "SigmoidCrossEntropy", "SoftmaxCrossEntropy"))
    _add("tfbio.optimizers", optimizers, optimizers.__all__)
    _add("tfbio.schedules", schedules, schedules.__all__)
    for module, base in _KERAS.items():
        source = operator.attrgetter(module)(keras)
        _add(f"keras.{module}", source, _classes(source, base))
    each_registered(_add_own)


def _add(module: str, source: Any, names: Sequence[str]) -> None:
    for name in names:
        gin.external_configurable(getattr(source, name), name=name, module=module)


def _classes(module: Any, base: type) -> list[str]:
    """The names of a module's subclasses of `base`, without aliases and what is called like a loss of tfbio's."""
    classes = {name: cls for name, cls in vars(module).items() if inspect.isclass(cls) and issubclass(cls, base)}
    own = [name for name, cls in classes.items() if cls is not base and cls.__name__ == name]
    return [name for name in own if not hasattr(losses, name)]


def _add_own(thing: Callable) -> None:
    """Adds what a user has registered. Where a module was run twice, what it made last counts."""
    if thing.__module__.partition(".")[0] != "tfbio":
        with gin.unlock_config(), gin.config.interactive_mode():
            gin.external_configurable(thing, module=thing.__module__)
