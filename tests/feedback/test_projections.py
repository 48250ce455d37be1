"""Projections of direct feedback: what is shared, what is drawn anew, and that it is the same every time."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from processes import output_of

from tfbio.feedback import projections
from tfbio.feedback.projections import STORAGES, make_projections

SHAPES = [(8, 8, 16), (30,), (5, 5, 4)]


def make(storage, scale=1.0, seed=3, outputs=10, shapes=SHAPES, dtype="float32"):
    return make_projections(storage, None, scale, seed, outputs, shapes, dtype)


def matrices(storage, **options):
    return [np.asarray(projection.matrix) for projection in make(storage, **options)]


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 640 numbers, so that the first stage has 16 and the others one each."""
    monkeypatch.setattr(projections, "_TILE", 640)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_projection_is_the_product_with_its_matrix(storage, small_tiles):
    error = np.random.default_rng(0).normal(size=(7, 10))
    for projection in make(storage, dtype="float64"):
        signal = projection.project(tf.constant(error))
        assert signal.shape == (7, projection.units)
        np.testing.assert_allclose(signal, error @ np.asarray(projection.matrix), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("storage", ["dense", "shared", "regenerated"])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_all_are_uniform_on_the_same_interval(storage, scale):
    """Bounds, mean, variance and kurtosis of U(±scale/√n), each within five of its own standard errors."""
    for matrix, units in zip(matrices(storage, scale=scale, outputs=50), (1024, 30, 100), strict=True):
        assert matrix.shape == (50, units)
        u = matrix.astype("float64").ravel() * np.sqrt(units) / scale
        assert np.abs(u).max() <= 1 + 1e-6 and np.abs(u).max() > 1 - 20 / u.size
        assert abs(u.mean()) < 5 * np.sqrt(1 / 3 / u.size)
        assert abs((u**2).mean() - 1 / 3) < 5 * np.sqrt((1 / 5 - 1 / 9) / u.size)
        assert abs((u**4).mean() - 1 / 5) < 5 * np.sqrt((1 / 9 - 1 / 25) / u.size)


def test_neither_stages_nor_tiles_nor_rows_repeat(small_tiles):
    first, *others = matrices("regenerated")
    tiles = first.reshape(10, 16, 64)
    vectors = [*tiles[:, 0], *tiles[0, 1:], *(m[0] for m in matrices("regenerated", shapes=[(64,), (64,)]))]
    correlations = np.corrcoef(vectors) - np.eye(len(vectors))
    # Two of them are the same on purpose: the first row of a first stage with 64 units in its tile.
    correlations[0, -2] = correlations[-2, 0] = 0
    assert np.abs(correlations).max() < 5 / np.sqrt(64)
    assert not np.array_equal(first, matrices("regenerated", seed=4)[0])


@pytest.mark.parametrize("tile", [640, 1 << 18], ids=["tiles", "whole"])
def test_regenerated_projections_are_the_same_with_xla_and_without(tile, monkeypatch):
    monkeypatch.setattr(projections, "_TILE", tile)
    for projection in make("regenerated", shapes=[(8, 8, 16), (33,)]):
        eye = tf.eye(10)
        eager = projection.project(eye).numpy()
        for jit_compile in (False, True):
            np.testing.assert_array_equal(tf.function(projection.project, jit_compile=jit_compile)(eye), eager)


def test_regenerated_projections_are_the_same_in_another_process(small_tiles):
    output = output_of(Path(__file__).with_name("regenerated.py"))
    assert output.split() == [matrix.tobytes().hex() for matrix in matrices("regenerated")]


def test_regenerated_projections_never_hold_more_than_a_tile(small_tiles):
    """No tensor of the graph, loop bodies included, is of the matrix's size; nor is any variable."""
    first = make("regenerated")[0]
    assert [v.shape for v in first.variables] == [(2,)]
    graph = tf.function(first.project).get_concrete_function(tf.zeros((1, 10))).graph
    graphs = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    sizes = [
        t.shape.num_elements() or 0 for g in graphs for op in g.get_operations() for t in op.outputs if t.shape.rank
    ]
    assert 0 < max(sizes) <= 1024  # the signal of one example; the whole matrix has 10,240 numbers


def test_shared_projections_are_slices_of_one_matrix():
    made = make("shared")
    (variable,) = {id(v): v for p in made for v in p.variables}.values()
    assert variable.shape == (10, 1024)
    for projection in made:
        expected = variable.numpy()[:, : projection.units] / np.sqrt(projection.units)
        np.testing.assert_allclose(projection.matrix, expected, rtol=1e-6)


def test_broadcast_projections_are_the_same_at_all_positions():
    image, vector, _ = make("broadcast")
    assert [v.shape for v in (*image.variables, *vector.variables)] == [(10, 16), (10, 30)]
    signal = image.project(tf.eye(10)).numpy().reshape(10, 8, 8, 16)
    np.testing.assert_array_equal(signal, np.broadcast_to(image.variables[0].numpy()[:, None, None], signal.shape))


def test_without_a_seed_regenerated_projections_come_from_keras_s_global_one():
    import keras

    drawn = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        drawn.append(matrices("regenerated", seed=None)[1])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0.01


@pytest.mark.parametrize("storage", STORAGES)
def test_no_stage_needs_no_projection(storage):
    assert make(storage, shapes=[]) == []
