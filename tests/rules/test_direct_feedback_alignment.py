"""Direct feedback alignment against backpropagation where they agree, NumPy, and each stage's own derivative."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfbio import losses
from tfbio.rules import Backpropagation, DirectFeedbackAlignment, DirectRandomTargetProjection, FeedbackAlignment

RANDOM = np.random.default_rng(0)


def build(rule, model, loss="softmax_cross_entropy"):
    rule.build(model, loss)
    return rule


def compute(rule, x, y, weights=None):
    return [np.asarray(gradient) for gradient in rule.compute(x, y, weights).forward]


def assert_close(actual, expected, rtol=1e-10):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * np.abs(e).max())


def cosine(a, b):
    return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)


def dense(units, activation=None, inputs=5):
    *hidden, last = units
    layers = [L.Dense(n, activation, bias_initializer="random_normal") for n in hidden]
    return keras.Sequential([keras.Input((inputs,)), *layers, L.Dense(last)])


def test_a_deep_linear_network_with_the_product_of_its_kernels_is_backpropagation(float64):
    model = dense((8, 7, 6, 3))
    x, y = RANDOM.normal(size=(6, 5)), RANDOM.normal(size=(6, 3))
    rule = build(DirectFeedbackAlignment(), model, "mean_squared_error")
    exact = compute(build(Backpropagation(), model, "mean_squared_error"), x, y)
    assert not np.allclose(compute(rule, x, y)[0], exact[0], rtol=0.1)
    product = np.eye(3)
    for layer, projection in zip(model.layers[:0:-1], reversed(rule.projections), strict=True):
        product = np.asarray(layer.kernel) @ product
        projection.assign(product.T)
    assert_close(compute(rule, x, y), exact)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "mean_squared_error"])
def test_with_one_hidden_layer_it_is_feedback_alignment(loss, float64):
    model = dense((8, 3), "tanh")
    x, y = RANDOM.normal(size=(6, 5)), np.eye(3)[RANDOM.integers(0, 3, 6)]
    feedback_alignment = build(FeedbackAlignment(last_layer="same"), model, loss)
    rule = build(DirectFeedbackAlignment(), model, loss)
    rule.projections[0].assign(np.asarray(feedback_alignment.feedback_layers[1].pairs[0][1]).T)
    assert_close(compute(rule, x, y), compute(feedback_alignment, x, y))


@pytest.mark.parametrize("weights", [None, RANDOM.uniform(size=5)], ids=["mean", "weights"])
def test_three_dense_layers_against_numpy(weights, float64):
    model = dense((7, 6, 4), "tanh")
    rule = build(DirectFeedbackAlignment(), model)
    x, y = RANDOM.normal(size=(5, 5)), np.array([0, 3, 1, 1, 2])
    w1, c1, w2, c2, w3, c3 = map(np.asarray, model.weights)
    b1, b2 = map(np.asarray, rule.projections)
    h1 = np.tanh(x @ w1 + c1)
    h2 = np.tanh(h1 @ w2 + c2)
    e = np.exp(h2 @ w3 + c3)
    error = (e / e.sum(1, keepdims=True) - np.eye(4)[y]) * (np.full(5, 1 / 5) if weights is None else weights)[:, None]
    delta1, delta2 = error @ b1 * (1 - h1**2), error @ b2 * (1 - h2**2)
    expected = [x.T @ delta1, delta1.sum(0), h1.T @ delta2, delta2.sum(0), h2.T @ error, error.sum(0)]
    assert_close(compute(rule, x, y, weights), expected, 1e-6 if weights is None else 1e-10)


def convolutional():
    x = inputs = keras.Input((8, 8, 3))
    x = L.MaxPooling2D()(L.BatchNormalization()(L.Conv2D(4, 3, padding="same", activation="relu", use_bias=False)(x)))
    x = L.Add()([x, L.Conv2D(4, 3, padding="same", activation="tanh")(L.Conv2D(4, 1)(x))])
    x = L.LayerNormalization()(L.Dense(5, "tanh")(L.Flatten()(x)))
    return keras.Model(inputs, L.Dense(3)(x))


def test_each_stage_has_its_own_derivative_at_its_projected_error(float64):
    """Convolutions, pooling, normalisation, a residual block: whatever is in a stage keeps its exact derivative."""
    model = convolutional()
    rule = build(DirectFeedbackAlignment(), model)
    x, y, weights = RANDOM.normal(size=(4, 8, 8, 3)), np.array([0, 2, 1, 1]), RANDOM.uniform(size=4)
    assert [b.shape for b in rule.projections] == [(3, 64), (3, 64), (3, 5)]

    activations = [tf.constant(x)]
    for stage in rule.stages:
        activations.append(stage(activations[-1], training=True))
    error = weights[:, None] * np.asarray(losses.SoftmaxCrossEntropy().error(y, activations[-1]))
    signals = [
        (error @ np.asarray(b)).reshape(h.shape) for b, h in zip(rule.projections, activations[1:], strict=False)
    ]
    expected = {}
    for stage, below, signal in zip(rule.stages, activations, [*signals, error], strict=False):
        with tf.GradientTape() as tape:
            h = stage(below, training=True)
        values = [variable.value for variable in stage.trainable_variables]
        gradients = tape.gradient(h, values, tf.constant(signal))
        expected.update({id(v): g for v, g in zip(stage.trainable_variables, gradients, strict=True)})
    assert_close(compute(rule, x, y, weights), [expected[id(v)] for v in model.trainable_variables])


def test_outputs_of_several_axes(float64):
    """An autoencoder's error is flattened as its projections are."""
    model = keras.Sequential([keras.Input((4, 4, 2)), L.Conv2D(3, 3, padding="same"), L.Conv2D(2, 1)])
    rule = build(DirectFeedbackAlignment(), model, "mean_squared_error")
    x = RANDOM.normal(size=(5, 4, 4, 2))
    assert rule.projections[0].shape == (32, 48)
    jacobian = np.einsum("ij,kl->ikjl", np.eye(16), np.asarray(model.layers[1].kernel)[0, 0]).reshape(48, 32)
    rule.projections[0].assign(jacobian.T)
    assert_close(compute(rule, x, x), compute(build(Backpropagation(), model, "mean_squared_error"), x, x), 1e-6)


def test_the_first_layer_s_signal_is_unrelated_to_backpropagation_s_at_the_start(float64):
    """Of one example, the cosine of the two gradients is that of two unrelated vectors of n units: σ = 1/√n."""
    units = 1024
    model = dense((units, units, 10), "tanh", inputs=20)
    x, y = RANDOM.normal(size=(1, 20)), np.array([3])
    exact = compute(build(Backpropagation(), model), x, y)
    actual = compute(build(DirectFeedbackAlignment(seed=1), model), x, y)
    for number in (0, 2):
        assert np.linalg.norm(actual[number]) > 0
        assert abs(cosine(actual[number], exact[number])) < 5 / np.sqrt(units)
    assert cosine(actual[4], exact[4]) > 1 - 1e-12


class ConstantError(losses.MeanSquaredError):
    """A loss that is linear in the outputs, so that its error stays whatever the network says."""

    def error(self, y, outputs):
        return tf.cast(y, outputs.dtype) + 0 * outputs

    def per_example(self, y, outputs):
        return tf.reduce_sum(tf.cast(y, outputs.dtype) * outputs, axis=-1)


def test_kernels_above_a_stage_do_not_change_its_signal(float64):
    model = dense((8, 7, 6, 3), "tanh")
    x, error = RANDOM.normal(size=(6, 5)), RANDOM.normal(size=(6, 3))
    rule, exact = (build(r, model, ConstantError()) for r in (DirectFeedbackAlignment(), Backpropagation()))
    before, exact_before = compute(rule, x, error), compute(exact, x, error)
    for layer in model.layers[2:]:
        layer.kernel.assign(RANDOM.normal(size=layer.kernel.shape))
    after, exact_after = compute(rule, x, error), compute(exact, x, error)
    assert_close(after[:4], before[:4], 1e-14)
    assert not np.allclose(exact_after[0], exact_before[0], rtol=0.1)
    assert not np.allclose(after[4], before[4], rtol=0.1)  # this layer's own activation changed


def test_no_error_goes_through_a_stage_to_the_one_below(float64):
    """With projections of zero, all but the last stage stand still."""
    rule = build(DirectFeedbackAlignment(scale=0.0), dense((8, 7, 3), "tanh"))
    gradients = compute(rule, RANDOM.normal(size=(6, 5)), RANDOM.integers(0, 3, 6))
    for gradient in gradients[:4]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    assert np.abs(gradients[4]).max() > 0


def test_the_graph_has_no_backward_chain():
    """Of four dense layers: 4 products forward and 4 for kernels; then 3 down the chain, or 3 short projections."""
    model = dense((8, 7, 6, 3), "tanh")

    def error_products(rule):
        build(rule, model)
        step = tf.function(lambda x, y: [gradient for gradient in rule.compute(x, y).forward], autograph=False)
        graph = step.get_concrete_function(tf.zeros((11, 5)), tf.zeros((11,), tf.int32)).graph
        used, found = [tensor.op for tensor in graph.outputs], set()
        while used:
            if (op := used.pop()) not in found:
                found.add(op)
                used.extend(tensor.op for tensor in op.inputs)
        products = [op for op in found if op.type == "MatMul" and op.outputs[0].shape[0] == 11]
        return sorted((op.inputs[0].shape[1], op.outputs[0].shape[1]) for op in products)

    forward = [(5, 8), (8, 7), (7, 6), (6, 3)]
    assert error_products(Backpropagation()) == sorted([*forward, (3, 6), (6, 7), (7, 8)])
    assert error_products(DirectFeedbackAlignment()) == sorted([*forward, (3, 6), (3, 7), (3, 8)])


def test_cuts():
    model = dense((8, 7, 6, 3), "tanh")
    rule = build(DirectFeedbackAlignment(cuts=[model.layers[1].name]), model)
    assert [stage.output_shape for stage in rule.stages] == [(None, 7), (None, 3)]
    assert rule.variables == rule.projections and [b.shape for b in rule.projections] == [(3, 7)]
    with pytest.raises(ValueError, match="Invalid value for `cuts`"):
        build(DirectFeedbackAlignment(cuts=["nothing"]), model)


def test_a_nested_model_is_cut_like_a_flat_one(float64):
    flat = dense([7, 6, 3], "tanh")
    nested = keras.Sequential([keras.Input((5,)), keras.Sequential(flat.layers[:2]), keras.Sequential(flat.layers[2:])])
    rules = [build(DirectFeedbackAlignment(seed=1), model) for model in (flat, nested)]
    x, y = np.random.default_rng(0).normal(size=(4, 5)), np.array([0, 1, 2, 0])
    first, second = (rule.compute(x, y).forward for rule in rules)
    assert len(rules[1].stages) == 3
    assert [id(v) for v in rules[0].forward_variables] == [id(v) for v in rules[1].forward_variables]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_network_that_can_not_be_cut_is_refused():
    x = keras.Input((5,))
    model = keras.Model(x, L.Concatenate()([L.Dense(2)(L.Dense(3, "tanh")(x)), x]))
    with pytest.raises(ValueError, match="can't be cut"):
        build(DirectFeedbackAlignment(), model)
    build(DirectFeedbackAlignment(), keras.Sequential([keras.Input((5,)), L.Dense(3)]))  # one layer: nothing to cut


def test_the_sign_of_the_error_and_the_target_alone_against_numpy(float64):
    x, y = np.random.default_rng(0).normal(size=(4, 5)), np.array([0, 1, 2, 0])
    for rule in (DirectFeedbackAlignment(error="sign", seed=1), DirectRandomTargetProjection(seed=1)):
        model = dense([7, 3], "tanh")
        rule = build(rule, model)
        hidden, output = model.layers
        h = np.tanh(x @ hidden.kernel.numpy() + hidden.bias.numpy())
        logits = h @ output.kernel.numpy() + output.bias.numpy()
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        sent = np.eye(3)[y]
        if isinstance(rule, DirectRandomTargetProjection):
            error = probabilities - sent
        else:
            error, sent = probabilities - sent, np.sign(probabilities - sent)
        delta = sent @ rule.projections[0].numpy() * (1 - h**2) / 4
        expected = [x.T @ delta, delta.sum(0), h.T @ error / 4, error.sum(0) / 4]
        for gradient, value in zip(rule.compute(x, y).forward, expected, strict=True):
            np.testing.assert_allclose(gradient, value, rtol=1e-6, atol=1e-12)


def test_targets_alone_make_hidden_updates_blind_to_the_output(float64):
    x, y = np.random.default_rng(0).normal(size=(4, 5)), np.array([0, 1, 2, 0])
    model = dense([7, 6, 3], "tanh")
    rule = build(DirectRandomTargetProjection(seed=1), model)
    before = [np.asarray(gradient) for gradient in rule.compute(x, y).forward]
    model.layers[-1].kernel.assign(3 * model.layers[-1].kernel + 1)
    after = [np.asarray(gradient) for gradient in rule.compute(x, y).forward]
    for a, b in zip(before[:4], after[:4], strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(before[4] - after[4]).max() > 1e-3


def test_another_error_is_refused():
    with pytest.raises(ValueError, match="'plain' or 'sign'"):
        DirectFeedbackAlignment(error="square")
