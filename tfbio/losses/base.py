r"""What a loss is: a sum of terms for each example, and how many terms there are.

An update is linear in one factor for each example, so that the factors alone say what is averaged over. With sample
weights $v_b$, $c_b$ terms in example $b$, and $\ell_b$ the sum of its terms, the loss of a batch is the mean over terms

$$ \frac{\sum_b v_b \ell_b}{\sum_b v_b c_b} = \sum_b w_b \ell_b, \qquad w_b = \frac{v_b}{\sum_{b'} v_{b'} c_{b'}}, $$

whose denominator is that of the **global** batch, all replicas and microbatches. A model with several outputs $o$ has a
loss for each, with terms of its own and a factor $λ_o$ in the whole:

$$ \sum_o λ_o \frac{\sum_b v_b \ell_{bo}}{\sum_b v_b c_{bo}} = \sum_{b,o} w_{bo} \ell_{bo}. $$

So `per_example`, `count` and the factors have a column for each output then, and no column axis for a single loss.
`losses.get(identifier, model)` is the loss for a model: that of a built rule (`rule.loss`). Whoever trains computes the
factors in three lines:

    totals = loss.totals(y, output_shape, sample_weight)   # () or (columns,), of the labels that are here
    totals = all_reduce_sum(totals)                        # of the global batch
    weights = loss.factors(sample_weight, totals)          # (batch,) or (batch, columns): `Batch.weights`

Where `loss.count(y, output_shape)` is no tensor, the first two are the global sum of sample weights, times that.

Averages over an epoch are $\sum v \ell / \sum v c$ likewise, column by column: `Loss.columns` names them. The loss is
their sum, each times its factor in `Loss.loss_weights`. Figures beside it (`Loss.figures`) are averages over examples,
$\sum v f / \sum v$. An example of weight 0 counts nowhere, even where its loss is NaN: products with weights are
`tf.math.multiply_no_nan`.
"""

import math
from typing import Any

import keras
import tensorflow as tf

__all__ = ["Loss", "check_numbers", "positions", "times", "wide"]


def wide(tensor: tf.Tensor) -> tf.Tensor:
    """`tensor` in float32, or as it is if it is a wider float."""
    tensor = tf.convert_to_tensor(tensor)
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


def positions(axes: tuple, y: Any) -> int | tf.Tensor:
    """The number of positions of axes that follow the batch axis.

    Args:
        axes: their sizes, None where the model does not know them: the labels' then.
        y: labels `(batch, …)` with these axes.

    Returns:
        an integer if it is known, otherwise a float32 tensor `(batch,)`.
    """
    if None in axes:
        y = tf.convert_to_tensor(y)
        axes = [size or y.shape[axis] for axis, size in enumerate(axes, 1)]
    if None not in axes:
        return math.prod(axes)
    sizes = tf.shape(y)
    size = math.prod(sizes[axis] if size is None else size for axis, size in enumerate(axes, 1))
    return tf.fill(sizes[:1], tf.cast(size, tf.float32))


class Loss:
    """A loss of one example. Subclasses define `per_example`; labels and outputs may be nested, and come as they are.

    Subclass it for a loss of your own, and register it (`keras.saving.register_keras_serializable`) to load its
    configuration again. Define `count` if the terms are others than positions.
    """

    #: Whether the error is `predict − target`: what target propagation and random targets need.
    canonical = False
    #: Output activations that this loss already contains: a model must not end in one of them.
    contains: tuple[str, ...] = ()
    #: Whether it takes all outputs of a model, and their labels, at once. If not, a model with several has it for each.
    takes_all_outputs = True
    #: Whether outputs have to be probabilities: they are what the loss is told, and nothing follows the model.
    takes_probabilities = False
    #: True if labels are classes, so that an error rate makes sense.
    classifies = False
    #: Names of the columns of `per_example`. A single loss has one, and no axis for it.
    columns: tuple[str, ...] = ("loss",)
    #: The factor of each column in the whole loss.
    loss_weights: tuple[float, ...] = (1.0,)

    def each(self, outputs: Any) -> list[tuple["Loss", Any]]:
        """`(loss, output)` for each output that has a loss of its own; a single loss takes all outputs whole."""
        return [(self, outputs)]

    def per_example(self, y: Any, outputs: Any) -> tf.Tensor:
        """The sum of each example's terms.

        Args:
            y: labels, `(batch, …)`, or nested.
            outputs: what the model returns, `(batch, …, units)`, any float dtype, or nested.

        Returns:
            `(batch,)`, or `(batch, columns)` of several outputs, without their factors; float32 or float64.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `per_example`.")

    def count(self, y: Any, output_shape: Any) -> int | tuple[int, ...] | tf.Tensor:
        """The number of terms in each example: its positions, all axes between the batch and the last, by default.

        Args:
            y: labels of a batch.
            output_shape: the model's output shape, batch axis included, None where it is not known; nested as outputs.

        Returns:
            an integer if all examples have as many (several outputs: a tuple, one for each column). Otherwise a float32
            tensor `(batch,)` or `(batch, columns)` of numbers from 0.
        """
        if keras.tree.is_nested(y) or _is_nested_shape(output_shape):
            return 1
        return positions(tuple(output_shape)[1:-1], y)

    def totals(self, y: Any, output_shape: Any, sample_weight: tf.Tensor) -> tf.Tensor:
        r"""The terms of a batch, $\sum_b v_b c_b$: what is summed over replicas and microbatches.

        Args:
            y, output_shape: as for `count`.
            sample_weight: $v$, `(batch,)`.

        Returns:
            a scalar, or `(columns,)` of several outputs; float32, or float64 if the sample weights are.
        """
        sample_weight, count = wide(sample_weight), self.count(y, output_shape)
        if tf.is_tensor(count):
            return tf.reduce_sum(times(tf.cast(count, sample_weight.dtype), sample_weight), axis=0)
        return tf.reduce_sum(sample_weight) * tf.constant(count, sample_weight.dtype)

    def factors(self, sample_weight: tf.Tensor, totals: tf.Tensor) -> tf.Tensor:
        """The examples' factors $w$ in the loss, those of `Batch.weights`.

        Args:
            sample_weight: $v$, `(batch,)`.
            totals: those of the global batch.

        Returns:
            `(batch,)`, or `(batch, columns)` of several outputs, in the dtype of `totals`; 0 if the batch has no terms.
        """
        return tf.math.divide_no_nan(tf.cast(sample_weight, totals.dtype), totals)

    def weighted(self, values: Any, weights: tf.Tensor) -> Any:
        """Each example's values, of one output or nested as the outputs are, times its factors.

        Args:
            values: an error, `(batch, …)`, or nested.
            weights: as `factors` returns them.

        Returns:
            the structure, shapes and dtypes of `values`.
        """
        return keras.tree.map_structure(lambda value: times(value, weights), values)

    def predict(self, outputs: Any) -> Any:
        """What the model says: its outputs behind the activation that the loss contains, float32 or float64."""
        return keras.tree.map_structure(wide, outputs)

    def error(self, y: Any, outputs: Any) -> Any:
        """The derivative of each example's loss at the outputs: nested and shaped as they are, float32 or float64."""
        outputs = keras.tree.map_structure(wide, outputs)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(outputs)
            total = tf.reduce_sum(self.per_example(y, outputs))
        return tape.gradient(total, outputs, unconnected_gradients="zero")

    def mistakes(self, y: Any, outputs: Any) -> tf.Tensor:
        """The share of wrong decisions of each example in [0, 1], shape `(batch,)`; of losses that classify only."""
        raise NotImplementedError(f"{type(self).__name__} does not classify, so it has no mistakes to count.")

    @property
    def figure_names(self) -> tuple[str, ...]:
        """The names of `figures`, in their order."""
        return ("error",) if self.classifies else ()

    def figures(self, y: Any, outputs: Any) -> dict[str, tf.Tensor]:
        """What is averaged over examples beside the loss: `(batch,)` by name; `error` of losses that classify."""
        return {"error": self.mistakes(y, outputs)} if self.classifies else {}

    def check_labels(self, y: Any, output_shape: Any) -> None:
        """Refuses labels that do not fit the output. Reads values, so it is called on one batch, before training.

        Args:
            y: labels of one batch, eager tensors or arrays.
            output_shape: the model's output shape, batch axis included; nested as outputs.

        Raises:
            ValueError: wrong type, shape or range.
        """
        check_numbers(y)

    def described(self) -> str:
        """What it is, for errors."""
        return type(self).__name__

    def get_config(self) -> dict:
        """No hyperparameters."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Loss":
        """The inverse of `get_config`."""
        return cls(**config)


def times(value: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Values `(batch, …)` times factors `(batch,)`; 0 where the factor is."""
    weights = tf.reshape(tf.cast(weights, value.dtype), [-1, *[1] * (len(value.shape) - 1)])
    return tf.math.multiply_no_nan(value, weights)


def check_numbers(y: Any) -> None:
    """Refuses labels that are no numbers.

    Args:
        y: labels, eager tensors or arrays, or nested.

    Raises:
        ValueError: names the type.
    """
    for part in keras.tree.flatten(y):
        dtype = tf.convert_to_tensor(part).dtype
        if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
            raise ValueError(f"Invalid value for `y`: expected labels that are numbers, received {dtype.name}.")


def _is_nested_shape(shape: Any) -> bool:
    return isinstance(shape, dict) or any(isinstance(part, (tuple, list, dict)) for part in shape)
