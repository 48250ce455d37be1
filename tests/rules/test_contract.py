"""What every rule must keep: linearity in the weights, shards that sum to the whole, and clear refusals."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio

RULES = {
    "bp": lambda: tfbio.rules.Backpropagation(),
    "fa": lambda: tfbio.rules.FeedbackAlignment(seed=1),
    "fa same": lambda: tfbio.rules.FeedbackAlignment(seed=1, last_layer="same"),
    "fa signed": lambda: tfbio.rules.FeedbackAlignment(seed=1, signed_init=True),
    "usf": lambda: tfbio.rules.SignSymmetry("uniform", seed=1),
    "brsf": lambda: tfbio.rules.SignSymmetry("batch", seed=1),
    "frsf": lambda: tfbio.rules.SignSymmetry("fixed", seed=1),
    "kp": lambda: tfbio.rules.KolenPollack(seed=1),
    "wm": lambda: tfbio.rules.WeightMirror(seed=1, interval=2),
    "dfa": lambda: tfbio.rules.DirectFeedbackAlignment(seed=1),
    "dfa shared": lambda: tfbio.rules.DirectFeedbackAlignment(seed=1, storage="shared"),
    "dfa regenerated": lambda: tfbio.rules.DirectFeedbackAlignment(seed=1, storage="regenerated"),
    "dfa broadcast": lambda: tfbio.rules.DirectFeedbackAlignment(seed=1, storage="broadcast"),
    "drtp": lambda: tfbio.rules.DirectRandomTargetProjection(seed=1),
    "tp": lambda: quietly(tfbio.rules.TargetPropagation()),
    "dtp": lambda: quietly(tfbio.rules.DifferenceTargetPropagation(reduction="mean")),
    "sdtp": lambda: quietly(tfbio.rules.SimplifiedDifferenceTargetPropagation()),
    "ldrl": lambda: quietly(tfbio.rules.LocalDifferenceTargetPropagation(noise=0.5)),
    "ao_sdtp": lambda: quietly(tfbio.rules.AuxiliaryOutputSDTP(auxiliary_units=4)),
    "ddtp": lambda: quietly(tfbio.rules.DirectDifferenceTargetPropagation(noise=0.5, feedback_decay=0.1)),
}


def quietly(rule):
    """The rule with a function of the activation for noise: the same in every shard, with XLA and without."""
    rule._draw = lambda number, like, *_: tf.sin(5 * like)
    return rule


ALL = pytest.mark.parametrize("make", RULES.values(), ids=RULES)
LEARNED = (
    "WeightMirror",
    "TargetPropagation",
    "DifferenceTargetPropagation",
    "SimplifiedDifferenceTargetPropagation",
)
LEARNED += ("AuxiliaryOutputSDTP", "DirectDifferenceTargetPropagation", "LocalDifferenceTargetPropagation")
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(6, 6, 6, 2)), RANDOM.integers(0, 3, 6)
WEIGHTS = RANDOM.uniform(0.1, 1, 6)


def test_every_rule_is_here():
    bases = (tfbio.rules.LearningRule, tfbio.rules.FeedbackRule)
    public = [getattr(tfbio.rules, name) for name in tfbio.rules.__all__]
    rules = {each for each in public if isinstance(each, type) and issubclass(each, bases[0])} - set(bases)
    assert {type(make()) for make in RULES.values()} == rules


def network(regularizer=None, norm=False):
    layers = [L.Conv2D(3, 3, activation="tanh", kernel_regularizer=regularizer), *([L.BatchNormalization()] * norm)]
    layers += [L.Flatten(), L.Dense(5, "tanh", bias_regularizer=regularizer, bias_initializer="ones")]
    return keras.Sequential([keras.Input((6, 6, 2)), *layers, L.Dense(3, kernel_regularizer=regularizer)])


def built(make, model, loss="softmax_cross_entropy"):
    rule = make()
    rule.build(model, loss)
    return rule


@functools.cache
def shared(make, regularizer=None):
    """A built rule in float64 for tests that change nothing of it, or put it back."""
    assert keras.config.floatx() == "float64"
    keras.utils.set_random_seed(0)
    return built(make, network(regularizer))


def gradients(rule, x, y, weights=None):
    return [np.asarray(gradient) for gradient in rule.compute(x, y, weights).forward]


def everything(rule, x, y, weights=None):
    """Feedback's updates too."""
    return with_loss(rule, x, y, weights)[0]


def with_loss(rule, x, y, weights=None):
    update = rule.compute(x, y, weights)
    return [tf.convert_to_tensor(gradient) for gradient in (*update.forward, *update.feedback)], update.loss


def assert_close(actual, expected, rtol=1e-10):
    for a, e in zip(map(np.asarray, actual), map(np.asarray, expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * max(np.abs(e).max(), 1e-12))


@ALL
def test_an_update_has_one_gradient_a_variable(make, float64):
    rule = shared(make, "l2")
    model, update = rule.model, rule.compute(X, Y)
    assert [id(v) for v in rule.forward_variables] == [id(v) for v in model.trainable_variables]
    for gradient, variable in zip(update.forward, rule.forward_variables, strict=True):
        assert tf.is_tensor(gradient) and gradient.shape == variable.shape and gradient.dtype == variable.dtype
        assert np.abs(gradient).max() > 0
    np.testing.assert_allclose(update.outputs, model(X), rtol=1e-12)
    penalty = sum(float(loss) for loss in model.losses)
    error = np.mean(tfbio.losses.SoftmaxCrossEntropy().per_example(Y, update.outputs))
    np.testing.assert_allclose(update.loss, error + penalty, rtol=1e-6)
    assert [id(v) for v in rule.variables if v.trainable] == [id(v) for v in rule.feedback_variables]
    assert bool(rule.feedback_variables) == (type(rule).__name__ in LEARNED)
    for gradient, variable in zip(update.feedback, rule.feedback_variables, strict=True):
        assert tf.is_tensor(gradient) and gradient.shape == variable.shape and gradient.dtype == variable.dtype
        assert np.abs(gradient).max() > 0
    assert not {id(v) for v in rule.variables} & {id(v) for v in model.variables}


@ALL
@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_updates_are_linear_in_the_weights(make, regularizer, float64):
    rule = shared(make, regularizer)
    a, b = WEIGHTS, WEIGHTS[::-1] ** 2
    updates, losses = zip(*(with_loss(rule, X, Y, weights) for weights in (a, b, 2 * a + 3 * b)), strict=True)
    assert_close(updates[2], [2 * u + 3 * v for u, v in zip(*updates[:2], strict=True)], 1e-9)
    np.testing.assert_allclose(2 * losses[0] + 3 * losses[1], losses[2], rtol=1e-9)


@pytest.mark.parametrize("make", [RULES[name] for name in ("bp", "fa", "dfa", "dtp")], ids=("bp", "fa", "dfa", "dtp"))
def test_penalties_on_weights_and_on_outputs_add_up_under_mixed_precision(make):
    losses = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(0)
        hidden = L.Dense(5, "tanh", kernel_regularizer="l2", activity_regularizer="l2", dtype=policy)
        model = keras.Sequential([keras.Input((6, 6, 2)), L.Flatten(), hidden, L.Dense(3, dtype=policy)])
        losses.append(float(built(make, model).compute(X, Y).loss))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


@pytest.mark.parametrize("name", ["dfa", "drtp", "dtp", "sdtp", "ddtp"])
def test_an_embedding_learns_without_the_kernels_above(name, float64):
    """Embeddings of zeros: what is above them has the same activations, whatever the first kernel is."""
    layers = [L.Embedding(20, 6, embeddings_initializer="zeros"), L.GlobalAveragePooling1D()]
    layers += [L.Dense(7, "tanh", bias_initializer="random_normal"), L.Dense(3)]
    model = keras.Sequential([keras.Input((4,), dtype="int32"), *layers])
    rule, x = built(RULES[name], model), np.arange(24).reshape(6, 4) % 20
    before = gradients(rule, x, Y)[0]
    layers[2].kernel.assign(-2 * layers[2].kernel)
    assert np.abs(before).max() > 0
    np.testing.assert_allclose(gradients(rule, x, Y)[0], before, rtol=1e-12)


@ALL
def test_no_weights_means_the_mean(make, float64):
    rule = shared(make, "l2")
    (default, loss), (expected, mean) = (with_loss(rule, X, Y, weights) for weights in (None, np.full(6, 1 / 6)))
    assert_close(default, expected, 1e-6)  # the default is in float32
    assert float(loss) == pytest.approx(float(mean), rel=1e-6)


@ALL
@pytest.mark.parametrize("cut", [3, 1])
def test_shards_with_global_weights_sum_to_the_whole(make, cut, float64):
    rule = shared(make, "l2")
    weights = np.full(6, 1 / 6)
    shards = (slice(cut), slice(cut, None), slice(None))
    (*parts, whole), (*losses, loss) = zip(*(with_loss(rule, X[s], Y[s], weights[s]) for s in shards), strict=True)
    assert_close([sum(gradients) for gradients in zip(*parts, strict=True)], whole)
    np.testing.assert_allclose(sum(losses), loss, rtol=1e-10)


@ALL
def test_examples_of_weight_zero_do_not_matter(make, float64):
    rule = shared(make, "l2")
    padded = np.concatenate([X[:4], 100 * X[4:]])
    weights = np.array([0.25] * 4 + [0.0] * 2)
    assert_close(everything(rule, padded, Y, weights), everything(rule, X[:4], Y[:4], weights[:4]))


@ALL
def test_regularizers_add_their_own_gradient(make, float64):
    rule, decayed = shared(make), network(keras.regularizers.L2(0.1))
    plain, weights = rule.model, WEIGHTS / 2
    decayed.set_weights(plain.get_weights())
    other = built(make, decayed)
    expected = [
        gradient + regularized * 2 * 0.1 * weights.sum() * np.asarray(variable)
        for gradient, variable, regularized in zip(
            gradients(rule, X, Y, weights), plain.weights, [1, 0, 0, 1, 1, 0], strict=True
        )
    ]
    for variable, value in zip(other.variables, rule.variables, strict=True):
        variable.assign(value)
    assert_close(gradients(other, X, Y, weights), expected, 1e-6)  # Keras rounds the factor to float32


@ALL
def test_the_penalty_of_a_layer_used_twice_counts_once(make, float64):
    shared = L.Dense(4, kernel_regularizer="l2", kernel_initializer="zeros", use_bias=False)
    model = keras.Sequential([keras.Input((4,)), shared, L.Activation("tanh"), shared, L.Dense(3)])
    shared.kernel.assign(np.eye(4))
    rule = built(make, model, "mean_squared_error")
    update = rule.compute(np.zeros((2, 4)), np.zeros((2, 3)))  # nothing but the penalty is left
    np.testing.assert_allclose(update.loss, 4 * 0.01, rtol=1e-6)
    np.testing.assert_allclose(update.forward[0], 2 * 0.01 * np.eye(4), rtol=1e-6)


@ALL
def test_the_penalty_on_activations_counts(make, float64):
    def loss_and_gradient(regularizer):
        keras.utils.set_random_seed(0)
        layers = [L.Dense(4, "tanh", activity_regularizer=regularizer), L.Dense(3)]
        model = keras.Sequential([keras.Input((72,)), *layers])
        update = built(make, model).compute(X.reshape(6, -1), Y)
        hidden = np.asarray(model.layers[0](X.reshape(6, -1)))
        return float(update.loss), np.asarray(update.forward[0]), hidden

    plain, penalised = loss_and_gradient(None), loss_and_gradient(keras.regularizers.L2(0.5))
    hidden = plain[2]
    assert penalised[0] - plain[0] == pytest.approx(0.5 * (hidden**2).sum() / 6, rel=1e-5)
    expected = X.reshape(6, -1).T @ (2 * 0.5 * hidden * (1 - hidden**2) / 6)
    np.testing.assert_allclose(penalised[1] - plain[1], expected, rtol=1e-5, atol=1e-7)


@ALL
def test_running_statistics_move_as_keras_moves_them(make, float64):
    model = network(norm=True)
    norm = model.layers[1]
    before = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    hidden = np.asarray(model.layers[0](X))
    built(make, model).compute(X, Y)
    for old, new, now in zip(
        before, (norm.moving_mean, norm.moving_variance), (hidden.mean((0, 1, 2)), hidden.var((0, 1, 2))), strict=True
    ):
        np.testing.assert_allclose(new, norm.momentum * old + (1 - norm.momentum) * now, rtol=1e-9, atol=1e-12)


@ALL
def test_compute_writes_nothing_else(make, float64):
    rule = shared(make, "l2")
    variables = [*rule.model.variables, *rule.variables, rule.step]
    before = [v.numpy() for v in variables]
    rule.compute(X, Y)
    for value, variable in zip(before, variables, strict=True):
        np.testing.assert_array_equal(variable, value)


@ALL
def test_frozen_layers_still_carry_the_signal(make, float64):
    rule = shared(make)
    model, expected = rule.model, gradients(rule, X, Y)
    model.layers[2].trainable = False  # the hidden dense layer
    try:
        update = rule.compute(X, Y)
        assert [id(v) for v in rule.forward_variables] == [
            id(v) for v in [*model.layers[0].weights, *model.layers[3].weights]
        ]
    finally:
        model.layers[2].trainable = True
    assert_close(update.forward, expected[:2] + expected[4:])


# XLA takes a second for each: here one rule of a kind, all of them in tests/stress/test_every_rule.py.
COMPILED = ("bp", "fa", "brsf", "wm", "dfa regenerated", "dtp", "ao_sdtp", "ldrl", "ddtp")
PROGRAMS = {f"graph-{name}": (make, False) for name, make in RULES.items()}
PROGRAMS |= {f"xla-{name}": (RULES[name], True) for name in COMPILED}


@pytest.mark.parametrize(("make", "jit_compile"), PROGRAMS.values(), ids=PROGRAMS)
def test_graphs_and_xla_equal_eager(make, jit_compile, float64):
    rule = shared(make, "l2")

    @tf.function(jit_compile=jit_compile, autograph=False)
    def compiled(x, y, weights):
        return everything(rule, x, y, weights)

    assert_close(compiled(X, Y, WEIGHTS), everything(rule, X, Y, WEIGHTS), 1e-9)


@functools.cache
def in_float32(make):
    """A rule and its update."""
    assert keras.config.dtype_policy().name == "float32"
    keras.utils.set_random_seed(0)
    rule = built(make, network("l2"))
    return rule, everything(rule, X.astype("float32"), Y)


@ALL
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_near_float32(make, policy):
    reference, others = in_float32(make)
    keras.config.set_dtype_policy(policy)
    model = network("l2")
    model.set_weights(reference.model.get_weights())
    rule = built(make, model)
    for ours, theirs in zip(rule.variables, reference.variables, strict=True):
        assert ours.dtype == theirs.dtype
        ours.assign(theirs)
    update = rule.compute(X.astype("float32"), Y)
    assert update.loss.dtype == tf.float32 and update.outputs.dtype == model.compute_dtype
    epsilon = 2.0**-8 if policy == "mixed_bfloat16" else 2.0**-11
    variables = [*rule.forward_variables, *rule.feedback_variables]
    for gradient, variable, other in zip([*update.forward, *update.feedback], variables, others, strict=True):
        assert gradient.dtype == variable.dtype == "float32"
        assert np.linalg.norm(gradient - other) < 10 * epsilon * np.linalg.norm(other)
