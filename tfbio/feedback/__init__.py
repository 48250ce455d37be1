"""Where backward weights come from: `Symmetric` (backpropagation's), `Random` (feedback alignment's)."""

from typing import Any

from tfbio.feedback.base import FeedbackWeights
from tfbio.feedback.random import Random, seeded
from tfbio.feedback.symmetric import Symmetric
from tfbio.serialization import resolve

__all__ = ["FeedbackWeights", "Random", "Symmetric", "get", "seeded"]

_NAMES = {"symmetric": Symmetric, "random": Random}


def get(identifier: Any) -> FeedbackWeights:
    """The feedback that `identifier` means: an object, a class, a name or a config.

    Raises:
        ValueError: unknown; the message lists the names.
    """
    return resolve(identifier, FeedbackWeights, _NAMES, "feedback")
