"""Angles to backpropagation's gradient, against NumPy."""

import keras
import numpy as np
import pytest

import tfbio
from tfbio.analysis.alignment import GradientAngle, angle, gradient_angles


def built(name):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(0.3, seed=1), keras.layers.Dense(7, "tanh"), keras.layers.Dense(4)]
    rule = tfbio.rules.get(name)
    rule.build(keras.Sequential(layers), "softmax_cross_entropy")
    return rule


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 6)).astype("float32"), rng.integers(0, 4, 32)


def test_angle_of_known_vectors():
    assert angle([1.0, 1.0, 1.0]) == pytest.approx(0.0)
    assert angle([0.0, 2.0, 3.0]) == pytest.approx(90.0)
    assert angle([-6.0, 4.0, 9.0]) == pytest.approx(180.0)
    assert angle([1.0, 1.0, 2.0]) == pytest.approx(45.0)
    assert np.isnan(angle([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("name", ["fa", "dfa"])
def test_equals_numpy(name):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(7, "tanh"), keras.layers.Dense(4)]
    model = keras.Sequential(layers)
    rule, exact = tfbio.rules.get(name), tfbio.rules.get("bp")
    for some_rule in (rule, exact):
        some_rule.build(model, "softmax_cross_entropy")
    x, y = batch()
    g, b = ([np.asarray(gradient) for gradient, _ in r.compute(x, y).forward] for r in (rule, exact))

    def degrees(u, v):
        u, v = (np.concatenate([part.ravel() for part in parts]).astype(float) for parts in (u, v))
        return np.degrees(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1)))

    measured = gradient_angles(rule, x, y)
    assert measured["total"] == pytest.approx(degrees(g, b), abs=1e-2)
    for number, layer in enumerate(model.layers):
        path = layer.kernel.path.rpartition("/")[0]
        part = slice(2 * number, 2 * number + 2)
        assert measured[path] == pytest.approx(degrees(g[part], b[part]), abs=2e-2)


def test_backpropagation_is_at_zero_from_itself_with_dropout():
    rule = built("bp")
    assert gradient_angles(rule, *batch())["total"] == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("name", ["bp", "fa", "dfa"])
def test_measuring_changes_nothing(name):
    rule = built(name)
    before = [variable.numpy() for variable in rule.model.variables]
    callback = GradientAngle(rule, *batch())
    first, second = callback.measure(), callback.measure()
    assert first == second
    for variable, value in zip(rule.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_adds_its_figures_to_an_epoch():
    rule, logs = built("fa"), {"loss": 1.0}
    GradientAngle(rule, *batch()).on_epoch_end(0, logs)
    assert logs["angle/total"] > 1 and len([name for name in logs if name.startswith("angle/")]) == 5
