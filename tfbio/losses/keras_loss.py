"""Keras's losses, and functions, as they are: the model's outputs are what the loss takes them for."""

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfbio import keras_internals
from tfbio.losses.base import Loss, positions, wide
from tfbio.losses.canonical import are_classes, as_classes, check_classes
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
        known = getattr(keras.losses, name, None) is function and getattr(self.loss, "axis", -1) == -1
        self._name = name if known else ""
        self._ignored = getattr(self.loss, "ignore_class", None)
        self.classifies = self._name in _OF_CLASSES + _OF_BITS
        self.takes_probabilities = self.classifies and not getattr(self.loss, "from_logits", False)

    def per_example(self, y: Any, outputs: Any) -> tf.Tensor:
        values = self._values(y, outputs)
        return tf.reduce_sum(tf.reshape(values, [tf.shape(values)[0], -1]), axis=1)

    def _values(self, y: Any, outputs: Any) -> tf.Tensor:
        """The loss of each position, before Keras's `Loss.__call__` would reduce it: `(batch, …)`."""
        if keras_internals.mask(outputs) is not None and self._ignored is None:
            raise ValueError(
                f"Invalid value for `loss`: {self.described()} leaves out the positions that a mask of the model's "
                "output marks, and the labels do not tell their number. Mark them in the labels (`ignore_class` of "
                "keras.losses.SparseCategoricalCrossentropy), or subclass tfbio.losses.Loss and define `count`."
            )
        outputs = keras.tree.map_structure(wide, outputs)
        dtype = keras.tree.flatten(outputs)[0].dtype
        faults = tf.zeros([], dtype)
        if self._name == "sparse_categorical_crossentropy":
            y = _flat_classes(y, outputs)
            valid = are_classes(y, outputs.shape[-1])
            faults = tf.where(valid | self._is_ignored(y), faults, float("nan"))
            y = tf.where(valid, y, tf.constant(0 if self._ignored is None else self._ignored, y.dtype))
        y = keras.tree.map_structure(lambda part: tf.cast(part, dtype), y)
        of_keras = isinstance(self.loss, keras.losses.Loss)
        values = wide(self.loss.call(y, outputs) if of_keras else self.loss(*_of_one_rank(y, outputs)))
        if len(values.shape) == 0:
            raise ValueError(
                f"Invalid value for `loss`: expected one that returns a number for each example, received "
                f"{self.described()}, which returns one for a whole batch. Let it reduce all axes but the first."
            )
        return values + faults

    def _is_ignored(self, y: tf.Tensor) -> tf.Tensor:
        return tf.zeros_like(y, tf.bool) if self._ignored is None else as_classes(y) == self._ignored

    def count(self, y: Any, output_shape: Any) -> int | tf.Tensor:
        y = keras.tree.map_structure(tf.convert_to_tensor, y)
        if self._ignored is not None:
            kept = tf.cast(~self._is_ignored(y), tf.float32)
            return tf.reduce_sum(tf.reshape(kept, [tf.shape(kept)[0], -1]), axis=1)
        labels = keras.tree.map_structure(lambda part: tf.TensorSpec([None, *part.shape[1:]], part.dtype), y)
        outputs = keras.tree.map_shape_structure(lambda shape: tf.TensorSpec([None, *shape[1:]]), output_shape)
        values = tf.function(self._values, autograph=False).get_concrete_function(labels, outputs)
        return positions(tuple(values.output_shapes)[1:], y)

    def check_labels(self, y: Any, output_shape: Any) -> None:
        super().check_labels(y, output_shape)
        if self._name and not keras.tree.is_nested(y):
            y, shape = tf.convert_to_tensor(y), tuple(output_shape)
            if self._name == "sparse_categorical_crossentropy":
                self._check_shape(y, (*shape[:-1], 1))
                check_classes(y, shape[-1], self._ignored)
            elif self._name not in _UNALIKE:
                self._check_shape(y, shape)
        self.count(y, output_shape)  # says what else does not fit

    def _check_shape(self, y: tf.Tensor, expected: tuple) -> None:
        """Keras would broadcast shapes that differ by more than a last axis of 1."""
        received = (*y.shape, 1) if len(y.shape) == len(expected) - 1 and expected[-1] == 1 else tuple(y.shape)
        if len(received) == len(expected) + 1 and received[-1] == 1:
            received = received[:-1]
        if not tf.TensorShape([None, *expected[1:]]).is_compatible_with(received):
            raise ValueError(
                f"Invalid value for `y`: {self.described()} expected labels of shape (batch, "
                f"{', '.join(map(str, expected[1:]))}), received shape {tuple(y.shape)}."
            )

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        if not self.classifies:
            return super().mistakes(y, outputs)
        if self._name in _OF_BITS:
            y, outputs = _of_one_rank(y, outputs)
            threshold = 0.0 if getattr(self.loss, "from_logits", False) else 0.5
            wrong = (wide(outputs) > threshold) != (wide(y) > 0.5)
            kept = tf.ones_like(wrong)
        else:
            sparse = self._name == "sparse_categorical_crossentropy"
            classes = tf.cast(_flat_classes(y, outputs), tf.int64) if sparse else tf.argmax(y, axis=-1)
            wrong = tf.argmax(outputs, axis=-1) != classes
            kept = ~self._is_ignored(classes)
        wrong, kept = (tf.reshape(tf.cast(t, tf.float32), [tf.shape(t)[0], -1]) for t in (wrong & kept, kept))
        return tf.math.divide_no_nan(tf.reduce_sum(wrong, axis=1), tf.reduce_sum(kept, axis=1))

    def described(self) -> str:
        return f"Keras's {self._name}" if self._name else getattr(self.loss, "__name__", type(self.loss).__name__)

    def get_config(self) -> dict:
        """The loss as Keras writes it, without the name, which depends on what else the process has made."""
        if self._name and not isinstance(self.loss, keras.losses.Loss):
            return {"loss": self._name}
        config = keras.losses.serialize(self.loss)
        if isinstance(self.loss, keras.losses.Loss):
            taken = inspect.signature(type(self.loss)).parameters
            given = keras_internals.loss_arguments(self.loss)
            config["config"].update({name: value for name, value in given.items() if name in taken})
            config["config"].pop("name", None)
        return {"loss": config}


def _flat_classes(y: Any, outputs: tf.Tensor) -> tf.Tensor:
    """Class numbers without a last axis of 1."""
    y = as_classes(y)
    return tf.squeeze(y, -1) if len(y.shape) == len(outputs.shape) else y


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
