"""A small network, trained by `Trainer` and by `Learner`; also in scripts of several replicas."""

import keras
import numpy as np
import tensorflow as tf

import tfbio

RULES = ("bp", "fa", "kp", "dfa", "dtp")
#: What an optimizer is given, and the dtype policy.
SETTINGS = {
    "plain": ({}, "float32"),
    "clipnorm": ({"clipnorm": 0.05}, "float32"),
    "global_clipnorm": ({"global_clipnorm": 0.05}, "float32"),
    "clipvalue": ({"clipvalue": 2e-3}, "float32"),
    "float16": ({"clipvalue": 2e-3}, "mixed_float16"),
}
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(22, 6, 6, 2)).astype("float32"), RANDOM.integers(0, 4, 22)
WEIGHTS = RANDOM.uniform(0.5, 2.0, 22).astype("float32")


def data():
    """Three batches, the last of which is not full, with sample weights."""
    return tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(8)


def parts(strategy, rule, setting):
    """A model, a rule and an optimizer, the same in every call."""
    options, policy = SETTINGS[setting]
    keras.utils.set_random_seed(7)
    rule = tfbio.rules.get(rule)
    if hasattr(rule, "_draw"):  # noise is each replica's own; here, a function of the example
        rule._draw = lambda number, like, *_: tf.sin(5 * like)
    with strategy.scope():
        layers = [keras.layers.Conv2D(3, 3, activation="tanh", dtype=policy), keras.layers.Flatten(dtype=policy)]
        layers += [keras.layers.Dense(5, "tanh", dtype=policy), keras.layers.Dense(4, dtype=policy)]
        model = keras.Sequential([keras.Input((6, 6, 2)), *layers])
        return model, rule, keras.optimizers.SGD(0.2, momentum=0.9, weight_decay=1e-2, **options)


def by_trainer(strategy, rule, setting):
    trainer = tfbio.Trainer(*parts(strategy, rule, setting), strategy=strategy, jit_compile=False)
    history = trainer.fit(data(), epochs=2, validation_data=data(), verbose=False).history
    return variables(trainer.rule), history


def by_learner(strategy, rule, setting):
    model, rule, optimizer = parts(strategy, rule, setting)
    with strategy.scope():
        learner = tfbio.Learner(model, rule)
        learner.compile(optimizer, jit_compile=False)
    history = learner.fit(data(), epochs=2, validation_data=data(), verbose=0).history
    return variables(learner.rule), history


def variables(rule):
    return [(variable.path, variable.numpy()) for variable in [*rule.model.variables, *rule.variables]]


def assert_same(first, second, said, rtol=1e-4, atol=1e-6):
    (weights, history), (others, other) = first, second
    for (path, value), (_, found) in zip(weights, others, strict=True):
        np.testing.assert_allclose(found, value, rtol=rtol, atol=atol, err_msg=f"{said} {path}")
    for name in ("loss", "error", "val_loss", "val_error"):
        np.testing.assert_allclose(other[name], history[name], rtol=1e-3, err_msg=f"{said} {name}")
