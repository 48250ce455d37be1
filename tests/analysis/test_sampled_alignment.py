"""Alignment of direct feedback to many outputs: a sample of them, at the cost of few."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfbio.feedback import projections
from tfbio.rules import DirectFeedbackAlignment, direct_feedback_alignment

RANDOM = np.random.default_rng(0)


def built(outputs, storage="dense", units=(20, 30)):
    rule = DirectFeedbackAlignment(seed=1, storage=storage)
    layers = [L.Dense(n, "tanh") for n in units]
    rule.build(keras.Sequential([keras.Input((6,)), *layers, L.Dense(outputs)]), "softmax_cross_entropy")
    return rule, RANDOM.normal(size=(16, 6)).astype("float32")


def jacobians(rule, x):
    """Mean Jacobians of the outputs by both hidden layers of `built`, `(outputs, units)`."""
    first, second, third = rule.model.layers
    h = np.asarray(second(first(x)))
    w2, w3 = np.asarray(second.kernel), np.asarray(third.kernel)
    return [np.einsum("uo,u,hu->oh", w3, (1 - h**2).mean(0), w2), w3.T]


@pytest.mark.parametrize("storage", projections.STORAGES)
@pytest.mark.parametrize("outputs", [5, 100])
def test_rows_are_those_of_the_mean_jacobian_and_of_the_projection(outputs, storage):
    rule, x = built(outputs, storage)
    rows = direct_feedback_alignment.sampled(outputs)
    assert len(set(rows)) == min(outputs, 32) and set(rows) <= set(range(outputs))
    for (name, forward, feedback), layer, exact, b in zip(
        rule.pathways(x), rule.model.layers, jacobians(rule, x), rule.projections, strict=False
    ):
        assert name == layer.name
        np.testing.assert_allclose(forward, exact[rows], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(feedback, np.asarray(b)[rows], rtol=1e-6)


def test_a_sample_s_figures_are_within_their_standard_errors_of_the_exact_ones():
    rule, x = built(1000)
    for (_, forward, feedback), exact, b in zip(rule.pathways(x), jacobians(rule, x), rule.projections, strict=True):
        b = np.asarray(b)
        for f in (
            lambda u, v: np.sum(u * v, 1),
            lambda u, v: np.sum(u * u, 1),
            lambda u, v: np.sum(v * v, 1),
            lambda u, v: np.mean(np.sign(u) == np.sign(v), 1),
        ):
            every, some = f(exact, b), f(np.asarray(forward), np.asarray(feedback))
            assert len(some) == 32
            error = every.std() * np.sqrt(1 / 32 - 1 / 1000)
            assert abs(some.mean() - every.mean()) < 4 * error


def test_a_thousand_outputs_cost_no_memory_of_their_projections(monkeypatch):
    monkeypatch.setattr(projections, "_TILE", 1 << 12)
    rule, x = built(1000, "regenerated", units=(500, 20))
    graph = tf.function(rule.pathways).get_concrete_function(tf.constant(x)).graph
    graphs = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    sizes = [
        (t.shape.num_elements() or 0, op.type)
        for g in graphs
        for op in g.get_operations()
        if op.type != "ReadVariableOp"
        for t in op.outputs
        if t.shape.rank
    ]
    assert max(sizes)[0] == 32 * 1000, max(sizes)  # the rows' one-hot errors; a projection has 500 · 1000 numbers
