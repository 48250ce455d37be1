"""Schedules in epochs: the learning rates of their formula, in Keras's optimizers and in runs."""

import json

import keras
import numpy as np
import pytest

from tfbio.experiments import config
from tfbio.experiments.build import BuiltRun
from tfbio.schedules import InEpochs

SCHEDULES = keras.optimizers.schedules


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in range(steps)])


@pytest.mark.parametrize("warmup", [0, 1.5])
def test_the_formula(warmup):
    schedule = InEpochs(SCHEDULES.ExponentialDecay(0.5, 1, 0.5, staircase=True), warmup, steps_per_epoch=4)
    k = np.arange(16)
    ramp = np.minimum(1, (k + 1) / (warmup * 4)) if warmup else 1
    np.testing.assert_allclose(rates(schedule, 16), 0.5 * 0.5 ** (k // 4) * ramp, rtol=1e-6)


def test_a_number_is_a_constant_schedule():
    np.testing.assert_allclose(rates(InEpochs(0.1, 2, 2), 6), [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)


def test_keras_schedules_are_what_they_are_in_steps():
    """With epochs of 5 steps, 2 epochs are 10 steps."""
    for epochs, steps in (
        (SCHEDULES.CosineDecay(0.0, 2, 0.1, warmup_target=0.3, warmup_steps=1), (0.0, 10, 0.1)),
        (SCHEDULES.CosineDecay(0.2, 2), (0.2, 10)),
        (SCHEDULES.PolynomialDecay(0.2, 2, power=2), (0.2, 10)),
        (SCHEDULES.PiecewiseConstantDecay([1, 2], [0.3, 0.2, 0.1]), ([5, 10], [0.3, 0.2, 0.1])),
    ):
        warm = {"warmup_target": 0.3, "warmup_steps": 5} if len(steps) == 3 else {}
        other = {"power": 2} if isinstance(epochs, SCHEDULES.PolynomialDecay) else {}
        expected = type(epochs)(*steps, **warm, **other)
        np.testing.assert_allclose(rates(InEpochs(epochs, steps_per_epoch=5), 14), rates(expected, 14), atol=1e-7)


def test_an_optimizer_with_it_survives_as_plain_data():
    optimizer = keras.optimizers.SGD(InEpochs(SCHEDULES.CosineDecay(0.1, 3), 1, 7))
    config_ = json.loads(json.dumps(keras.saving.serialize_keras_object(optimizer)))
    copy = keras.saving.deserialize_keras_object(config_)
    for other in (optimizer, copy):
        other.build([keras.Variable(1.0)])
        other.iterations.assign(10)
    assert float(copy.learning_rate) == float(optimizer.learning_rate) > 0


def test_a_run_tells_it_the_steps_of_an_epoch():
    params = [
        "SGD.learning_rate=@InEpochs()",
        "InEpochs.schedule=@CosineDecay()",
        "CosineDecay.initial_learning_rate=0.1",
        "CosineDecay.decay_steps=3",
        "train.batch_size=100",
        "train.jit_compile=False",
    ]
    for made in ("@SGD", "@SGD()"):  # made in the strategy's scope, or before
        config.parse(["quickstart.gin"], [*params, f"train.optimizer={made}"])
        built = BuiltRun(config.load_run())
        steps = -(-1437 // 100)
        assert built.describe()["optimizer"]["learning_rate"]["config"]["steps_per_epoch"] == steps
        built.trainer.optimizer.iterations.assign(3 * steps // 2)
        expected = 0.05 * (1 + np.cos(np.pi * (3 * steps // 2) / (3 * steps)))
        assert float(built.trainer.optimizer.learning_rate) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("cosine",), "schedule"), ((0.1, -1), "warmup"), ((0.1, 0, 0), "steps_per_epoch")],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        InEpochs(*arguments)


def test_unknown_steps_are_said():
    with pytest.raises(ValueError, match="`steps_per_epoch` of InEpochs: expected the number of batches"):
        InEpochs(0.1, 1)(0)
