"""Direct feedback with shared, regenerated and broadcast projections: the same rule, whatever is kept."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfbio.feedback import projections
from tfbio.feedback.projections import STORAGES
from tfbio.rules import DirectFeedbackAlignment, DirectRandomTargetProjection

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(6, 8, 8, 2)), RANDOM.integers(0, 3, 6)


def residual(norm=False):
    """A stem, two residual blocks, the second with a projection shortcut, and a head: four stages."""
    x = inputs = keras.Input((8, 8, 2))
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="stem")(x)
    for number, (filters, stride) in enumerate([(4, 1), (6, 2)], start=1):
        name = f"block_{number}"
        y = L.Conv2D(filters, 3, stride, "same", activation="relu", name=f"{name}_a")(x)
        y = L.Conv2D(filters, 3, padding="same", name=f"{name}_b")(y)
        if stride > 1:
            x = L.Conv2D(filters, 1, stride, name=f"{name}_shortcut")(x)
        y = L.BatchNormalization(name=f"{name}_norm")(y) if norm else y
        x = L.Activation("relu", name=f"{name}_relu")(L.Add(name=f"{name}_add")([x, y]))
    return keras.Model(inputs, L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(x)))


def build(rule, model):
    rule.build(model, "softmax_cross_entropy")
    return rule


def gradients(rule):
    return {v.path: np.asarray(g) for g, v in zip(rule.compute(X, Y).forward, rule.forward_variables, strict=True)}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("cls", [DirectFeedbackAlignment, DirectRandomTargetProjection])
def test_any_storage_is_dense_feedback_with_its_matrices(cls, storage, float64, monkeypatch):
    monkeypatch.setattr(projections, "_TILE", 100)
    model = residual()
    rule, dense = build(cls(seed=1, storage=storage), model), build(cls(), model)
    assert [np.shape(b) for b in rule.projections] == [(3, 256), (3, 256), (3, 6)]
    for ours, theirs in zip(rule.projections, dense.projections, strict=True):
        theirs.assign(ours)
    expected = gradients(dense)
    for path, gradient in gradients(rule).items():
        np.testing.assert_allclose(gradient, expected[path], rtol=1e-9, atol=1e-13)


def test_a_residual_block_is_one_stage_with_one_feedback(float64):
    """Within a block the signal at its end is backpropagated; nothing comes from the block above."""
    model = residual(norm=True)
    rule = build(DirectFeedbackAlignment(seed=1), model)
    assert [stage.output_shape[1:] for stage in rule.stages] == [(8, 8, 4), (8, 8, 4), (6,), (3,)]
    stages = [{layer.name.split("_")[1] for layer in stage.layers if "block" in layer.name} for stage in rule.stages]
    assert stages == [set(), {"1"}, {"2"}, set()]
    before = gradients(rule)
    silent = rule.projections[1]
    silent.assign(tf.zeros_like(silent))
    after = gradients(rule)
    for path in before:
        if path.startswith("block_1") and "norm/gamma" not in path:
            assert not after[path].any() and (before[path].any() or "bias" in path)
        elif not path.startswith("block_1"):
            np.testing.assert_array_equal(after[path], before[path])


def test_regenerated_feedback_is_the_same_in_every_step_and_costs_no_memory():
    keras.utils.set_random_seed(1)
    rule = build(DirectFeedbackAlignment(storage="regenerated"), residual())
    assert [v.shape for v in rule.variables] == [(2,)] and rule.feedback_variables == []
    before = [np.asarray(b) for b in rule.projections]
    step = tf.function(lambda: [g for g in rule.compute(X.astype("float32"), Y).forward], autograph=False)
    first = [np.asarray(g) for g in step()]
    rule.step.assign_add(17)
    for a, b in zip(first, step(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(before, rule.projections, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "none"}, "`storage`: expected one of"),
        ({"storage": "shared", "initializer": "glorot_uniform"}, "`initializer`: expected None.*storage='dense'"),
        ({"storage": "regenerated", "initializer": "zeros"}, "`initializer`: expected None"),
    ],
)
def test_what_can_not_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DirectFeedbackAlignment(**options)
