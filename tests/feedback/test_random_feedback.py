"""Where random feedback's numbers come from: seeds, independence of the kernels, and the documented distributions."""

import keras
import numpy as np
import pytest

import tfbio
from tfbio.feedback import Random, seeded

INITIALIZERS = keras.initializers


def network(rule, kernel_initializer="glorot_uniform"):
    layers = [keras.layers.Dense(20, kernel_initializer=kernel_initializer) for _ in range(4)]
    model = keras.Sequential([keras.Input((20,)), *layers])
    rule = tfbio.rules.get(rule)
    rule.build(model, "mean_squared_error")
    return model, [np.asarray(variable) for variable in rule.variables]


def rules(**kwargs):
    return tfbio.rules.FeedbackAlignment(last_layer="same", **kwargs), tfbio.rules.DirectFeedbackAlignment(**kwargs)


@pytest.mark.parametrize("number", [0, 1], ids=["fa", "dfa"])
def test_one_seed_gives_one_set_of_draws_one_a_layer(number):
    _, first = network(rules(seed=3)[number])
    keras.random.normal((5,))  # the global generator has moved on
    _, again = network(rules(seed=3)[number])
    _, other = network(rules(seed=4)[number])
    assert len(first) == [4, 3][number]
    np.testing.assert_array_equal(first, again)
    draws = [*first, *other]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


@pytest.mark.parametrize("number", [0, 1], ids=["fa", "dfa"])
def test_no_seed_follows_the_global_seed(number):
    results = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        results.append(network(rules()[number])[1])
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.isclose(results[0], results[2]).all(axis=(1, 2)).any()
    assert not np.isclose(results[0][0], results[0][1]).all()  # layers differ


@pytest.mark.parametrize("shared", [True, False], ids=["one object", "equal objects"])
@pytest.mark.parametrize("seed", [7, None])
def test_feedback_never_repeats_the_kernel(seed, shared):
    """An initializer object with a fixed seed gives the same numbers at every call."""
    initializer = INITIALIZERS.GlorotUniform(seed=7)
    feedback = initializer if shared else INITIALIZERS.GlorotUniform(seed=7)
    rule = tfbio.rules.FeedbackAlignment(feedback, seed=seed, last_layer="same")
    model, draws = network(rule, kernel_initializer=initializer)
    np.testing.assert_array_equal(model.layers[0].kernel, model.layers[1].kernel)  # that is Keras, not we
    for layer, b in zip(model.layers, draws, strict=True):
        assert abs(np.corrcoef(np.ravel(layer.kernel), b.ravel())[0, 1]) < 5 / np.sqrt(b.size)
    assert len({b.tobytes() for b in draws}) == len(draws)


def test_a_separable_convolution_s_kernels_and_its_neighbours_draw_apart():
    layers = [keras.layers.SeparableConv2D(9, 1, depth_multiplier=1) for _ in range(3)]
    model = keras.Sequential([keras.Input((4, 4, 9)), *layers])
    wrapped = tfbio.with_feedback(model, Random("random_normal", seed=0), "same")
    draws = [np.asarray(b).ravel()[:9] for layer in wrapped.feedback_layers for _, b in layer.pairs]
    assert len({b.tobytes() for b in draws}) == 6


# initializer, scale → (low, high) of a uniform distribution or a standard deviation, for a (300, 200) kernel
DISTRIBUTIONS = {
    "default": (Random(seed=1), np.sqrt(2 / 500)),
    "scaled": (Random(scale=3.0, seed=1), 3 * np.sqrt(2 / 500)),
    "Lillicrap": (Random(INITIALIZERS.RandomUniform(-0.5, 0.5), seed=1), 1 / np.sqrt(12)),
    "Xiao, convolutions": (Random(INITIALIZERS.VarianceScaling(2.0, "fan_out", "untruncated_normal"), seed=1), 0.1),
    "Xiao, dense": (Random(INITIALIZERS.VarianceScaling(1 / 3, "fan_in", "uniform"), seed=1), 1 / np.sqrt(3 * 300)),
}


@pytest.mark.parametrize("feedback, deviation", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_the_documented_scales(feedback, deviation):
    draw = np.asarray(feedback.initializer(0)((300, 200)))
    # The standard error of a mean is σ/√n; of a deviation at most σ/√(2n) (normal).
    assert abs(draw.mean()) < 5 * deviation / np.sqrt(draw.size)
    assert abs(draw.std() / deviation - 1) < 5 / np.sqrt(2 * draw.size)


def test_uniform_bounds():
    draw = np.asarray(Random(INITIALIZERS.RandomUniform(-0.5, 0.5), scale=2.0, seed=1).initializer(0)((300, 200)))
    assert 0.99 < np.abs(draw).max() <= 1
    dense = np.asarray(
        Random(INITIALIZERS.VarianceScaling(1 / 3, "fan_in", "uniform"), seed=1).initializer(0)((400, 200))
    )
    assert 0.999 / 20 < np.abs(dense).max() <= 1 / 20


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_direct_feedback_is_uniform_within_one_over_the_root_of_the_units(scale):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(400), keras.layers.Dense(900), keras.layers.Dense(10)]
    )
    rule = tfbio.rules.DirectFeedbackAlignment(scale=scale, seed=0)
    rule.build(model, "mean_squared_error")
    assert [b.shape for b in rule.projections] == [(10, 400), (10, 900)]
    for b, units in zip(rule.projections, (400, 900), strict=True):
        b, bound = np.asarray(b), scale / np.sqrt(units)
        assert 0.99 * bound < np.abs(b).max() <= bound * (1 + 1e-6)
        assert abs(b.std() / (bound / np.sqrt(3)) - 1) < 5 / np.sqrt(2 * b.size)
        assert abs(b.mean()) < 5 * bound / np.sqrt(3 * b.size)


def test_seeded_takes_all_that_keras_takes():
    def ones(shape, dtype=None):
        return keras.ops.ones(shape, dtype)

    for identifier in ("he_normal", INITIALIZERS.HeNormal, INITIALIZERS.HeNormal(seed=1), {"class_name": "HeNormal"}):
        np.testing.assert_array_equal(seeded(identifier, 3, 5)((3, 4)), seeded("he_normal", 3, 5)((3, 4)))
    np.testing.assert_array_equal(seeded("zeros", 3, 5)((3, 4)), np.zeros((3, 4)))
    np.testing.assert_array_equal(seeded(ones, 3, 5)((3, 4)), np.ones((3, 4)))


def test_the_kernel_initializer_object_is_left_alone():
    initializer = INITIALIZERS.GlorotUniform(seed=7)
    before = np.asarray(initializer((3, 4)))
    Random(initializer, seed=1).initializer(0)((3, 4))
    np.testing.assert_array_equal(initializer((3, 4)), before)
    assert initializer.get_config()["seed"] == 7
