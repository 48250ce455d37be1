"""One loss by its identifier."""

from typing import Any

from tfbio.losses.base import Loss
from tfbio.losses.canonical import MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy
from tfbio.losses.keras_loss import KerasLoss, of_keras
from tfbio.serialization import resolve

__all__ = ["single"]

_NAMES = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "mean_squared_error": MeanSquaredError,
}


def single(identifier: Any) -> Loss:
    """The loss of one output (or of all, taken whole) that `identifier` means; `tfbio.losses.get` says what it may be.

    Raises:
        ValueError: unknown.
    """
    known = isinstance(identifier, str) and identifier in {*_NAMES, *(cls.__name__ for cls in _NAMES.values())}
    found = None if known else of_keras(identifier)
    return resolve(identifier, Loss, _NAMES, "loss") if found is None else KerasLoss(found)
