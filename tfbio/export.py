"""Hands a trained network back: an ordinary `.keras` file and a SavedModel, with no tfbio inside.

Locally connected layers, which Keras no longer has, are written to the `.keras` file as stock layers that compute the
same (`tfbio.layers.plain`); a `LocallyConnected2DTranspose` stays itself, so that loading it there takes tfbio.

What is saved is the user's own model, whose weights the rule has trained; wrappers and feedback weights stay behind. On
request the preprocessing and the output activation are put around it, so that raw uint8 images go in and probabilities
come out.
"""

from typing import Any

import keras
from etils.epath import Path

from tfbio.files import check_no_pattern
from tfbio.layers import plain
from tfbio.losses import KerasLoss, Loss, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy

__all__ = ["export", "with_preprocessing"]


def with_preprocessing(model: keras.Model, preprocessing: Any, loss: Loss) -> keras.Model:
    """`model` between its preprocessing and its output activation.

    Args:
        model: takes float inputs, returns logits.
        preprocessing: a stock Keras layer (or model) from raw inputs to what `model` takes; None if it takes raw ones.
        loss: says the output activation: softmax, sigmoid, or none.

    Returns:
        A functional model from uint8 inputs `(batch, …)`, or without preprocessing from `model`'s own, to predictions,
        float32; it shares `model`'s weights.

    Raises:
        ValueError: the loss is of another kind, so that no stock layer for its activation is known.
    """
    activations = {SoftmaxCrossEntropy: "softmax", SigmoidCrossEntropy: "sigmoid", MeanSquaredError: "linear"}
    activations[KerasLoss] = "linear"  # it takes the outputs as they are
    if type(loss) not in activations:
        raise ValueError(
            f"Invalid value for `loss`: expected one of {', '.join(c.__name__ for c in activations)}, received "
            f"{type(loss).__name__}. Export without the preprocessing and apply its `predict` yourself."
        )
    dtype = "uint8" if preprocessing is not None else model.inputs[0].dtype
    raw = keras.Input(model.input_shape[1:], dtype=dtype, name="raw")
    outputs = model(raw if preprocessing is None else preprocessing(raw))
    predictions = keras.layers.Activation(activations[type(loss)], dtype="float32", name="predictions")(outputs)
    return keras.Model(raw, predictions, name=f"{model.name}_from_raw")


def export(model: keras.Model, directory: str) -> tuple[str, str]:
    """Writes `model.keras` and the SavedModel `saved_model/` below `directory`.

    Args:
        model: a Keras model; of tfbio's own layers, it may have locally connected ones.
        directory: made if need be; earlier exports in it are replaced.

    Returns:
        The paths of the two.

    Raises:
        ValueError: TensorFlow would read the path as a pattern, and could not load the SavedModel.
    """
    check_no_pattern("directory", directory)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    plain(model).save(folder / "model.keras")
    model.export(str(folder / "saved_model"), verbose=False)
    return str(folder / "model.keras"), str(folder / "saved_model")
