"""tfbio trains plain Keras models with learning rules other than backpropagation."""

from tfbio import data, feedback, layers, losses, models, optimizers, rules
from tfbio.network import inverse, stages, with_feedback
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
    "rules",
    "stages",
    "with_feedback",
]
