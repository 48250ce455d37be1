"""The training loop: `Trainer` for real runs, `Learner` for notebooks."""

from tfbio.training.callbacks import BestWeights, JsonLines, Replayed, TensorBoardScalars
from tfbio.training.checkpoints import CheckpointError, Checkpoints
from tfbio.training.checks import NonFiniteLoss
from tfbio.training.interrupts import TrainingInterrupted
from tfbio.training.learner import Learner
from tfbio.training.trainer import Trainer

__all__ = [
    "BestWeights",
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
