"""tfbio trains plain Keras models with learning rules other than backpropagation.

`import tfbio` alone imports no module, because TensorFlow takes seconds; the first use of a name, as of `tfbio.rules`,
does. If Keras is imported already, all modules are imported at once, so that `keras.saving` finds their classes. A
program that imports tfbio before Keras imports the classes that it loads, as by `import tfbio.layers`.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tfbio.backend import check_backend

check_backend()
if TYPE_CHECKING or "keras" in sys.modules:
    from tfbio import data, feedback, layers, losses, models, optimizers, rules, schedules
    from tfbio.network import inverse, stages, with_feedback
    from tfbio.serialization import register
    from tfbio.training import Learner, Trainer

__version__ = "0.1.0"
__all__ = [
    "Learner",
    "Trainer",
    "data",
    "feedback",
    "inverse",
    "layers",
    "losses",
    "models",
    "optimizers",
    "register",
    "rules",
    "schedules",
    "stages",
    "with_feedback",
]

_DEFINED_IN = {
    "Learner": "training",
    "Trainer": "training",
    "inverse": "network",
    "register": "serialization",
    "stages": "network",
    "with_feedback": "network",
}
_MODULES = ("data", "feedback", "layers", "losses", "models", "network", "optimizers", "rules", "schedules", "training")


def __getattr__(name: str) -> Any:
    if name in _DEFINED_IN:
        value = getattr(import_module(f"tfbio.{_DEFINED_IN[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"tfbio.{name}")
    else:
        raise AttributeError(f"module 'tfbio' has no attribute {name!r}")
    globals()[name] = value  # the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
