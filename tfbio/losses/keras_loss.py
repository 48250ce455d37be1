"""Keras's losses, and functions, as they are: the model's outputs are what the loss takes them for."""

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfbio.losses.base import Loss, check_numbers, positions, wide
from tfbio.serialization import register

__all__ = ["KerasLoss", "of_keras"]

# Those that take labels of another shape than the outputs'.
_UNALIKE = ("sparse_categorical_crossentropy", "ctc", "circle")
_OF_CLASSES = ("sparse_categorical_crossentropy", "categorical_crossentropy", "categorical_focal_crossentropy")
_OF_BITS = ("binary_crossentropy", "binary_focal_crossentropy")
_AVERAGES = ("sum_over_batch_size", "mean", "mean_with_sample_weight", "none", None)


def of_keras(identifier: Any) -> Any:
    """Keras's loss object, or a function: what a loss, class, function, name or config means; None if it is neither."""
    if inspect.isclass(identifier):
        return identifier() if issubclass(identifier, keras.losses.Loss) else None
    if isinstance(identifier, dict) and "class_name" in identifier:
        cls = keras.saving.get_registered_object(identifier.get("registered_name"))
        theirs = inspect.isclass(cls) and issubclass(cls, keras.losses.Loss)
        if not (theirs or "function" in identifier["class_name"] or identifier.get("module") == "keras.losses"):
            return None
        return keras.losses.deserialize(identifier)
    if isinstance(identifier, str):
        try:
            return keras.losses.get(identifier)
        except ValueError:
            return None
    return identifier if callable(identifier) and not isinstance(identifier, Loss) else None


@register
class KerasLoss(Loss):
    """A Keras loss, or a function, as `compile` takes it: a mean over the numbers that it returns for a batch.

    Nothing is added: the loss's `from_logits` says whether the model ends in a softmax. With sample weights the mean is
    $\\sum v \\ell / \\sum v c$, which is Keras's where they average to 1. Positions of `ignore_class` are no terms.

    Args:
        loss: a Keras loss (object, class, name or config), or a function `(y_true, y_pred)` that returns a number for
            each example, `(batch,)`, or for each of its positions.

    Raises:
        ValueError: none of these, or a loss that sums over the batch.
    """

    takes_all_outputs = False

    def __init__(self, loss: Any):
        self.loss = of_keras(loss)
        if self.loss is None:
            raise ValueError(
                f"Invalid value for `loss`: expected a keras.losses.Loss, its name, or a function, received {loss!r}."
            )
        if getattr(self.loss, "reduction", None) not in _AVERAGES:
            raise ValueError(
                "Invalid value for `loss`: expected one that is averaged over the global batch, received reduction="
                f"{self.loss.reduction!r}. Leave `reduction` out; a sum is the mean at a higher learning rate."
            )
        function = getattr(self.loss, "fn", self.loss)
        name = getattr(function, "__name__", "")
        self._name = name if getattr(keras.losses, name, None) is function else ""
        self._ignored = getattr(self.loss, "ignore_class", None)
        self.classifies = self._name in _OF_CLASSES + _OF_BITS

    def per_example(self, y: Any, outputs: Any) -> tf.Tensor:
        values = self._values(y, outputs)
        if len(values.shape) == 0:
            raise ValueError(
                f"Invalid value for `loss`: expected one that returns a number for each example, received "
                f"{self._described()}, which returns one for a whole batch. Let it reduce all axes but the first."
            )
        return tf.reduce_sum(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)

    def _values(self, y: Any, outputs: Any) -> tf.Tensor:
        """The loss of each position, as Keras's `Loss.__call__` has it before it reduces."""
        if getattr(outputs, "_keras_mask", None) is not None and self._ignored is None:
            raise ValueError(
                f"Invalid value for `loss`: {self._described()} leaves out the positions that a mask of the model's "
                "output marks, and the labels do not tell their number. Mark them in the labels (`ignore_class` of "
                "keras.losses.SparseCategoricalCrossentropy), or subclass tfbio.losses.Loss and define `count`."
            )
        outputs = keras.tree.map_structure(wide, outputs)
        dtype = keras.tree.flatten(outputs)[0].dtype
        valid = None
        if self._name == "sparse_categorical_crossentropy" and len(y.shape):
            y, valid = self._checked_classes(y, outputs)
        y = keras.tree.map_structure(lambda part: tf.cast(part, dtype), y)
        if isinstance(self.loss, keras.losses.Loss):
            values = wide(self.loss.call(y, outputs))
        else:
            values = wide(self.loss(*_of_one_rank(y, outputs)))
        return values if valid is None else values + tf.where(valid, tf.zeros([], dtype), float("nan"))

    def _checked_classes(self, y: tf.Tensor, outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Class numbers in range, and where they were."""
        y = tf.cast(y, tf.int32)
        if len(y.shape) == len(outputs.shape):
            y = tf.squeeze(y, -1)
        valid = (y >= 0) & (y < outputs.shape[-1])
        ignored = tf.zeros_like(valid) if self._ignored is None else y == self._ignored
        return tf.where(valid | ignored, y, 0), valid | ignored

    def count(self, y: Any, output_shape: Any) -> int | tf.Tensor:
        if self._ignored is not None:
            kept = tf.cast(tf.convert_to_tensor(y) != self._ignored, tf.float32)
            return tf.reduce_sum(tf.reshape(kept, [tf.shape(kept)[0], -1]), axis=1)
        spec = keras.tree.map_structure(lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype), y)
        outputs = keras.tree.map_shape_structure(lambda shape: tf.TensorSpec([None, *shape[1:]]), output_shape)
        values = tf.function(self._values, autograph=False).get_concrete_function(spec, outputs)
        return positions(tuple(values.output_shapes)[1:], y)

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        if not self.classifies:
            return super().mistakes(y, outputs)
        if self._name in _OF_BITS:
            y, outputs = _of_one_rank(y, outputs)
            threshold = 0.0 if getattr(self.loss, "from_logits", False) else 0.5
            wrong = (wide(outputs) > threshold) != (wide(y) > 0.5)
            kept = tf.ones_like(wrong)
        else:
            if self._name == "sparse_categorical_crossentropy":
                classes = tf.cast(y, tf.int64)
                classes = tf.squeeze(classes, -1) if len(classes.shape) == len(outputs.shape) else classes
            else:
                classes = tf.argmax(y, axis=-1)
            wrong = tf.argmax(outputs, axis=-1) != classes
            kept = tf.ones_like(wrong) if self._ignored is None else classes != self._ignored
        wrong, kept = (tf.reshape(tf.cast(t, tf.float32), [tf.shape(t)[0], -1]) for t in (wrong & kept, kept))
        return tf.math.divide_no_nan(tf.reduce_sum(wrong, axis=1), tf.reduce_sum(kept, axis=1))

    def _described(self) -> str:
        return self._name or getattr(self.loss, "__name__", type(self.loss).__name__)

    def get_config(self) -> dict:
        """The loss as Keras writes it, without the name, which depends on what else the process has made."""
        if self._name and not isinstance(self.loss, keras.losses.Loss):
            return {"loss": self._name}
        config = keras.losses.serialize(self.loss)
        if isinstance(config, dict) and isinstance(config.get("config"), dict):
            config["config"].pop("name", None)
        return {"loss": config}


def _of_one_rank(y: Any, outputs: Any) -> tuple:
    """Labels and outputs as Keras hands them to a function: of one rank, where an axis of 1 is the difference."""
    if keras.tree.is_nested(y) or keras.tree.is_nested(outputs):
        return y, outputs
    ranks = len(y.shape), len(outputs.shape)
    if ranks[0] == ranks[1] + 1 and y.shape[-1] == 1:
        return (y, outputs[:, tf.newaxis]) if ranks[1] == 1 else (tf.squeeze(y, -1), outputs)
    if ranks[1] == ranks[0] + 1 and outputs.shape[-1] == 1:
        return (y[:, tf.newaxis], outputs) if ranks[0] == 1 else (y, tf.squeeze(outputs, -1))
    return y, outputs
