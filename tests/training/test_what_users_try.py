"""What a new user tries first: it works as in Keras, or an error says what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(16, 5)).astype("float32"), RANDOM.integers(0, 3, 16)


def network():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])


def learner(rule="bp", optimizer="sgd", model=None, **options):
    made = tfbio.Learner(model or network(), rule)
    made.compile(optimizer, jit_compile=False, **options)
    return made


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def sgd(**options):
    return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2, **options)


@pytest.mark.parametrize("kind", ["trainer", "learner"])
def test_accumulated_gradients_are_keras_s(kind):
    theirs = network()
    theirs.compile(sgd(momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    theirs.fit(data(), epochs=2, verbose=0)
    optimizer = sgd(momentum=0.9)
    ours = tfbio.Trainer(network(), "bp", optimizer, jit_compile=False) if kind == "trainer" else learner("bp", optimizer)
    ours.fit(data(), epochs=2, verbose=0)
    for a, b in zip(ours.model.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_gaps_shrink_in_real_steps_only(scaled):
    optimizer = sgd(weight_decay=0.5)
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    trainer = tfbio.Trainer(network(), "kp", optimizer, jit_compile=False)
    gaps = [[b.numpy() - w.numpy() for b, w in trainer.rule.followers]]
    for steps in (1, 1, 1, 1):
        trainer.fit(data().take(1), epochs=trainer.epoch + steps, verbose=False)
        gaps.append([b.numpy() - w.numpy() for b, w in trainer.rule.followers])
    for before, after, factor in zip(gaps[:-1], gaps[1:], (1, 0.95, 1, 0.95), strict=True):
        for a, b in zip(after, before, strict=True):
            np.testing.assert_allclose(a, factor * b, rtol=1e-4, atol=1e-6)
