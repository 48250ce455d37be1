r"""Canonical losses: the loss carries the output activation, so the error at the output is `predict − target`.

A network's output is its logits $a$. Each loss here is the one whose derivative with respect to them is the plain error

$$ \frac{\partial \ell}{\partial a} = \text{predict}(a) - \text{target}(y), $$

which is the quantity that feedback alignment, direct feedback alignment and target propagation send backwards:

| loss | predict | ℓ of one example |
|---|---|---|
| `SoftmaxCrossEntropy` | softmax | $-\sum_i y_i \log \text{softmax}(a)_i$ |
| `SigmoidCrossEntropy` | sigmoid | $-\sum_i y_i \log σ(a_i) + (1-y_i) \log (1-σ(a_i))$ |
| `MeanSquaredError` | identity | $\frac{1}{2} \sum_i (a_i - y_i)^2$ |

A loss returns one number an example, summed over the output's units and never averaged: whoever trains divides by the
number of examples in the **global** batch, once. All arithmetic is in float32 at least, also under mixed precision.
"""

from typing import Any

import keras
import tensorflow as tf

from tfbio.serialization import register, resolve

__all__ = ["Loss", "MeanSquaredError", "SigmoidCrossEntropy", "SoftmaxCrossEntropy", "get"]


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """`tensor` in float32, or as it is if it is a wider float."""
    tensor = tf.convert_to_tensor(tensor)
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


def _sum_units(values: tf.Tensor) -> tf.Tensor:
    """Sums all axes but the first."""
    return tf.reduce_sum(values, axis=list(range(1, len(values.shape))))


class Loss:
    """A loss of one example and the output activation that belongs to it."""

    #: Output activations that this loss already contains: a model must not end in one of them.
    contains: tuple[str, ...] = ()
    #: True if labels are classes, so that an error rate makes sense.
    classifies = False

    def per_example(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The loss of each example.

        Args:
            y: labels, shape `(batch, …)`.
            outputs: the network's logits, shape `(batch, …, units)`, any float dtype.

        Returns:
            shape `(batch,)`, summed over units, float32 or float64.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `per_example`.")

    def predict(self, outputs: tf.Tensor) -> tf.Tensor:
        """The output activation at the logits: same shape, float32 or float64."""
        return _wide(outputs)

    def target(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """What `predict` would return at the loss's minimum: shape and dtype of `predict(outputs)`."""
        outputs = _wide(outputs)
        return tf.reshape(tf.cast(y, outputs.dtype), tf.shape(outputs))

    def error(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The derivative of each example's loss at the logits, `predict − target`: the shape of `outputs`."""
        return self.predict(outputs) - self.target(y, outputs)

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The share of wrong decisions of each example in [0, 1], shape `(batch,)`; of losses that classify only."""
        raise NotImplementedError(f"{type(self).__name__} does not classify, so it has no mistakes to count.")

    def check_labels(self, y: Any, output_shape: tuple) -> None:
        """Refuses labels that do not fit the output. Reads values, so it is called on one batch, before training.

        Args:
            y: labels of one batch, an eager tensor or array.
            output_shape: the model's output shape, batch axis included.

        Raises:
            ValueError: wrong shape or range.
        """
        shape = tuple(y.shape)
        if shape[1:] != tuple(output_shape[1:]):
            raise ValueError(
                f"Invalid value for `y`: {type(self).__name__} expected labels of shape (batch, "
                f"{', '.join(map(str, output_shape[1:]))}), one number for each output, received shape {shape}."
            )

    def get_config(self) -> dict:
        """No hyperparameters."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Loss":
        """The inverse of `get_config`."""
        return cls(**config)


@register
class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of one class out of several; labels are class numbers `(batch,)` or distributions `(batch, C)`."""

    contains = ("softmax", "log_softmax", "sigmoid")
    classifies = True

    def per_example(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        outputs = _wide(outputs)
        losses = tf.nn.softmax_cross_entropy_with_logits(self.target(y, outputs), outputs)
        return _sum_units(losses)

    def predict(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(_wide(outputs))

    def target(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Distributions as they are, class numbers as one-hot rows.

        Raises:
            ValueError: `y` has neither shape.
        """
        outputs = _wide(outputs)
        classes = outputs.shape[-1]
        if len(y.shape) == len(outputs.shape):
            if y.shape[-1] not in (None, classes):
                raise _neither_classes_nor_rows(y, classes)
            return tf.cast(y, outputs.dtype)
        return tf.one_hot(tf.cast(y, tf.int32), classes, dtype=outputs.dtype)

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        labels = tf.argmax(self.target(y, outputs), axis=-1)
        wrong = tf.cast(tf.argmax(outputs, axis=-1) != labels, tf.float32)
        return tf.reduce_mean(tf.reshape(wrong, [tf.shape(wrong)[0], -1]), axis=1)

    def check_labels(self, y: Any, output_shape: tuple) -> None:
        y = tf.convert_to_tensor(y)
        classes = output_shape[-1]
        if len(y.shape) == len(output_shape) and y.shape[-1] == classes:
            return super().check_labels(y, output_shape)
        if len(y.shape) != len(output_shape) - 1:
            raise _neither_classes_nor_rows(y, classes)
        if tf.size(y) and (tf.reduce_min(y) < 0 or tf.reduce_max(y) >= classes):
            raise ValueError(
                f"Invalid value for `y`: expected class numbers from 0 to {classes - 1}, for the model has {classes} "
                f"outputs, received labels from {int(tf.reduce_min(y))} to {int(tf.reduce_max(y))}."
            )


def _neither_classes_nor_rows(y: tf.Tensor, classes: int) -> ValueError:
    return ValueError(
        f"Invalid value for `y`: expected class numbers of shape (batch,) or one-hot rows of shape (batch, {classes}), "
        f"received shape {tuple(y.shape)}. A column of class numbers is y[:, 0]."
    )


@register
class SigmoidCrossEntropy(Loss):
    """Cross-entropy of independent yes-or-no outputs; labels are 0/1 (or probabilities), of the output's shape."""

    contains = ("sigmoid", "hard_sigmoid", "softmax")
    classifies = True

    def per_example(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        outputs = _wide(outputs)
        return _sum_units(tf.nn.sigmoid_cross_entropy_with_logits(self.target(y, outputs), outputs))

    def predict(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(_wide(outputs))

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        outputs = _wide(outputs)
        wrong = tf.cast((outputs > 0) != (self.target(y, outputs) > 0.5), tf.float32)
        return tf.reduce_mean(tf.reshape(wrong, [tf.shape(wrong)[0], -1]), axis=1)

    def check_labels(self, y: Any, output_shape: tuple) -> None:
        y = tf.convert_to_tensor(y)
        if output_shape[-1] != 1 or len(y.shape) != len(output_shape) - 1:  # one yes-or-no output takes shape (batch,)
            super().check_labels(y, output_shape)
        if tf.size(y) and (tf.reduce_min(y) < 0 or tf.reduce_max(y) > 1):
            raise ValueError(
                f"Invalid value for `y`: expected probabilities from 0 to 1, received values from "
                f"{float(tf.reduce_min(y))} to {float(tf.reduce_max(y))}."
            )


@register
class MeanSquaredError(Loss):
    """Half the squared distance to the label, summed over units: autoencoders and regression."""

    def per_example(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return _sum_units(0.5 * tf.square(self.error(y, outputs)))


_NAMES = {
    "softmax_cross_entropy": SoftmaxCrossEntropy,
    "sigmoid_cross_entropy": SigmoidCrossEntropy,
    "mean_squared_error": MeanSquaredError,
}


def get(identifier: Any) -> Loss:
    """The loss that `identifier` means: an object, a class, a name or a config.

    Raises:
        ValueError: unknown; Keras's own losses are not canonical (they hide the output activation) and are refused.
    """
    if isinstance(identifier, keras.losses.Loss):
        raise ValueError(
            "Invalid value for `loss`: expected a canonical loss of tfbio.losses, whose error at the output is predict "
            f"− target, received keras.losses.{type(identifier).__name__}. Pass one of {', '.join(sorted(_NAMES))}."
        )
    return resolve(identifier, Loss, _NAMES, "loss")
