"""The training loop: `Trainer` for real runs, `Learner` for notebooks."""

from tfbio.training.callbacks import JsonLines, Replayed, TensorBoardScalars
from tfbio.training.checkpoints import CheckpointError, Checkpoints
from tfbio.training.checks import NonFiniteLoss
from tfbio.training.interrupts import TrainingInterrupted
from tfbio.training.learner import Learner
from tfbio.training.trainer import Trainer

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "JsonLines",
    "Learner",
    "NonFiniteLoss",
    "Replayed",
    "TensorBoardScalars",
    "Trainer",
    "TrainingInterrupted",
]
