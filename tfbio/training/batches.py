r"""Batches: what a feed yields becomes what a rule computes from, here and nowhere else.

A feed gives a replica the `Examples` of its part of a global batch, with the data's own sample weights $s$. In an
update, each example $b$ has the factor

$$ w_b = \frac{s_b}{\sum_{b'} s_{b'} n_{b'}} $$

with the sum over the **global** batch and $n_b$ the number of terms in the example's loss (`Loss.count`): a mean over
pixels or tokens, or over examples where a loss has one term each. What belongs to no example has the factor
$\sum_{\text{here}} s_b / \sum s_b$, so that replicas, and the microbatches of a replica, sum to one.

Both sums are `Totals`. A set held in memory knows its batches' sizes; else they cost one collective of two numbers.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio.losses import Loss
from tfbio.rules.base import Batch
from tfbio.training.replicas import sum_over_replicas

__all__ = ["Examples", "Totals", "at_least_one", "count_terms", "make_batch", "make_examples", "make_totals"]


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
    """Sums over a global batch, float32 scalars.

    Attributes:
        sample_weight: of the sample weights.
        terms: of the sample weights, each as often as its example's loss has terms.
    """

    sample_weight: tf.Tensor
    terms: tf.Tensor


def make_examples(element: tuple) -> Examples:
    """Examples from an element `(x, y)` or `(x, y, sample_weight)` of a data set."""
    x, y, *weights = element
    if weights and weights[0] is not None:
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


def count_terms(loss: Loss, y: Any, model: keras.Model) -> int | tf.Tensor:
    """How many terms the loss of each example has: one int for all, or `(rows,)`."""
    if not hasattr(loss, "count"):
        return 1
    return loss.count(y, getattr(model, "output_shape", None))


def make_totals(examples: Examples, loss: Loss, model: keras.Model) -> Totals:
    """The sums over the global batch of which these examples are a replica's part. Called on a replica."""
    count = count_terms(loss, examples.y, model)
    here = tf.reduce_sum(examples.sample_weight)
    if isinstance(count, int):
        total = sum_over_replicas(here) if examples.total is None else examples.total
        return Totals(total, total * count)
    terms = tf.reduce_sum(examples.sample_weight * tf.cast(count, tf.float32))
    return Totals(*tf.unstack(sum_over_replicas(tf.stack([here, terms]))))


def make_batch(
    examples: Examples,
    totals: Totals,
    scale: tf.Tensor | float = 1.0,
    microbatch: int | tf.Tensor = 0,
    microbatches: int = 1,
) -> Batch:
    """What a rule computes from.

    Args:
        examples: a replica's part of the global batch, or a microbatch of it.
        totals: of the global batch.
        scale: the loss scale, a factor on everything.
        microbatch, microbatches: as in `Batch`.
    """
    weights = examples.sample_weight * tf.math.divide_no_nan(1.0, totals.terms) * scale
    share = tf.math.divide_no_nan(tf.reduce_sum(examples.sample_weight), totals.sample_weight) * scale
    return Batch(examples.x, examples.y, weights, share, microbatch, microbatches)
