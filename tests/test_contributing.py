"""The rule and the layer that CONTRIBUTING.md shows how to write are ones that work."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

_DOCUMENT = Path(__file__).parents[1] / "CONTRIBUTING.md"


def _example(name):
    """What the example that defines `name` makes."""
    examples = re.findall(r"^```python\n(.*?)^```", _DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (code,) = (example for example in examples if f"class {name}(" in example)
    namespace = {"__name__": "contributed"}
    exec(compile(code, str(_DOCUMENT), "exec"), namespace)
    return namespace[name]


@pytest.fixture(scope="module")
def rule_class():
    return _example("SignDirectFeedback")


@pytest.mark.parametrize("rule", ["fa", "dfa", "wm"])
def test_rules_train_the_layer(rule, float64):
    layer = _example("Mixing")(4, "tanh")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, "tanh"), layer, keras.layers.Dense(3)])
    built = tfbio.rules.get(rule)
    built.build(model, "softmax_cross_entropy")
    x, y = np.random.RandomState(0).randn(6, 5), np.arange(6) % 3
    assert all(np.abs(gradient).max() > 0 for gradient in built.compute(x, y).forward)
    if rule == "dfa":
        assert len(built.stages) == 3
    else:
        (kernel, feedback) = built.feedback_layers[1].pairs[0]
        assert kernel is layer.mixing and feedback is not kernel


def _model():
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(4, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.125)),
        keras.layers.Dense(6, activation="tanh"),
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers)


def test_update_is_the_formula_in_numpy(rule_class, float64):
    random = np.random.RandomState(0)
    x, y = random.randn(7, 5), random.randint(3, size=7)
    weights = random.rand(7)
    model = _model()
    rule = rule_class(seed=3)
    rule.build(model, "softmax_cross_entropy")
    update = rule.compute(tf.constant(x), tf.constant(y), tf.constant(weights))

    kernels, biases = [v.numpy() for v in model.weights[::2]], [v.numpy() for v in model.weights[1::2]]
    h = [x]
    for kernel, bias in zip(kernels[:2], biases[:2], strict=True):
        h.append(np.tanh(h[-1] @ kernel + bias))
    logits = h[-1] @ kernels[2] + biases[2]
    exponentials = np.exp(logits)
    error = exponentials / exponentials.sum(1, keepdims=True) - np.eye(3)[y]
    sent = np.sign(error) * weights[:, None]
    deltas = [sent @ b.numpy() * (1 - a**2) for b, a in zip(rule.projections, h[1:], strict=True)]
    deltas.append(error * weights[:, None])
    expected = [gradient for a, d in zip(h, deltas, strict=True) for gradient in (a.T @ d, d.sum(0))]
    expected[0] += 2 * 0.125 * kernels[0] * weights.sum()
    for gradient, oracle in zip(update.forward, expected, strict=True):
        np.testing.assert_allclose(gradient, oracle, rtol=0, atol=1e-12)


def test_trainer_takes_a_step_and_moves_every_variable(rule_class):
    random = np.random.RandomState(0)
    data = tfbio.data.from_arrays(random.randn(8, 5).astype("float32"), np.arange(8) % 3, batch_size=8)
    model = _model()
    rule = rule_class(seed=0)
    trainer = tfbio.Trainer(model, rule, keras.optimizers.SGD(0.1))
    before = [v.numpy() for v in model.trainable_variables]
    feedback = [v.numpy() for v in rule.variables]
    trainer.fit(data, epochs=1, verbose=False)
    assert all(np.any(v.numpy() != old) for v, old in zip(model.trainable_variables, before, strict=True))
    for variable, old in zip(rule.variables, feedback, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


def test_config_round_trip_makes_the_same_rule(rule_class):
    first = rule_class(initializer="he_normal", seed=5)
    second = tfbio.rules.get(keras.saving.serialize_keras_object(first))
    assert type(second) is rule_class and second.get_config() == first.get_config()
    for rule in (first, second):
        rule.build(_model(), "softmax_cross_entropy")
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
