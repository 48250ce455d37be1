"""A `Learner` is saved and loaded as a whole."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(24, 5)).astype("float32"), RANDOM.integers(0, 3, 24)


def learner(rule):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])
    made = tfbio.Learner(model, rule, preprocessing=keras.layers.Rescaling(0.5))
    metrics = ["accuracy", "sparse_categorical_crossentropy"]
    made.compile(keras.optimizers.Adam(0.05), "softmax_cross_entropy", metrics=metrics, jit_compile=False)
    return made


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


@pytest.mark.parametrize("rule", ["fa", "kp", "dtp"])
def test_a_checkpoint_of_keras_s_goes_on_as_if_nothing_had_been(tmp_path, rule):
    rule = {"class_name": rule, "config": {"seed": 3}}
    whole, first = learner(rule), learner(rule)
    whole.fit(data(), epochs=3, verbose=0)
    path = str(tmp_path / "{epoch}.keras")
    first.fit(data(), epochs=2, callbacks=[keras.callbacks.ModelCheckpoint(path)], verbose=0)
    loaded = keras.models.load_model(tmp_path / "2.keras")
    assert type(loaded) is tfbio.Learner and loaded.rule.get_config() == first.rule.get_config()
    assert loaded.evaluate(data(), verbose=0, return_dict=True) == first.evaluate(data(), verbose=0, return_dict=True)
    loaded.fit(data(), epochs=1, verbose=0)
    for part in ("model", "rule"):
        pairs = zip(getattr(loaded, part).variables, getattr(whole, part).variables, strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    assert int(loaded.rule.step.numpy()) == 9


def test_one_that_is_not_compiled(tmp_path):
    keras.utils.set_random_seed(1)
    made = tfbio.Learner(keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]), "fa")
    made.save(tmp_path / "l.keras")
    loaded = keras.models.load_model(tmp_path / "l.keras")
    np.testing.assert_array_equal(loaded(X), made(X))
    assert not loaded.compiled


def test_weights_alone(tmp_path):
    first, second = (learner({"class_name": "fa", "config": {"seed": seed}}) for seed in (1, 2))
    first.fit(data(), verbose=0)
    first.save_weights(tmp_path / "l.weights.h5")
    second.load_weights(tmp_path / "l.weights.h5")
    for a, b in zip(second.rule.variables, first.rule.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
