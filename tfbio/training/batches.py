r"""Batches: what a feed yields becomes what a rule computes from, here and nowhere else.

A feed gives a replica the `Examples` of its part of a global batch, with the data's own sample weights $v$. In an
update, each example $b$ has the factor

$$ w_b = \frac{v_b}{\sum_{b'} v_{b'} c_{b'}} $$

with the sum over the **global** batch and $c_b$ the number of terms in the example's loss (`tfbio.losses.base`): it is
a mean over pixels or tokens, or over examples where a loss has one term each. What belongs to no example has the factor
$\sum_{\text{here}} v_b / \sum v_b$, so that replicas, and the microbatches of a replica, sum to one.

Both sums are `Totals`. A set held in memory knows its batches' sizes; otherwise they cost one small collective.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio.losses import Loss, output_structure
from tfbio.rules.base import Batch, output_shape
from tfbio.training.preprocessing import Preprocessing
from tfbio.training.replicas import sum_over_replicas

__all__ = ["Examples", "Totals", "at_least_one", "make_batch", "make_examples", "make_totals", "shape_of_outputs"]


class Examples(NamedTuple):
    """A replica's part of a global batch, as a feed yields it.

    Attributes:
        x: inputs, nested tensors `(rows, …)`.
        y: labels, nested tensors `(rows, …)`.
        sample_weight: `(rows,)`, float32.
        total: the sum of `sample_weight` over the global batch, where the feed knows it; else None.
    """

    x: Any
    y: Any
    sample_weight: tf.Tensor
    total: tf.Tensor | None = None


class Totals(NamedTuple):
    """Sums over a global batch.

    Attributes:
        sample_weight: of the sample weights, a scalar.
        terms: of the loss's terms, `Loss.totals`.
    """

    sample_weight: tf.Tensor
    terms: tf.Tensor


def make_examples(element: tuple) -> Examples:
    """Examples from an element `(x, y)` or `(x, y, sample_weight)` of a data set.

    Raises:
        ValueError: sample weights that are not one number for each example.
    """
    x, y, *weights = element
    if weights and weights[0] is not None:
        if not tf.is_tensor(weights[0]) or weights[0].shape.rank != 1:
            raise ValueError(
                "Invalid value for `sample_weight`: expected a tensor of shape (batch,), one number for each example, "
                f"received {keras.tree.map_structure(lambda part: tuple(part.shape), weights[0])}."
            )
        return Examples(x, y, tf.cast(weights[0], tf.float32))
    return Examples(x, y, tf.ones([tf.shape(tf.nest.flatten(x)[0])[0]]))


def at_least_one(examples: Examples) -> Examples:
    """The examples; in place of none, one of zeros whose weight is 0.

    What takes moments of the examples at hand, as batch normalisation does, makes NaN of none.
    """
    if examples.sample_weight.shape[0]:
        return examples
    lacking = tf.cast(tf.shape(examples.sample_weight)[:1] == 0, tf.int32)

    def filled(tensor: tf.Tensor) -> tf.Tensor:
        rows = tf.zeros(tf.concat([lacking, tf.shape(tensor)[1:]], 0), tensor.dtype)
        return tf.ensure_shape(tf.concat([tensor, rows], 0), tf.TensorShape([None]).concatenate(tensor.shape[1:]))

    return Examples(*tf.nest.map_structure(filled, examples[:3]), examples.total)


def shape_of_outputs(model: keras.Model, preprocessing: Preprocessing, x: Any) -> Any:
    """The shape of what the model returns, nested as that is, the batch axis included.

    Args:
        model: functional ones know it; others are traced.
        preprocessing: what comes before the model.
        x: inputs of a batch, not preprocessed.
    """
    if output_structure(model) is None:
        x = preprocessing(tf.nest.map_structure(lambda part: part[:1], x), training=False)
    return output_shape(model, x)


def make_totals(examples: Examples, loss: Loss, shape: Any) -> Totals:
    """The sums over the global batch of which these examples are a replica's part. Called on a replica.

    Args:
        examples: the replica's.
        loss: a built rule's.
        shape: of the model's outputs.
    """
    count = loss.count(examples.y, shape)
    here = tf.reduce_sum(examples.sample_weight)
    if not tf.is_tensor(count):
        total = sum_over_replicas(here) if examples.total is None else examples.total
        return Totals(total, total * tf.constant(count, total.dtype))
    terms = loss.totals(examples.y, shape, examples.sample_weight)
    sums = sum_over_replicas(tf.concat([[here], tf.reshape(terms, [-1])], axis=0))
    return Totals(sums[0], tf.reshape(sums[1:], tf.shape(terms)))


def make_batch(
    examples: Examples,
    totals: Totals,
    loss: Loss,
    scale: tf.Tensor | float = 1.0,
    microbatch: int | tf.Tensor = 0,
    microbatches: int = 1,
) -> Batch:
    """What a rule computes from.

    Args:
        examples: a replica's part of the global batch, or a microbatch of it.
        totals: of the global batch.
        loss: a built rule's.
        scale: the loss scale, a factor on everything.
        microbatch, microbatches: as in `Batch`.
    """
    weights = loss.factors(examples.sample_weight, totals.terms) * scale
    share = tf.math.divide_no_nan(tf.reduce_sum(examples.sample_weight), totals.sample_weight) * scale
    return Batch(examples.x, examples.y, weights, share, microbatch, microbatches)
