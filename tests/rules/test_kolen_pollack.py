"""Kolen–Pollack: the gap between forward and feedback weights shrinks exactly as the decay says."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.rules import Backpropagation, KolenPollack


def network():
    hidden = [L.Conv2D(3, 3, activation="tanh"), L.Flatten(), L.Dense(6, "tanh")]
    return keras.Sequential([keras.Input((6, 6, 2)), *hidden, L.Dense(3)])


def data(dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 6, 6, 2)).astype(dtype), rng.integers(0, 3, 12)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def gaps(rule):
    pairs = [pair for layer in rule.feedback_layers for pair in layer.pairs]
    return [w.numpy() - b.numpy() for w, b in pairs]


OPTIMIZERS = {
    "sgd": lambda decay: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=decay),
    "adam": lambda decay: keras.optimizers.Adam(0.01, weight_decay=decay),
    "rmsprop": lambda decay: keras.optimizers.RMSprop(0.01, weight_decay=decay),
    "clipped": lambda decay: keras.optimizers.Adam(0.01, weight_decay=decay, clipnorm=0.01),
    "globally clipped": lambda decay: keras.optimizers.SGD(0.1, weight_decay=decay, global_clipnorm=0.1),
    "lamb": lambda decay: keras.optimizers.Lamb(0.01, weight_decay=decay),
    "norms held": lambda decay: tfbio.optimizers.NormConstrainedSGD(0.1, momentum=0.9, weight_decay=decay),
}


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gap_shrinks_by_the_decay_each_step(name, decay, float64):
    optimizer = OPTIMIZERS[name](decay)
    trainer = tfbio.Trainer(network(), "kp", optimizer, jit_compile=False)
    before, start = gaps(trainer.rule), trainer.model.get_weights()
    trainer.fit(data("float64"), epochs=3, verbose=False)  # nine steps
    factor = (1 - float(optimizer.learning_rate) * (decay or 0.0)) ** 9
    assert len(before) == 3
    for old, new in zip(before, gaps(trainer.rule), strict=True):
        np.testing.assert_allclose(new, factor * old, rtol=1e-6, atol=1e-9)  # Keras keeps learning rates in float32
    assert np.abs(trainer.model.get_weights()[0] - start[0]).max() > 1e-3


def test_the_gap_rests_while_gradients_are_accumulated(float64):
    optimizer = keras.optimizers.SGD(0.1, weight_decay=0.5, gradient_accumulation_steps=4)
    trainer = tfbio.Trainer(network(), "kp", optimizer, jit_compile=False)
    before = gaps(trainer.rule)
    trainer.fit(data("float64"), epochs=3, verbose=False)  # nine steps, two of which change weights
    for old, new in zip(before, gaps(trainer.rule), strict=True):
        np.testing.assert_allclose(new, 0.95**2 * old, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_the_decay_is_that_of_the_step_and_of_the_kernel(jit_compile, float64):
    """A learning rate that falls behind the second of three steps; a kernel that the optimizer lets alone."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.2, 0.1])
    optimizer = keras.optimizers.SGD(schedule, weight_decay=0.5)
    model = network()
    optimizer.exclude_from_weight_decay([model.layers[0].kernel])
    trainer = tfbio.Trainer(model, "kp", optimizer, jit_compile=jit_compile)
    before = gaps(trainer.rule)
    trainer.fit(data("float64"), verbose=False)
    for old, new, factor in zip(before, gaps(trainer.rule), [1.0, *[0.9 * 0.9 * 0.95] * 2], strict=True):
        np.testing.assert_allclose(new, factor * old, rtol=1e-6, atol=1e-9)


def test_learner_and_trainer_agree():
    weights = []
    for kind in (tfbio.Trainer, tfbio.Learner):
        keras.utils.set_random_seed(3)
        model, optimizer = network(), keras.optimizers.Adam(0.01, weight_decay=0.1)
        if kind is tfbio.Trainer:
            trainer = kind(model, "kp", optimizer, jit_compile=False)
            trainer.fit(data("float32"), epochs=2, verbose=False)
            rule = trainer.rule
        else:
            learner = kind(model, "kp")
            learner.compile(optimizer, jit_compile=False)
            learner.fit(data("float32"), epochs=2, shuffle=False, verbose=0)
            rule = learner.rule
        weights.append([v.numpy() for v in (*model.variables, *rule.variables)])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_with_equal_weights_it_is_backpropagation_and_stays_so(float64):
    model, x, y = network(), *next(iter(data("float64")))
    rule, exact = KolenPollack(), Backpropagation()
    for some_rule in (rule, exact):
        some_rule.build(model, "softmax_cross_entropy")
    for layer in rule.feedback_layers:
        for w, b in layer.pairs:
            b.assign(w)
    for a, b in zip(rule.compute(x, y).forward, exact.compute(x, y).forward, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
    learner = tfbio.Learner(network(), "kp")
    learner.compile("adam", jit_compile=False)
    pairs = [pair for layer in learner.rule.feedback_layers for pair in layer.pairs]
    for w, b in pairs:
        b.assign(w)
    learner.fit(data("float64"), verbose=0)
    for w, b in pairs:
        np.testing.assert_array_equal(w, b)


def test_a_frozen_kernel_s_feedback_stays():
    model = network()
    model.layers[0].trainable = False
    trainer = tfbio.Trainer(model, "kp", "sgd", jit_compile=False)
    before = [b.numpy() for b in trainer.rule.variables]
    trainer.fit(data("float32"), verbose=False)
    after = [b.numpy() for b in trainer.rule.variables]
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(after[1] - before[1]).max() > 0


def test_the_exact_last_layer_has_no_feedback_to_learn():
    rule = KolenPollack(last_layer="symmetric")
    rule.build(network(), "softmax_cross_entropy")
    assert [id(b) for b, _ in rule.followers] == [id(b) for b in rule.variables] and len(rule.variables) == 2


def test_a_layer_used_twice_learns_once(float64):
    shared = L.Dense(4)
    model = keras.Sequential([keras.Input((4,)), shared, L.Activation("tanh"), shared, L.Dense(3)])
    trainer = tfbio.Trainer(model, "kp", keras.optimizers.SGD(0.1, weight_decay=0.5), jit_compile=False)
    (before, _), rng = gaps(trainer.rule), np.random.default_rng(0)
    batches = tf.data.Dataset.from_tensor_slices((rng.normal(size=(8, 4)), rng.integers(0, 3, 8))).batch(8)
    trainer.fit(batches, verbose=False)
    np.testing.assert_allclose(gaps(trainer.rule)[0], 0.95 * before, rtol=1e-6, atol=1e-9)
