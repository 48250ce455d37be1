"""Where backward weights come from: `Symmetric` (backpropagation's), `Random`, `SignedRandom`, `Learned`,
`SignSymmetric`."""

from typing import Any

from tfbio.feedback.base import FeedbackWeights
from tfbio.feedback.random import Learned, Random, SignedRandom, seeded
from tfbio.feedback.sign_symmetric import SignSymmetric
from tfbio.feedback.symmetric import Symmetric
from tfbio.serialization import resolve

__all__ = ["FeedbackWeights", "Learned", "Random", "SignSymmetric", "SignedRandom", "Symmetric", "get", "seeded"]

_NAMES = {
    "symmetric": Symmetric,
    "random": Random,
    "signed_random": SignedRandom,
    "learned": Learned,
    "sign_symmetric": SignSymmetric,
}


def get(identifier: Any) -> FeedbackWeights:
    """The feedback that `identifier` means: an object, a class, a name or a config.

    Raises:
        ValueError: unknown; the message lists the names.
    """
    return resolve(identifier, FeedbackWeights, _NAMES, "feedback")
