"""Sign symmetry: backpropagation where all magnitudes are equal, and its draws where they are drawn."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.feedback import SignSymmetric
from tfbio.rules import Backpropagation, SignSymmetry


def network(seed=0):
    keras.utils.set_random_seed(seed)
    hidden = [L.Conv2D(4, 3, strides=2, activation="tanh"), L.Flatten(), L.Dense(6, "tanh")]
    return keras.Sequential([keras.Input((7, 7, 2)), *hidden, L.Dense(3)])


def built(rule, model):
    rule.build(model, "softmax_cross_entropy")
    return rule


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 7, 7, 2)), rng.integers(0, 3, 5)


def gradients(rule):
    return [np.asarray(gradient) for gradient in rule.compute(*batch()).forward]


def feedback_of(rule):
    return [np.asarray(b) for layer in rule.feedback_layers for _, b in layer.pairs]


def kernels_of(rule):
    return [np.asarray(w) for layer in rule.feedback_layers for w, _ in layer.pairs]


@pytest.mark.parametrize("scale", [0.3, "norm"])
@pytest.mark.parametrize("last_layer", ["symmetric", "same"])
def test_with_equal_magnitudes_it_is_backpropagation(scale, last_layer, float64):
    model = network()
    for variable in model.trainable_variables:
        variable.assign(0.3 * np.sign(np.random.default_rng(1).normal(size=variable.shape)))
    rule = built(SignSymmetry(scale=scale, last_layer=last_layer), model)
    for a, b in zip(gradients(rule), gradients(built(Backpropagation(), model)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("magnitude", ["uniform", "batch", "fixed"])
def test_signs_agree_and_follow_the_weights(magnitude):
    rule = built(SignSymmetry(magnitude, last_layer="same"), network())
    for _ in range(2):
        for w, b in zip(kernels_of(rule), feedback_of(rule), strict=True):
            np.testing.assert_array_equal(np.sign(w), np.sign(b))
        for variable in rule.model.trainable_variables:
            variable.assign(-variable)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("magnitude", ["uniform", "batch", "fixed"])
def test_scales(magnitude, distribution):
    w = np.random.default_rng(0).normal(size=(5, 5, 30, 40)).astype("float32")
    dense = np.random.default_rng(0).normal(size=(200, 300)).astype("float32")
    expected = {
        ("glorot", 4): np.sqrt(2 / (25 * 30 + 25 * 40)),
        ("glorot", 2): np.sqrt(2 / 500),
        ("xiao", 4): np.sqrt(2 / (25 * 40)),
        ("xiao", 2): 1 / np.sqrt(200),
        ("norm", 4): np.sqrt(np.mean(w**2)),
        (0.25, 2): 0.25,
    }
    for (scale, rank), rms in expected.items():
        kernel = w if rank == 4 else dense
        feedback = SignSymmetric(magnitude, scale, distribution, seed=1)
        initializer = feedback.initializer(0)
        variable = None if initializer is None else initializer(kernel.shape, dtype="float32")
        b = np.asarray(feedback(tf.constant(kernel), variable, tf.constant([0, 5], tf.int64)))
        # The mean square of n draws: 5 deviations of its own, whose relative size is at most sqrt(2 / n).
        tolerance = 1e-4 if magnitude == "uniform" or scale == "norm" else 5 * np.sqrt(2 / b.size)
        assert np.mean(b**2) == pytest.approx(rms**2, rel=tolerance), (scale, rank)


def test_batch_magnitudes_are_a_function_of_the_step_alone():
    rule, again = (built(SignSymmetry("batch", seed=2), network()) for _ in range(2))
    first = gradients(rule)
    np.testing.assert_equal(gradients(rule), first)  # the same step, the same draw
    rule.step.assign_add(1)
    second = gradients(rule)
    assert np.abs(second[0] - first[0]).max() > 1e-4
    assert len(rule.variables) == 0
    again.step.assign(1)
    np.testing.assert_equal(gradients(again), second)
    other = built(SignSymmetry("batch", seed=3), network())
    assert np.abs(gradients(other)[0] - first[0]).max() > 1e-4


def test_the_trainer_counts_the_steps_of_its_rule():
    model = network()
    trainer = tfbio.Trainer(model, "brsf", "sgd", jit_compile=True)
    x, y = batch()
    before = feedback_of(trainer.rule)
    trainer.fit(tf.data.Dataset.from_tensors((x.astype("float32"), y)), epochs=3, verbose=False)
    assert int(trainer.rule.step.numpy()) == 3
    assert np.abs(np.abs(feedback_of(trainer.rule)[0]) - np.abs(before[0])).max() > 1e-3


def test_fixed_magnitudes_stay():
    rule = built(SignSymmetry("fixed"), network())
    before = [np.abs(b) for b in feedback_of(rule)]
    rule.step.assign_add(1)
    np.testing.assert_equal([np.abs(b) for b in feedback_of(rule)], before)
    assert np.std(before[0]) > 0.01


@pytest.mark.parametrize("magnitude", ["uniform", "batch", "fixed"])
def test_partial_concordance(magnitude):
    kernel = tf.constant(np.random.default_rng(0).normal(size=(200, 300)).astype("float32"))
    feedback = SignSymmetric(magnitude, concordance=0.75, seed=1)
    variable = feedback.initializer(0)(kernel.shape, dtype="float32")
    shares = []
    for step in (0, 1):
        b = feedback(kernel, variable, tf.constant([0, step], tf.int64))
        shares.append(np.sign(b) == np.sign(kernel))
    np.testing.assert_array_equal(*shares)  # the same places at every step
    assert shares[0].mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / 60000))
    if magnitude == "fixed":  # which signs flip says nothing about magnitudes
        magnitudes = np.abs(np.asarray(variable))
        gap = magnitudes[shares[0]].mean() - magnitudes[~shares[0]].mean()
        assert abs(gap) < 5 * 0.5 / np.sqrt(15000)


@pytest.mark.parametrize(
    "options", [{"magnitude": "batches"}, {"scale": "he"}, {"distribution": "gamma"}, {"concordance": 1.5}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SignSymmetry(**options)
