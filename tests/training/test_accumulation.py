"""A batch taken in parts is the batch: the same weights, moments and averages, partial batches included."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio import rules
from tfbio.rules.base import Batch
from tfbio.training import Checkpoints

RULES = {
    "tp": {"class_name": "tp", "config": {"noise": 0.0}},
    "wm": {"class_name": "wm", "config": {"interval": 2}},
    "dtp": {"class_name": "dtp", "config": {"noise": 0.0}},
    "sdtp": {"class_name": "sdtp", "config": {"noise": 0.0}},
    "ao_sdtp": {"class_name": "ao_sdtp", "config": {"noise": 0.0, "schedule": "alternating", "period": 3}},
}


@functools.cache
def data(examples=27, batch_size=8):
    """A function of epoch and position, so that one serves all trainers."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (examples, 6, 6, 2), np.uint8), rng.integers(0, 3, examples).astype(np.int32)
    return tfbio.data.from_arrays(images, labels, batch_size, augmentation="flip_crop")


def make(rule, parts, jit_compile=False, seed=1, dropout=0.0, **options):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(3, 3, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-2)),
        keras.layers.Flatten(),
        keras.layers.Dense(5, "tanh"),
        keras.layers.Dropout(dropout, seed=3),
        keras.layers.Dense(3),
    ]
    options = {"preprocessing": keras.layers.Rescaling(1 / 255), "jit_compile": jit_compile, **options}
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=1.0)
    return tfbio.Trainer(keras.Sequential(layers), rule, optimizer, accumulation_steps=parts, **options)


def state(trainer):
    optimizers = [o for o in (trainer.optimizer, trainer.feedback_optimizer) if o is not None]
    groups = (trainer.model.variables, trainer.rule.variables, *(o.variables for o in optimizers))
    return [(variable.path, variable.numpy()) for group in groups for variable in group]


def assert_same(a, b, **tolerance):
    for (path, expected), (_, value) in zip(state(a), state(b), strict=True):
        np.testing.assert_allclose(value, expected, err_msg=path, **tolerance)


# A rule of each kind; tests/stress/test_every_rule.py has the others.
@pytest.mark.parametrize("rule", ["bp", "brsf", "kp", "wm", "dfa", "dtp", "ao_sdtp"])
def test_parts_sum_to_the_batch(rule, float64):
    """In batches of 8: three full ones, in parts of 3, 3 and 2, and one of 3."""
    whole, split = (make(RULES.get(rule, rule), parts) for parts in (1, 3))
    first, second = (trainer.fit(data(), epochs=2, verbose=False).history for trainer in (whole, split))
    assert_same(whole, split, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(second["loss"], first["loss"], rtol=1e-6)
    assert second["error"] == first["error"]


@pytest.mark.parametrize("rule", ["dfa_regenerated", "brsf"])  # with random numbers
def test_compiled(rule):
    whole, split = (make(rule, parts, jit_compile=True) for parts in (1, 3))
    for trainer in (whole, split):
        trainer.fit(data(24), epochs=2, verbose=False)  # XLA compiles each size of a batch
    assert_same(whole, split, rtol=1e-4, atol=1e-6)


def test_more_parts_than_examples():
    whole, split = (make("fa", parts) for parts in (1, 5))
    for trainer in (whole, split):
        trainer.fit(data(9), epochs=1, verbose=False)  # the last batch is one example
    assert_same(whole, split, rtol=1e-5, atol=1e-7)


def test_streams_with_sample_weights():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 6, 6, 2)).astype(np.float32), rng.integers(0, 3, 11)
    stream = tf.data.Dataset.from_tensor_slices((x, y, rng.uniform(size=11).astype(np.float32))).batch(4)
    whole, split = (make("kp", parts, preprocessing=None) for parts in (1, 3))
    losses = [trainer.fit(stream, epochs=2, verbose=False).history["loss"] for trainer in (whole, split)]
    assert_same(whole, split, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_noise_differs_between_parts():
    """A part's noise is its own: parts of equal examples do not see equal noise."""
    rule = rules.get("dtp")
    rule.step = tf.Variable(0, dtype=tf.int64)
    draws = []
    for part in range(2):
        batch = Batch.of(tf.zeros((4, 3)), None)._replace(microbatch=part, microbatches=2)
        draws.append(rule._draw(1, tf.zeros((4, 3)), batch).numpy())
    assert np.abs(draws[0] - draws[1]).min() > 0


def test_all_parts_count_as_the_batch():
    rule = {"class_name": "dtp", "config": {"target_reduction": "batch", "noise": 0.0}}
    whole, split = (make(rule, parts) for parts in (1, 2))
    for trainer in (whole, split):
        trainer.fit(data(16), epochs=1, verbose=False)
    assert_same(whole, split, rtol=1e-4, atol=1e-6)


def test_resumed_in_the_middle_of_an_epoch(tmp_path):
    whole = make("dtp", 3, dropout=0.2)
    saving = Checkpoints(str(tmp_path), every_steps=3, keep=9)
    whole.fit(data(), epochs=2, checkpoints=saving, verbose=False)
    for path in saving.paths()[1:]:
        for file in tmp_path.glob(f"{path.name}.*"):
            file.unlink()
    resumed = make("dtp", 3, seed=9, dropout=0.2)
    assert resumed.restore(Checkpoints(str(tmp_path))) == 3
    resumed.fit(data(), epochs=2, verbose=False)
    assert_same(whole, resumed, rtol=0, atol=0)


def test_loss_scaling():
    keras.config.set_dtype_policy("mixed_float16")
    whole, split = (make("fa", parts) for parts in (1, 3))
    losses = [trainer.fit(data(), epochs=2, verbose=False).history["loss"] for trainer in (whole, split)]
    np.testing.assert_allclose(*losses, rtol=5e-3)
    assert_same(whole, split, rtol=0.05, atol=5e-3)
