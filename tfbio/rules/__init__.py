"""Learning rules: first-class objects, like optimizers.

| name | rule | reference |
|---|---|---|
| `bp` | `Backpropagation` | Rumelhart, Hinton & Williams 1986 |
| `fa` | `FeedbackAlignment` | Lillicrap et al. 2016 |
| `usf`, `brsf`, `frsf` | `SignSymmetry` | Liao et al. 2016, Xiao et al. 2018, Moskovitz et al. 2018 |
| `kp` | `KolenPollack` | Kolen & Pollack 1994, Akrout et al. 2019 |
| `tp`, `dtp` | `TargetPropagation`, `DifferenceTargetPropagation` | Lee et al. 2015 |
| `sdtp`, `ao_sdtp` | `SimplifiedDifferenceTargetPropagation`, `AuxiliaryOutputSDTP` | Bartunov et al. 2018 |
| `ddtp` | `DirectDifferenceTargetPropagation` | Meulemans et al. 2020 |
| `ldrl` | `LocalDifferenceTargetPropagation` | Ernoult et al. 2022 |
| `wm` | `WeightMirror` | Akrout et al. 2019 |
| `dfa`, `dfa_shared`, `dfa_regenerated` | `DirectFeedbackAlignment` | Nøkland 2016, Launay et al. 2020 |
| `dfa_broadcast` | `DirectFeedbackAlignment(storage="broadcast")` | Sanfiz & Akrout 2021 |
| `drtp` | `DirectRandomTargetProjection` | Frenkel et al. 2021 |
"""

from typing import Any

from tfbio.rules.backpropagation import Backpropagation
from tfbio.rules.base import LearningRule, Update
from tfbio.rules.difference_target_propagation import (
    AuxiliaryOutputSDTP,
    DifferenceTargetPropagation,
    SimplifiedDifferenceTargetPropagation,
)
from tfbio.rules.direct_difference_target_propagation import DirectDifferenceTargetPropagation
from tfbio.rules.direct_feedback_alignment import DirectFeedbackAlignment, DirectRandomTargetProjection
from tfbio.rules.feedback_alignment import FeedbackAlignment, FeedbackRule, KolenPollack, SignSymmetry
from tfbio.rules.local_difference_target_propagation import LocalDifferenceTargetPropagation
from tfbio.rules.target_propagation import TargetPropagation
from tfbio.rules.weight_mirror import WeightMirror
from tfbio.serialization import resolve

__all__ = [
    "AuxiliaryOutputSDTP",
    "Backpropagation",
    "DifferenceTargetPropagation",
    "DirectDifferenceTargetPropagation",
    "DirectFeedbackAlignment",
    "DirectRandomTargetProjection",
    "FeedbackAlignment",
    "FeedbackRule",
    "KolenPollack",
    "LearningRule",
    "LocalDifferenceTargetPropagation",
    "SignSymmetry",
    "SimplifiedDifferenceTargetPropagation",
    "TargetPropagation",
    "Update",
    "WeightMirror",
    "get",
]

_NAMES = {
    "bp": Backpropagation,
    "fa": FeedbackAlignment,
    "dfa": DirectFeedbackAlignment,
    "dfa_shared": {"class_name": "DirectFeedbackAlignment", "config": {"storage": "shared"}},
    "dfa_regenerated": {"class_name": "DirectFeedbackAlignment", "config": {"storage": "regenerated"}},
    "dfa_broadcast": {"class_name": "DirectFeedbackAlignment", "config": {"storage": "broadcast"}},
    "drtp": DirectRandomTargetProjection,
    "tp": TargetPropagation,
    "dtp": DifferenceTargetPropagation,
    "sdtp": SimplifiedDifferenceTargetPropagation,
    "ao_sdtp": AuxiliaryOutputSDTP,
    "ddtp": DirectDifferenceTargetPropagation,
    "ldrl": LocalDifferenceTargetPropagation,
    "kp": KolenPollack,
    "usf": SignSymmetry,
    "wm": WeightMirror,
    "brsf": {"class_name": "SignSymmetry", "config": {"magnitude": "batch"}},
    "frsf": {"class_name": "SignSymmetry", "config": {"magnitude": "fixed"}},
}


def get(identifier: Any) -> LearningRule:
    """The rule that `identifier` means: an object, a class, a short or class name, or a config.

    Raises:
        ValueError: unknown; the message lists the names.
    """
    return resolve(identifier, LearningRule, _NAMES, "rule")
