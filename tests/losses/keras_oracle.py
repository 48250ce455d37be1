"""What Keras's own `compile` and `train_on_batch` make of a loss."""

import keras
import numpy as np
from keras import layers as L

import tfbio


def gradients(model, loss, x, y, sample_weight=None, loss_weights=None):
    """The gradients that Keras hands to its optimizer."""
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(1.0), loss, loss_weights=loss_weights, run_eagerly=True)
    model.train_on_batch(x, y, sample_weight)
    after = model.get_weights()
    model.set_weights(before)
    return [b - a for b, a in zip(before, after, strict=True)]


def assert_same_gradients(model, loss, x, y, sample_weight=None, loss_weights=None, given=None, keras_weight=None):
    """Backpropagation with a loss equals Keras's own step, also where examples differ in weight.

    `given` is the loss as we take it, `keras_weight` the sample weights as Keras takes them, where they differ.
    """
    weight = sample_weight if keras_weight is None else keras_weight
    expected = gradients(model, loss, x, y, weight, loss_weights)
    rule = tfbio.rules.Backpropagation()
    rule.build(model, loss if given is None else given)
    weights = factors(rule, x, y, np.ones(len(x)) if sample_weight is None else sample_weight)
    actual = rule.compute(x, y, weights).forward
    assert any(np.abs(gradient).max() > 0 for gradient in expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def factors(rule, x, y, sample_weight, totals=None):
    """`Batch.weights`, of a global batch with these totals; None if this is the global batch."""
    if totals is None:
        totals = rule.loss.totals(y, tfbio.rules.base.output_shape(rule.model, x), sample_weight)
    return rule.loss.factors(sample_weight, totals)


def dense(units=4, activation=None):
    """Five inputs to some outputs."""
    return keras.Sequential([keras.Input((5,)), L.Dense(6, "tanh"), L.Dense(units, activation)])


def per_pixel(units=3, activation=None):
    """Images of any size to an output at each pixel."""
    return keras.Sequential(
        [
            keras.Input((None, None, 2)),
            L.Conv2D(4, 3, padding="same", activation="tanh"),
            L.Conv2D(units, 1, activation=activation),
        ]
    )
