"""Direct difference target propagation against NumPy, and against the identities that its equations imply."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

from tfbio import rules

spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("numpy_target_propagation.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
dense, convolutional, assert_close = reference.dense, reference.convolutional, reference.assert_close

RANDOM = np.random.default_rng(0)


def build(model, loss="softmax_cross_entropy", **options):
    rule = rules.DirectDifferenceTargetPropagation(**options)
    rule.build(model, loss)
    return rule


def kernel(rule, number):
    """The variable of Q from the output to the input of stage `number`."""
    (q,) = rule.inverses[number].variables
    return q


class Mirrored:
    """The NumPy counterpart of a built rule, from the equations; layers of the reference, with shared weights."""

    def __init__(self, rule):
        self.rule, self.layers, shape = rule, [], rule.model.input_shape[1:]
        for stage in rule.stages:
            layer = next(layer for layer in stage.layers if layer.weights)
            below, activation = int(np.prod(shape)), None if stage is rule.stages[-1] else "tanh"
            if isinstance(layer, L.Conv2D):
                arguments = (layer.kernel_size[0], layer.strides[0], layer.padding, layer.filters)
                *triplets, shape = reference.convolution_triplets(shape, *arguments)
                channels = layer.filters
            else:
                triplets, shape, channels = reference.dense_triplets(below, layer.units), (layer.units,), layer.units
            self.layers.append(reference.Layer(triplets, below, int(np.prod(shape)), channels, activation))
        self.read()

    def read(self):
        weights = iter([variable.numpy() for variable in self.rule.model.variables])
        for layer in self.layers:
            layer.kernel, layer.bias = next(weights), next(weights)
        self.q = [None if g is None else g.variables[0].numpy() for g in self.rule.inverses]

    def chain(self, h, first=0):
        result = [h]
        for layer in self.layers[first:]:
            result.append(layer(result[-1]))
        return result

    def targets(self, x, target, predict):
        h = self.chain(x)
        step = -self.rule.target_step * (predict(h[-1]) - target)
        return [(h[n], h[n] + step @ self.q[n]) for n in range(1, len(self.layers))] + [(h[-1], h[-1] + step)]

    def gradients(self, x, target, weights, noise, predict):
        h, w, forward, feedback = self.chain(x), weights[:, None], [], []

        def units(a):
            return 1 if self.rule.reduction == "sum" else a.shape[1]

        for number, (y, t) in enumerate(self.targets(x, target, predict)):
            forward += self.layers[number].gradients(h[number], y, 2 * w * (y - t) / units(y))
        for number in range(1, len(self.layers)):
            sigma, xi, q = self.rule.noise, noise[number], self.q[number]
            moved = self.chain(h[number] + sigma * xi, number)[-1] - h[-1]
            wrong = moved @ q - sigma * xi
            gradient = 2 / sigma**2 * moved.T @ (w * wrong) / units(xi)
            feedback.append(gradient + self.rule.feedback_decay * weights.sum() * q)
        return forward, feedback


NETS = {
    "3 stages": (lambda: dense(4, 7, 5, 3), "sum"),
    "5 stages": (lambda: dense(6, 5, 5, 8, 4, 3), "mean"),
    "convolutions": (convolutional, "sum"),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
def test_targets_and_gradients_are_numpy_s_for_ten_steps(net, loss, float64, monkeypatch):
    make, reduction = NETS[net]
    model = make()
    rule = build(model, loss, noise=0.3, target_step=0.2, feedback_decay=0.05, reduction=reduction)
    numpy, noise = Mirrored(rule), {}
    predict = reference.softmax if loss == "softmax_cross_entropy" else lambda a: a
    monkeypatch.setattr(rule, "_draw", lambda number, like, *_: noise[number])
    for _ in range(10):
        x, weights = RANDOM.normal(size=(6, *model.input_shape[1:])), RANDOM.uniform(0.1, 1, 6)
        target = np.eye(3)[RANDOM.integers(0, 3, 6)]
        y = target.argmax(1) if loss == "softmax_cross_entropy" else target
        flat = x.reshape(6, -1)
        noise |= {n: RANDOM.normal(size=(6, *g.output_shape[1:])) for n, g in enumerate(rule.inverses) if g}
        for pair, expected in zip(rule.targets(x, y), numpy.targets(flat, target, predict), strict=True):
            assert_close(pair, expected)
        update = rule.compute(x, y, weights)
        drawn = {number: each.reshape(6, -1) for number, each in noise.items()}
        forward, feedback = numpy.gradients(flat, target, weights, drawn, predict)
        assert_close([gradient for gradient in update.forward], forward)
        assert_close([gradient for gradient in update.feedback], feedback)
        variables = [*rule.forward_variables, *rule.feedback_variables]
        for gradient, variable in zip([*update.forward, *update.feedback], variables, strict=True):
            variable.assign_sub(0.1 * gradient)
        numpy.read()


def test_with_transposed_products_of_weights_a_linear_net_is_backpropagation(float64):
    model = dense(4, 7, 5, 6, 3, activation=None)
    rule, exact = build(model, target_step=0.05), rules.Backpropagation()
    exact.build(model, "softmax_cross_entropy")
    kernels = [layer.kernel.numpy() for layer in model.layers]
    for number in range(1, 4):
        kernel(rule, number).assign(np.linalg.multi_dot([*kernels[number:], np.eye(3)]).T)
    x, y, weights = RANDOM.normal(size=(6, 4)), RANDOM.integers(0, 3, 6), RANDOM.uniform(0.1, 1, 6)
    theirs = [2 * 0.05 * np.asarray(gradient) for gradient in exact.compute(x, y, weights).forward]
    assert_close([gradient for gradient in rule.compute(x, y, weights).forward], theirs)


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_the_best_feedback_is_the_damped_pseudo_inverse(decay, float64, monkeypatch):
    model = dense(4, 6, 5, 3, activation=None)
    rule = build(model, noise=0.7, feedback_decay=decay)
    white = np.linalg.qr(RANDOM.normal(size=(12, 12)))[0] * np.sqrt(12)  # exactly, not on average
    monkeypatch.setattr(rule, "_draw", lambda number, like, *_: white[:, : like.shape[1]])
    kernels = [layer.kernel.numpy() for layer in model.layers]
    best = {}
    for number in (1, 2):
        product = np.linalg.multi_dot([*kernels[number:], np.eye(3)])
        best[number] = np.linalg.inv(product.T @ product + decay / 2 * np.eye(3)) @ product.T
        if not decay:
            np.testing.assert_allclose(best[number], np.linalg.pinv(product), atol=1e-10)
    x, y = RANDOM.normal(size=(12, 4)), RANDOM.integers(0, 3, 12)
    for factor, wrong in ((1.0, False), (1.01, True)):
        for number, value in best.items():
            kernel(rule, number).assign(factor * value)
        for gradient in rule.compute(x, y).feedback:
            assert (np.abs(gradient).max() > 1e-3) == wrong
            assert wrong or np.abs(gradient).max() < 1e-6  # a weight of 1/12 is rounded to float32


def test_each_feedback_moves_its_own_stage_only(float64):
    model = dense(4, 7, 5, 6, 3)
    rule = build(model)
    x, y = RANDOM.normal(size=(6, 4)), RANDOM.integers(0, 3, 6)
    before = rule.compute(x, y)
    kernel(rule, 2).assign_add(np.ones((3, 5)))  # teaches stage 1, counted from 0
    after = rule.compute(x, y)
    changed = [not np.array_equal(a, b) for a, b in zip(before.forward, after.forward, strict=True)]
    assert changed == [False, False, True, True, False, False, False, False]
    changed = [not np.array_equal(a, b) for a, b in zip(before.feedback, after.feedback, strict=True)]
    assert changed == [False, True, False]


def test_a_step_does_not_change_what_feedback_learns(float64):
    model = dense(4, 7, 5, 3)
    small, large = build(model, target_step=0.1), build(model, target_step=0.4)
    for mine, theirs in zip(large.variables, small.variables, strict=True):
        mine.assign(theirs)
    x, y = RANDOM.normal(size=(6, 4)), RANDOM.integers(0, 3, 6)
    one, other = small.compute(x, y), large.compute(x, y)
    assert_close([4 * gradient for gradient in one.forward], [gradient for gradient in other.forward])
    assert_close([gradient for gradient in one.feedback], [gradient for gradient in other.feedback])


def test_feedback_of_your_own(float64):
    def nonlinear(path, activation):
        return keras.Sequential([keras.Input((3,)), L.Dense(4, "tanh"), L.Dense(path.input_shape[-1])])

    model = dense(4, 7, 5, 3)
    rule = build(model, inverse=nonlinear)
    x, y = RANDOM.normal(size=(6, 4)), RANDOM.integers(0, 3, 6)
    *hidden, (logits, top) = rule.targets(x, y)
    for (h, t), g in zip(hidden, rule.inverses[1:], strict=True):
        assert_close([t - h], [g(top) - g(logits)])


@pytest.mark.parametrize("kind", ["ddtp", "ldrl"])
def test_feedback_does_not_learn_from_the_difference_of_two_draws_of_dropout(kind, float64):
    def feedback_gradients(noise):
        keras.utils.set_random_seed(0)
        layers = [L.Dense(7, "tanh"), L.Dropout(0.5, seed=1), L.Dense(5, "tanh"), L.Dropout(0.5, seed=2), L.Dense(3)]
        rule = rules.get({"class_name": kind, "config": {"noise": noise, "seed": 3}})
        rule.build(keras.Sequential([keras.Input((4,)), *layers]), "softmax_cross_entropy")
        return [gradient for gradient in rule.compute(x, y).feedback]

    x, y = RANDOM.normal(size=(6, 4)), RANDOM.integers(0, 3, 6)
    scale = 1 if kind == "ddtp" else 100  # the loss of ldrl is of the second order in the noise
    for a, b in zip(feedback_gradients(1e-3), feedback_gradients(1e-4), strict=True):
        np.testing.assert_allclose(a, scale * b, rtol=0.05, atol=0.01 * np.abs(a).max())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"noise": 0.0}, "needs some"), ({"noise": (0.1, 0.0, 0.1)}, "needs some"), ({"feedback_decay": -1}, "decay")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(dense(4, 7, 5, 3), **options)
