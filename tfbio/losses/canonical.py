r"""Canonical losses: the loss carries the output activation, so the error at the output is `predict − target`.

A network's output is its logits $a$. Each loss here is the one whose derivative with respect to them is the plain error

$$ \frac{\partial \ell}{\partial a} = \text{predict}(a) - \text{target}(y), $$

which is the quantity that feedback alignment, direct feedback alignment and target propagation send backwards:

| loss | predict | ℓ of one term |
|---|---|---|
| `SoftmaxCrossEntropy` | softmax | $-\sum_i t_i \log \text{softmax}(a)_i$ |
| `SigmoidCrossEntropy` | sigmoid | $-\sum_i t_i \log σ(a_i) + (1-t_i) \log (1-σ(a_i))$ |
| `MeanSquaredError` | identity | $\frac{1}{2} \sum_i (a_i - t_i)^2$ |

The target $t$ is the label $y$, smoothed if asked for. A term is a position (a pixel, a token), summed over its units.
All arithmetic is in float32 at least, also under mixed precision.

A label that is out of range (a class number that the model has no output for, a probability below 0 or above 1) makes
the loss of its example NaN, so that training stops. The error stays finite, so that an example of weight 0 may have any
label.
"""

from typing import Any

import tensorflow as tf

from tfbio.losses.base import Loss, check_numbers, wide
from tfbio.serialization import register

__all__ = ["CanonicalLoss", "MeanSquaredError", "SigmoidCrossEntropy", "SoftmaxCrossEntropy"]


class CanonicalLoss(Loss):
    """A loss with the output activation that belongs to it: subclasses define `per_example`, `predict`, `target`."""

    canonical = True
    takes_all_outputs = False

    def target(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """What `predict` would return at the loss's minimum: shape and dtype of `predict(outputs)`."""
        outputs = wide(outputs)
        return tf.reshape(tf.cast(y, outputs.dtype), tf.shape(outputs))

    def error(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The derivative of each example's loss at the logits, `predict − target`: the shape of `outputs`."""
        return self.predict(outputs) - self.target(y, outputs)

    def check_labels(self, y: Any, output_shape: tuple) -> None:
        check_numbers(y)
        shape = tuple(y.shape)
        if output_shape[-1] == 1 and len(shape) == len(output_shape) - 1:
            shape = (*shape, 1)  # one unit takes labels (batch,)
        if not tf.TensorShape([None, *output_shape[1:]]).is_compatible_with(shape):
            raise ValueError(
                f"Invalid value for `y`: {type(self).__name__} expected labels of shape (batch, "
                f"{', '.join(map(str, output_shape[1:]))}), one number for each output, received shape "
                f"{tuple(y.shape)}."
            )


class _CrossEntropy(CanonicalLoss):
    """What cross-entropies share: labels that are probabilities, and their smoothing.

    Args:
        label_smoothing: $ε$ in [0, 1].
    """

    classifies = True

    def __init__(self, label_smoothing: float = 0.0):
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f"Invalid value for `label_smoothing`: expected a number from 0 to 1, received {label_smoothing}."
            )
        self.label_smoothing = label_smoothing

    def probabilities(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Labels as probabilities, not smoothed: shape and dtype of `predict(outputs)`."""
        return super().target(y, outputs)

    def in_range(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Whether each example's labels, or each position's, are in range: bool, `(batch, …)`."""
        probabilities = self.probabilities(y, outputs)
        return (probabilities >= 0) & (probabilities <= 1)

    def target(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The probabilities, a part $ε$ of which is spread evenly over a decision's classes."""
        target = self.probabilities(y, outputs)
        if self.label_smoothing:
            target += self.label_smoothing * (1.0 / self.classes(outputs) - target)
        return target

    def classes(self, outputs: tf.Tensor) -> int:
        """Among how many classes each decision is made."""
        raise NotImplementedError

    def cross_entropy(self, target: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The loss of each decision: `(batch, …)`."""
        raise NotImplementedError

    def per_example(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        outputs = wide(outputs)
        losses = _sum_units(self.cross_entropy(self.target(y, outputs), outputs))
        valid = self.in_range(y, outputs)
        # A constant: the gradient stays finite, so that nothing is left of an example of weight 0.
        valid = tf.reduce_all(valid, axis=range(1, len(valid.shape)))
        return losses + tf.where(valid, tf.zeros([], losses.dtype), tf.constant(float("nan"), losses.dtype))

    def get_config(self) -> dict:
        return {"label_smoothing": self.label_smoothing}


@register
class SoftmaxCrossEntropy(_CrossEntropy):
    """Cross-entropy of one class out of several; labels are class numbers `(batch,)` or distributions `(batch, C)`.

    Args:
        label_smoothing: $ε$ in [0, 1]: the target is $(1 - ε) y + ε / C$.
    """

    contains = ("softmax", "log_softmax", "sigmoid")

    def cross_entropy(self, target: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax_cross_entropy_with_logits(target, outputs)

    def classes(self, outputs: tf.Tensor) -> int:
        return outputs.shape[-1]

    def predict(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(wide(outputs))

    def probabilities(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Distributions as they are, class numbers as one-hot rows.

        Raises:
            ValueError: `y` has neither shape.
        """
        y, outputs = tf.convert_to_tensor(y), wide(outputs)
        classes = outputs.shape[-1]
        if len(y.shape) == len(outputs.shape):
            if y.shape[-1] not in (None, classes):
                raise _neither_classes_nor_rows(y, classes)
            return tf.cast(y, outputs.dtype)
        return tf.one_hot(tf.cast(y, tf.int32), classes, dtype=outputs.dtype)

    def in_range(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        y = tf.convert_to_tensor(y)
        if len(y.shape) < len(outputs.shape):
            return are_classes(y, outputs.shape[-1])
        y = self.probabilities(y, outputs)
        return tf.reduce_all(y >= 0, -1) & (tf.abs(tf.reduce_sum(y, -1) - 1.0) < _TOLERANCE)

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        y = tf.convert_to_tensor(y)
        labels = tf.argmax(y, axis=-1) if len(y.shape) == len(outputs.shape) else tf.cast(y, tf.int64)
        return _share(tf.argmax(outputs, axis=-1) != labels)

    def check_labels(self, y: Any, output_shape: tuple) -> None:
        check_numbers(y)
        y = tf.convert_to_tensor(y)
        classes = output_shape[-1]
        if len(y.shape) == len(output_shape) and y.shape[-1] == classes:
            super().check_labels(y, output_shape)
            rows = tf.cast(y, tf.float32)
            sums = tf.reduce_sum(rows, -1)
            if tf.size(y) and (tf.reduce_min(rows) < 0 or tf.reduce_any(tf.abs(sums - 1.0) > _TOLERANCE)):
                raise ValueError(
                    f"Invalid value for `y`: expected rows of probabilities that sum to 1, received values from "
                    f"{float(tf.reduce_min(rows))}, and sums from {float(tf.reduce_min(sums))} to "
                    f"{float(tf.reduce_max(sums))}. Several classes at once are for SigmoidCrossEntropy."
                )
            return
        if len(y.shape) != len(output_shape) - 1:
            raise _neither_classes_nor_rows(y, classes)
        check_classes(y, classes)


#: By how much a distribution's sum may differ from 1: float16 rounds.
_TOLERANCE = 0.01


def as_classes(y: Any) -> tf.Tensor:
    """Class numbers of any type in one that holds whatever number they are compared with; floats as they are."""
    y = tf.convert_to_tensor(y)
    return y if y.dtype.is_floating else tf.cast(y, tf.int64)


def are_classes(y: tf.Tensor, classes: int) -> tf.Tensor:
    """Whether labels are class numbers from 0 to `classes` − 1: bool, in the shape of `y`."""
    y = as_classes(y)
    return (y >= 0) & (y <= classes - 1)


def check_classes(y: tf.Tensor, classes: int, ignored: int | None = None) -> None:
    """Refuses class numbers that are out of range.

    Args:
        y: eager.
        classes: how many there are.
        ignored: a number that is allowed as well.

    Raises:
        ValueError: says the range.
    """
    y = tf.reshape(as_classes(y), [-1])
    y = y if ignored is None else y[y != ignored]
    if tf.size(y) and (tf.reduce_min(y) < 0 or tf.reduce_max(y) >= classes):
        raise ValueError(
            f"Invalid value for `y`: expected class numbers from 0 to {classes - 1}, because the model has {classes} "
            f"outputs, received labels from {int(tf.reduce_min(y))} to {int(tf.reduce_max(y))}."
        )


def _neither_classes_nor_rows(y: tf.Tensor, classes: int) -> ValueError:
    return ValueError(
        f"Invalid value for `y`: expected class numbers of shape (batch,) or one-hot rows of shape (batch, {classes}), "
        f"received shape {tuple(y.shape)}. A column of class numbers is y[:, 0]."
    )


@register
class SigmoidCrossEntropy(_CrossEntropy):
    """Cross-entropy of independent yes-or-no outputs; labels are 0/1 (or probabilities), of the output's shape.

    Args:
        label_smoothing: $ε$ in [0, 1]: the target is $(1 - ε) y + ε / 2$.
    """

    contains = ("sigmoid", "hard_sigmoid", "softmax")

    def cross_entropy(self, target: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return tf.nn.sigmoid_cross_entropy_with_logits(target, outputs)

    def classes(self, outputs: tf.Tensor) -> int:
        return 2

    def predict(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(wide(outputs))

    def mistakes(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        outputs = wide(outputs)
        return _share((outputs > 0) != (self.probabilities(y, outputs) > 0.5))

    def check_labels(self, y: Any, output_shape: tuple) -> None:
        super().check_labels(y, output_shape)
        y = tf.cast(y, tf.float32)
        if tf.size(y) and (tf.reduce_min(y) < 0 or tf.reduce_max(y) > 1):
            raise ValueError(
                f"Invalid value for `y`: expected probabilities from 0 to 1, received values from "
                f"{float(tf.reduce_min(y))} to {float(tf.reduce_max(y))}."
            )


@register
class MeanSquaredError(CanonicalLoss):
    """Half the squared distance to the label, summed over units: autoencoders and regression."""

    def per_example(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return _sum_units(0.5 * tf.square(self.error(y, outputs)))


def _sum_units(values: tf.Tensor) -> tf.Tensor:
    """Sums all axes but the first."""
    return tf.reduce_sum(values, axis=list(range(1, len(values.shape))))


def _share(wrong: tf.Tensor) -> tf.Tensor:
    """The share of each example's decisions that are wrong: `(batch,)`."""
    return tf.reduce_mean(tf.reshape(tf.cast(wrong, tf.float32), [tf.shape(wrong)[0], -1]), axis=1)
