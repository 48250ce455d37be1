"""This literature's update rules against NumPy, in `Trainer`, `Learner` and gin, and on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio import optimizers
from tfbio.experiments import config

RATE, STEPS = 0.05, 6
ALL = {
    "BatchManhattan": {"learning_rate": RATE, "momentum": 0.9, "decay": 0.1},
    "NoSignChangeSGD": {"learning_rate": RATE, "momentum": 0.9, "weight_decay": 0.1},
    "NormConstrainedSGD": {"learning_rate": RATE, "momentum": 0.9, "weight_decay": 0.1},
}


def make(name, **options):
    return getattr(optimizers, name)(**{**ALL[name], **options})


def problem(dtype="float32"):
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 5)).astype(dtype), rng.integers(0, 3, 8)


def network():
    return keras.Sequential([keras.Input((5,)), L.Dense(4, "tanh"), L.LayerNormalization(), L.Dense(3)])


def norm(values):
    return np.sqrt((values**2).sum())


def numpy_step(name, w, m, g, first, kernel):
    """One step of the published rules on one variable, momentum 0.9 and decay 0.1 as in `ALL`."""
    if name == "BatchManhattan":
        m = 0.9 * m + np.sign(g) + 0.1 * w
        return w - RATE * m, m
    old = w
    w = w - RATE * 0.1 * w
    m = 0.9 * m + g
    w = w - RATE * m
    if kernel and name == "NoSignChangeSGD":
        w = np.where(np.sign(w) == np.sign(old), w, 1e-10 * np.sign(old))
    if kernel and name == "NormConstrainedSGD":
        w = w * norm(first) / norm(w)
    return w, m


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_six_steps_against_numpy(name, jit_compile, float64):
    rng = np.random.default_rng(1)
    shapes = {"kernel": (4, 3), "bias": (3,), "gamma": (2, 3)}
    start = {n: rng.normal(size=shape) for n, shape in shapes.items()}
    gradients = [[rng.normal(size=shape) * 3 for shape in shapes.values()] for _ in range(STEPS)]
    variables = [keras.Variable(start[n], name=n) for n in shapes]
    optimizer = make(name)
    optimizer.build(variables)
    step = tf.function(lambda *given: optimizer.apply(list(given), variables), jit_compile=jit_compile)
    expected, momenta = dict(start), dict.fromkeys(shapes, 0.0)
    stopped = 0
    for each in gradients:
        step(*map(tf.constant, each))
        for n, g in zip(shapes, each, strict=True):
            expected[n], momenta[n] = numpy_step(name, expected[n], momenta[n], g, start[n], n == "kernel")
        stopped += np.sum(np.abs(expected["kernel"]) < 1e-9)
    for variable, n in zip(variables, shapes, strict=True):
        np.testing.assert_allclose(variable, expected[n], rtol=1e-5, atol=1e-12)  # Keras's rates are float32
    if name == "NoSignChangeSGD":
        assert stopped > 0
        np.testing.assert_array_equal(np.sign(variables[0]), np.sign(start["kernel"]))
        assert np.any(np.sign(variables[1]) != np.sign(start["bias"])) or np.any(
            np.sign(variables[2]) != np.sign(start["gamma"])
        )


def test_plain_batch_manhattan_moves_each_weight_by_the_rate(float64):
    variable = keras.Variable([[1.0, -2.0, 3.0]])
    optimizer = optimizers.BatchManhattan(0.25)
    optimizer.apply([tf.constant([[1e-9, -7.0, 0.0]], tf.float64)], [variable])
    np.testing.assert_array_equal(variable, [[0.75, -1.75, 3.0]])


@pytest.mark.parametrize("name", ALL)
def test_they_go_through_their_config_and_through_gin(name):
    optimizer = make(name, clipnorm=1.5, nesterov=True)
    config_ = keras.saving.serialize_keras_object(optimizer)
    assert config_["registered_name"] == f"tfbio>{name}"
    copy = keras.optimizers.get(config_)
    assert type(copy) is type(optimizer) and copy.nesterov and copy.get_config() == optimizer.get_config()
    expected = {key: pytest.approx(value) for key, value in ALL[name].items()}
    assert expected.items() <= copy.get_config().items() and copy.get_config()["clipnorm"] == 1.5

    config.parse(["quickstart.gin"], [f"train.optimizer=@{name}", f"{name}.learning_rate=0.03"])
    made = config.load_run().optimizer()
    assert type(made).__name__ == name and float(made.learning_rate) == pytest.approx(0.03)


@pytest.mark.parametrize("name", ALL)
def test_trainer_and_learner_agree(name):
    x, y = problem()
    weights = []
    for kind in (tfbio.Trainer, tfbio.Learner):
        keras.utils.set_random_seed(3)
        model = network()
        first = model.get_weights()
        if kind is tfbio.Trainer:
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
            kind(model, "fa", make(name), jit_compile=False).fit(data, epochs=2, verbose=False)
        else:
            learner = kind(model, "fa")
            learner.compile(make(name), jit_compile=False)
            learner.fit(x, y, 4, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert all(np.any(a != b) for a, b in zip(first, weights[0], strict=True))


@pytest.mark.parametrize("name", ALL)
def test_two_replicas_equal_one(name, two_replicas):
    weights, data = [], tf.data.Dataset.from_tensor_slices(problem()).batch(4)
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            keras.utils.set_random_seed(3)
            model, optimizer = network(), make(name)
        trainer = tfbio.Trainer(model, "bp", optimizer, strategy=strategy, jit_compile=False)
        trainer.fit(data, epochs=3, verbose=False)
        weights.append([*model.get_weights(), *(v.numpy() for v in optimizer.variables)])
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for variable in model.variables:
        first, second = (value.numpy() for value in two_replicas.experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second)
