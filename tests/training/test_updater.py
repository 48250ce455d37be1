"""The optimizers that an `Updater` serves, on one device; on several: `test_updates`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(16, 5)).astype("float32"), RANDOM.integers(0, 3, 16)


def model(dtype=None):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(4, "tanh", dtype=dtype, name="first"), keras.layers.Dense(3, dtype=dtype, name="last")]
    return keras.Sequential([keras.Input((5,)), *layers])


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def gaps(rule):
    return [b.numpy() - w.numpy() for b, w in rule.followers]


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="of later versions of Keras")
def test_followers_decay_with_the_optimizer_of_their_own_kernel():
    def choose(variable):
        return decaying if "first" in variable.path else plain

    decaying, plain = keras.optimizers.SGD(0.1, weight_decay=0.5), keras.optimizers.SGD(0.1)
    trainer = tfbio.Trainer(model(), "kp", keras.optimizers.MultiOptimizer(choose), jit_compile=False)
    before = gaps(trainer.rule)
    trainer.fit(data(), verbose=False)
    first, last = gaps(trainer.rule)
    np.testing.assert_allclose(first, before[0] * (1 - 0.05) ** 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(last, before[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["trainer", "learner"])
def test_a_loss_scaler_of_the_user_s_own_is_kept(kind):
    own = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0, dynamic_growth_steps=2)
    if kind == "trainer":
        made = tfbio.Trainer(model("mixed_float16"), "fa", own, jit_compile=False)
    else:
        made = tfbio.Learner(model("mixed_float16"), "fa")
        made.compile(own, jit_compile=False)
    assert made.optimizer is own and float(own.dynamic_scale.numpy()) == 64.0
    made.fit(data(), verbose=0)
    assert float(own.dynamic_scale.numpy()) == 128.0 and int(own.iterations.numpy()) == 2


def test_a_static_loss_scale_is_taken_out_before_clipping():
    options = {"clipnorm": 0.05}
    results = []
    for scale in (None, 1024.0):
        trainer = tfbio.Trainer(
            model(), "bp", keras.optimizers.SGD(0.1, loss_scale_factor=scale, **options), jit_compile=False
        )
        history = trainer.fit(data(), epochs=2, verbose=False).history["loss"]
        results.append((history, trainer.model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
