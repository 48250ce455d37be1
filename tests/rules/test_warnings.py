"""Rules that are backpropagation, or train nothing, for a model or an optimizer say so once."""

import logging

import keras
import numpy as np
import pytest
from keras import layers as L

from tfbio import rules


@pytest.fixture
def said(caplog):
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def built(rule, *units, **options):
    rule = type(rules.get(rule))(**options)
    layers = [L.Dense(n, "tanh") for n in units[:-1]]
    model = keras.Sequential([keras.Input((5,)), *layers, L.Dense(units[-1])], name="net")
    rule.build(model, "softmax_cross_entropy")
    return rule


def cosines(rule):
    x, y = np.random.default_rng(0).normal(size=(8, 5)).astype("float32"), np.arange(8) % 3
    exact = rules.Backpropagation()
    exact.build(rule.model, "softmax_cross_entropy")
    pairs = zip(rule.compute(x, y).forward, exact.compute(x, y).forward, strict=True)
    return [np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]


def test_dtp_on_two_stages_says_that_it_is_backpropagation(said):
    rule = built("dtp", 6, 3)
    (line,) = said()
    assert "DifferenceTargetPropagation of 'net': on two stages it is backpropagation" in line
    np.testing.assert_allclose(cosines(rule), 1, atol=1e-5)  # what it says is so
    rule.compute(np.ones((2, 5), "float32"), np.array([0, 1]))
    assert said() == [line]


@pytest.mark.parametrize("name, units", [("dtp", (6, 6, 3)), ("sdtp", (6, 3)), ("ddtp", (6, 3)), ("ldrl", (6, 3))])
def test_target_propagation_says_nothing_where_it_is_not_so(name, units, said):
    assert min(cosines(built(name, *units))) < 0.999 and said() == []


@pytest.mark.parametrize("name", ["fa", "frsf", "brsf"])
def test_feedback_with_one_hidden_layer_and_a_symmetric_last_one_says_that_it_is_backpropagation(name, said):
    rule = built(name, 6, 3)
    (line,) = said()
    assert "of 'net': it is backpropagation" in line and "last_layer='same'" in line
    np.testing.assert_allclose(cosines(rule), 1, atol=1e-5)


@pytest.mark.parametrize(
    "name, units, options",
    [("fa", (6, 6, 3), {}), ("fa", (6, 3), {"last_layer": "same"}), ("kp", (6, 3), {}), ("usf", (6, 6, 3), {})],
)
def test_feedback_says_nothing_where_it_is_not_so(name, units, options, said):
    assert min(cosines(built(name, *units, **options))) < 0.999 and said() == []


def test_a_net_of_two_towers_uses_no_feedback_either(said):
    a, b = keras.Input((5,)), keras.Input((4,))
    x = L.Concatenate()([L.Dense(6, "tanh")(a), L.Dense(5, "tanh")(b)])
    rule = rules.FeedbackAlignment()
    rule.build(keras.Model([a, b], L.Dense(3)(x)), "softmax_cross_entropy")
    assert len(rule.feedback_layers) == 3 and "it is backpropagation" in said()[0]


def test_frozen_layers_below_leave_feedback_without_use(said):
    model = keras.Sequential([keras.Input((5,)), L.Dense(6, "tanh"), L.Dense(6, "tanh"), L.Dense(3)])
    model.layers[0].trainable = False
    rules.FeedbackAlignment().build(model, "softmax_cross_entropy")
    assert len(said()) == 1


def test_symmetric_feedback_is_meant(said):
    rules.get("bp").build(keras.Sequential([keras.Input((5,)), L.Dense(6), L.Dense(3)]), "softmax_cross_entropy")
    built("fa", 6, 6, 3)
    rule = rules.FeedbackRule("symmetric")
    rule.build(keras.Sequential([keras.Input((5,)), L.Dense(6), L.Dense(3)]), "softmax_cross_entropy")
    assert said() == []


def test_kolen_pollack_asks_for_weight_decay(said):
    rule = built("kp", 6, 3)
    assert said() == []
    for optimizer in (
        keras.optimizers.SGD(0.1, weight_decay=1e-3),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW()),
    ):
        rule.check_optimizer(optimizer)
        assert said() == []
    for number, optimizer in enumerate(
        [keras.optimizers.SGD(0.1), keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())], 1
    ):
        rule.check_optimizer(optimizer)
        assert len(said()) == number and "KolenPollack of 'net': without weight decay" in said()[-1]
    for name in ("fa", "dfa", "bp"):
        built(name, 6, 6, 3).check_optimizer(keras.optimizers.SGD(0.1))
    assert len(said()) == 2
