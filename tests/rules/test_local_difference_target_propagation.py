"""What the local difference reconstruction loss implies; targets and gradients are in test_target_propagation.py."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio import rules
from tfbio.rules.base import Batch

RANDOM = np.random.default_rng(0)


def build(model, **options):
    rule = rules.LocalDifferenceTargetPropagation(**options)
    rule.build(model, "softmax_cross_entropy")
    return rule


def linear(*units):
    layers = [L.Dense(n, bias_initializer="normal") for n in units[1:]]
    return keras.Sequential([keras.Input((units[0],)), *layers])


def test_inverses_of_a_linear_net_learn_the_transposed_weights(float64, monkeypatch):
    model = linear(4, 6, 5, 3)
    rule = build(model, noise=0.7)
    white = np.linalg.qr(RANDOM.normal(size=(12, 12)))[0] * np.sqrt(12)  # exactly, not on average
    monkeypatch.setattr(rule, "_draw", lambda number, like, *_: white[:, : like.shape[1]])
    x, y, weights = RANDOM.normal(size=(12, 4)), RANDOM.integers(0, 3, 12), np.full(12, 1 / 12)
    kernels = {number: rule.inverses[number].variables[0] for number in (1, 2)}
    gaps = [[], []]
    for _ in range(2):
        for number, kernel in kernels.items():
            gaps[number - 1].append(kernel.numpy() - model.layers[number].kernel.numpy().T)
        gradients = rule.compute(x, y, weights).feedback
        for gradient, variable in zip(gradients, rule.feedback_variables, strict=True):
            variable.assign_sub(0.5 * gradient)
    for first, second in gaps:  # the loss is σ² ‖V − Wᵀ‖², whose gradient is 2 σ² (V − Wᵀ)
        np.testing.assert_allclose(second, (1 - 0.7**2) * first, rtol=1e-9, atol=1e-12)


def test_feedback_iterations_turn_the_update_to_backpropagation():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), L.Dense(16, "tanh"), L.Dense(16, "tanh"), L.Dense(3)])
    rule, exact = build(model, noise=0.1, target_step=0.1), rules.Backpropagation()
    exact.build(model, "softmax_cross_entropy")
    x, y = RANDOM.normal(size=(64, 8)).astype("float32"), RANDOM.integers(0, 3, 64)
    inputs = rule.feedback_loop_inputs(x)

    def cosine():
        ours, theirs = (np.ravel(each.compute(x, y).forward[0]) for each in (rule, exact))
        return ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)

    before = cosine()
    for loop in rule.feedback_loops:
        optimizer = keras.optimizers.Adam(0.01)
        update = tf.function(loop.gradients)
        for iteration in tf.range(300):
            optimizer.apply(update(inputs, Batch.of(x, y), iteration), loop.variables)
    assert before < 0.5 and cosine() > 0.9  # not 1: one inverse serves the Jacobians of all examples


def test_noise_of_each_iteration_is_its_own():
    rule = build(linear(4, 300, 3))
    like = tf.zeros((50, 300))
    batch = Batch.of(like, like)
    draws = [rule._draw(n, like, batch, iteration).numpy().ravel() for n, iteration in ((1, 0), (1, 1), (1, 2), (3, 0))]
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 0.05


def test_the_output_of_the_lenet_has_inverses_down_to_the_first_pooling():
    rule = build(
        tfbio.models.ernoult_lenet(),
        feedback_iterations=(1, 20, 30, 35),
        inverse={"pooling": "strided", "kernel_size": 6},
    )
    assert [g and g.output_shape[1:] for g in rule.inverses] == [None, (14, 14, 32), (3136,), (512,)]
    assert [loop.count for loop in rule.feedback_loops] == [19, 29, 34]
