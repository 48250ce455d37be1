"""Losses: canonical ones, Keras's, functions, and one for each of several outputs.

`get` turns whatever a user passes into one `Loss`. `tfbio.losses.base` says what is averaged over what.
"""

from typing import Any

import keras

from tfbio.losses.base import Loss
from tfbio.losses.canonical import CanonicalLoss, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy
from tfbio.losses.keras_loss import KerasLoss
from tfbio.losses.per_output import PerOutput, flatten, for_model, output_structure, with_weights
from tfbio.losses.single import single

__all__ = [
    "CanonicalLoss",
    "KerasLoss",
    "Loss",
    "MeanSquaredError",
    "PerOutput",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "get",
    "output_structure",
    "with_weights",
]


def get(identifier: Any, model: keras.Model | None = None) -> Loss:
    """The loss that `identifier` means.

    Args:
        identifier: a `Loss` or a Keras loss, as object, class, name or config; a function `(y_true, y_pred)` that
            returns a loss for each example, `(batch,)`, or for each of its positions; or a dict, list or tuple of
            these, one for each output (`PerOutput` gives them factors). A name that is both tfbio's and Keras's, such
            as `"mean_squared_error"`, is tfbio's (Keras's own is `"mse"`).
        model: what the loss is for, if it is known. As in Keras, one loss is for each output of a model with several;
            and the outputs' names are the model's. Rules do this when they are built: `rule.loss` is the result.

    Returns:
        One `Loss`.

    Raises:
        ValueError: unknown (the message lists the canonical ones), or for an output that the model lacks.
    """
    loss = PerOutput(identifier) if any(flatten(identifier)) else single(identifier)
    return loss if model is None else for_model(loss, model)
