"""Feedback through time: exact with the cells' own kernels, and NumPy's unrolled loop with others."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio import with_feedback

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(6, 5, 4))
LAYERS = {
    "LSTM": lambda: L.LSTM(7),
    "LSTM without bias": lambda: L.LSTM(7, use_bias=False),
    "LSTM of sequences": lambda: L.LSTM(7, return_sequences=True, go_backwards=True),
    "GRU": lambda: L.GRU(7),
    "GRU without bias": lambda: L.GRU(7, use_bias=False, unroll=True),
    "SimpleRNN": lambda: L.SimpleRNN(7),
    "SimpleRNN without bias": lambda: L.SimpleRNN(7, use_bias=False),
    "both directions": lambda: L.Bidirectional(L.GRU(3)),
    "cells": lambda: L.RNN([L.LSTMCell(5), L.GRUCell(4), L.SimpleRNNCell(3)]),
    "the other implementation": lambda: L.RNN(other(L.GRUCell(4))),
}


def other(cell):
    cell.implementation = 1
    return cell


def model(layer):
    return keras.Sequential([keras.Input((5, 4)), L.Dense(6, "tanh"), layer, L.Flatten(), L.Dense(3)])


def gradients(network, trained, x, compiled=False):
    @tf.function(jit_compile=compiled)
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(network(x, training=True)))
        return tape.gradient(loss, trained.trainable_variables)

    return [gradient.numpy() for gradient in step(tf.constant(x))]


@pytest.mark.parametrize("name", LAYERS)
def test_with_the_kernels_as_feedback_it_is_backpropagation_through_time(name, float64):
    plain = model(LAYERS[name]())
    exact = gradients(plain, plain, X)
    for a, e in zip(gradients(with_feedback(plain, "symmetric"), plain, X), exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-12 * np.abs(e).max())
    network = with_feedback(plain, tfbio.feedback.Random(seed=1))
    assert not np.allclose(gradients(network, plain, X)[0], exact[0], rtol=0.1)
    np.testing.assert_array_equal(network(X), plain(X))
    assert not any("call" in vars(layer) for layer in plain._flatten_layers())


@pytest.mark.parametrize("mask", [False, True])
def test_it_is_the_unrolled_loop(mask, float64):
    """$\\delta_{t-1} = \\delta_t \\odot s'(a_t) B_R^\\top$, and $B_K$ to the layer below."""
    layers = [keras.Input((5, 4)), *[L.Masking(9.0)] * mask, L.SimpleRNN(7), L.Dense(3, use_bias=False)]
    trained = keras.Sequential(layers)
    rule = tfbio.rules.FeedbackAlignment(seed=1)
    rule.build(trained, "mean_squared_error")
    (k, _), (r, b) = ([np.asarray(each) for each in pair] for pair in rule.feedback_layers[0].pairs)
    v, x, y = np.asarray(trained.layers[-1].kernel), X.copy(), RANDOM.normal(size=(6, 3))
    present = np.ones((6, 5), bool)
    if mask:
        present[2, 3:] = present[4, 1:] = False
        x[~present] = 9.0
    h = [np.zeros((6, 7))]
    for t in range(5):
        h.append(np.where(present[:, t, None], np.tanh(x[:, t] @ k + h[-1] @ r), h[-1]))
    d, dk, dr, db = (h[-1] @ v - y) / 6 @ v.T, 0, 0, 0
    for t in reversed(range(5)):
        a = np.where(present[:, t, None], d * (1 - h[t + 1] ** 2), 0)
        dk, dr, db = dk + x[:, t].T @ a, dr + h[t].T @ a, db + a.sum(0)
        d = np.where(present[:, t, None], a @ b.T, d)
    for ours, expected in zip(rule.compute(x, y).forward, (dk, dr, db), strict=False):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-9)


def test_with_xla_it_is_the_same(float64):
    plain = model(L.LSTM(7))
    network = with_feedback(plain, tfbio.feedback.Random(seed=1))
    for a, b in zip(gradients(network, plain, X), gradients(network, plain, X, True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    plain, x = model(L.GRU(7)), X.astype("float32")
    epsilon = 2.0**-8 if policy == "mixed_bfloat16" else 2.0**-11
    for a, e in zip(gradients(with_feedback(plain, "symmetric"), plain, x), gradients(plain, plain, x), strict=True):
        assert a.dtype == "float32" and np.linalg.norm(a - e) <= 20 * epsilon * np.linalg.norm(e)


def test_kolen_pollack_takes_cells_and_weight_mirrors_do_not():
    trained = model(L.LSTM(7))
    trainer = tfbio.Trainer(trained, "kp", keras.optimizers.SGD(0.1, weight_decay=0.5), jit_compile=False)
    pairs = [pair for layer in trainer.rule.feedback_layers for pair in layer.pairs]
    before = [np.linalg.norm(np.asarray(w) - np.asarray(b)) for w, b in pairs]
    data = tfbio.data.from_arrays(X.astype("float32"), np.arange(6) % 3, 6)
    trainer.fit(data, epochs=2, verbose=False)
    after = [np.linalg.norm(np.asarray(w) - np.asarray(b)) for w, b in pairs]
    np.testing.assert_allclose(after, np.multiply(before, 0.95**2), rtol=1e-4)
    with pytest.raises(ValueError, match="driven with noise.*'lstm_cell'"):
        tfbio.rules.WeightMirror().build(model(L.LSTM(7)), "softmax_cross_entropy")
