"""Learning rules: first-class objects, like optimizers.

| name | rule | reference |
|---|---|---|
| `bp` | `Backpropagation` | Rumelhart, Hinton & Williams 1986 |
| `fa` | `FeedbackAlignment` | Lillicrap et al. 2016 |
| `dfa` | `DirectFeedbackAlignment` | Nøkland 2016 |
"""

from typing import Any

from tfbio.rules.backpropagation import Backpropagation
from tfbio.rules.base import LearningRule, Update
from tfbio.rules.direct_feedback_alignment import DirectFeedbackAlignment
from tfbio.rules.feedback_alignment import FeedbackAlignment, FeedbackRule
from tfbio.serialization import resolve

__all__ = [
    "Backpropagation",
    "DirectFeedbackAlignment",
    "FeedbackAlignment",
    "FeedbackRule",
    "LearningRule",
    "Update",
    "get",
]

_NAMES = {"bp": Backpropagation, "fa": FeedbackAlignment, "dfa": DirectFeedbackAlignment}


def get(identifier: Any) -> LearningRule:
    """The rule that `identifier` means: an object, a class, a short or class name, or a config.

    Raises:
        ValueError: unknown; the message lists the names.
    """
    return resolve(identifier, LearningRule, _NAMES, "rule")
