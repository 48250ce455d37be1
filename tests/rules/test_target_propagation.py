"""The target-propagation family against NumPy, and against the identities that its equations imply."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio import rules
from tfbio.analysis import report
from tfbio.analysis.alignment import alignment
from tfbio.experiments import config
from tfbio.layers import LocallyConnected2D
from tfbio.rules.base import Batch

spec = importlib.util.spec_from_file_location("reference", Path(__file__).with_name("numpy_target_propagation.py"))
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
dense, convolutional, assert_close = reference.dense, reference.convolutional, reference.assert_close

FAMILY = ("tp", "dtp", "sdtp", "ao_sdtp", "ldrl")
OWN = {"dtp": {"target_step": 0.3}, "ao_sdtp": {"auxiliary_units": 7}, "ldrl": {"target_step": 0.3}}
RANDOM = np.random.default_rng(0)


def locally_connected():
    local = [
        LocallyConnected2D(3, 3, 2, activation="tanh"),
        LocallyConnected2D(4, 2, padding="valid", activation="tanh"),
    ]
    return keras.Sequential([keras.Input((5, 6, 2)), *local, L.Flatten(), L.Dense(5, "tanh"), L.Dense(3)])


def build(kind, model, loss="softmax_cross_entropy", **options):
    rule = rules.get({"class_name": kind, "config": {**OWN.get(kind, {}), **options}})
    rule.build(model, loss)
    return rule


def mirrored(kind, rule, **options):
    """The NumPy counterpart of a built rule, with copies of its weights."""
    layers, inverses, shape = [], [], rule.model.input_shape[1:]
    count = len(rule.stages)
    for number, (stage, g) in enumerate(zip(rule.stages, rule.inverses, strict=True)):
        layer = next(layer for layer in stage.layers if layer.weights)
        below, activation = int(np.prod(shape)), "tanh" if number < count - 1 else None
        if isinstance(layer, L.Conv2D | LocallyConnected2D):
            arguments = (layer.kernel_size[0], layer.strides[0], layer.padding, layer.filters)
            shared = isinstance(layer, L.Conv2D)
            i, o, k, shape = reference.convolution_triplets(shape, *arguments, shared)
            channels, back = layer.filters if shared else int(np.prod(shape)), (o, i, k)
        else:
            extra = rule.auxiliary_units if kind == "ao_sdtp" and number == count - 1 else 0
            i, o, k = reference.dense_triplets(below, layer.units)
            shape, channels, back = (layer.units,), layer.units, reference.dense_triplets(layer.units + extra, below)
        above = int(np.prod(shape))
        layers.append(reference.Layer((i, o, k), below, above, channels, activation))
        layers[-1].kernel, layers[-1].bias = layer.kernel.numpy(), layer.bias.numpy().ravel()
        inverses.append(None)
        if g is not None:
            kernel, bias = (w.numpy() for w in g.weights)
            inverses[-1] = reference.Layer(back, int(np.prod(g.input_shape[1:])), below, bias.size, "tanh")
            inverses[-1].kernel, inverses[-1].bias = kernel, bias.ravel()
    projection = rule.projection.numpy() if kind == "ao_sdtp" else None
    return reference.Network(kind, layers, inverses, projection, **options)


def batch(model, examples=6):
    return RANDOM.normal(size=(examples, *model.input_shape[1:])), RANDOM.integers(0, 3, examples)


def flat(x):
    return x.reshape(len(x), -1)


NETS = {
    "3 stages": lambda: dense(4, 7, 5, 3),
    "4 stages": lambda: dense(6, 5, 5, 8, 3),
    "6 stages": lambda: dense(4, 9, 6, 7, 5, 6, 3),
    "convolutions": convolutional,
    "locally connected": locally_connected,
}
CASES = [
    (kind, net, options)
    for number, (kind, net) in enumerate((kind, net) for kind in FAMILY for net in NETS)
    for options in [
        {
            "reduction": ("sum", "mean")[number % 2],
            "reconstruction": "ldrl" if kind == "ldrl" else ("preserve", "denoise")[number // 2 % 2],
            **({"target_reduction": ("example", "batch")[number % 2]} if kind == "dtp" else {}),
            **({"target_step": (1.0, 0.3)[number % 2]} if "sdtp" in kind else {}),
        }
    ]
]


@pytest.mark.parametrize(("kind", "net", "options"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_targets_and_gradients_are_numpy_s_for_six_steps(kind, net, options, float64, monkeypatch):
    model = NETS[net]()
    rule = build(kind, model, noise=0.3, **options)
    numpy = mirrored(kind, rule, noise=0.3, **OWN.get(kind, {}), **options)
    noise = {}
    monkeypatch.setattr(rule, "_draw", lambda number, like, *_: noise[number])
    for _ in range(6):
        x, y = batch(model)
        onehot, weights = np.eye(3)[y], RANDOM.uniform(0.1, 1, len(x))
        inputs = numpy.forward(flat(x))
        for number, g in enumerate(rule.inverses):
            if g is not None:
                noise[number] = RANDOM.normal(size=(len(x), *g.output_shape[1:]))
                noise[number + len(rule.stages)] = RANDOM.normal(size=(len(x), *g.input_shape[1:]))
        for pair, expected in zip(rule.targets(x, y), numpy.targets(flat(x), onehot), strict=True):
            assert_close(pair, expected)
        update = rule.compute(x, y, weights)
        forward, feedback = numpy.gradients(flat(x), onehot, weights, {n: flat(e) for n, e in noise.items()})
        assert_close([gradient for gradient in update.forward], forward)
        assert_close([gradient for gradient in update.feedback], feedback)
        variables = [*rule.forward_variables, *rule.feedback_variables]
        for gradient, variable in zip([*update.forward, *update.feedback], variables, strict=True):
            variable.assign_sub(0.1 * gradient)
        for number, layer in enumerate([*numpy.layers, *filter(None, numpy.inverses)]):
            gradients = (forward + feedback)[2 * number : 2 * number + 2]
            layer.kernel, layer.bias = layer.kernel - 0.1 * gradients[0], layer.bias - 0.1 * gradients[1]
        assert np.abs(inputs[1]).max() < 1  # the reference itself is a tanh network


@pytest.mark.parametrize("kind", FAMILY)
@pytest.mark.parametrize("net", ["4 stages", "locally connected"])
def test_diagnostics_are_numpy_s(kind, net, float64):
    """Directly and through the callback, which measures with all its other figures."""
    model = NETS[net]()
    rule, (x, y) = build(kind, model), batch(model, 20)
    numpy = mirrored(kind, rule, **OWN.get(kind, {}), target_reduction="example")
    expected = numpy.diagnostics(flat(x), np.eye(3)[y])
    layers = [layer.name for layer in model.layers if layer.weights]
    expected = {f"{kind}/{layers[number]}": value for (kind, number), value in expected.items()}
    figures = {name: float(value) for name, value in rule.diagnostics(x, y).items()}
    assert figures == pytest.approx(expected, rel=1e-9) and len(figures) in (12, 13)
    if net == "4 stages":
        measured = alignment(rule, x, y)
        assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert 0 < np.mean([value for name, value in figures.items() if name.startswith("closer/")]) <= 1
    assert min(value for name, value in figures.items() if not name.startswith("closer/")) > 1e-3


def test_diagnostics_reach_every_file_of_a_run(tmp_path):
    params = ["train.epochs=2", "train.alignment_steps=10", "train.evaluate_on=()", "train.jit_compile=False"]
    result = config.run_train(["runs/digits.gin", "rules/dtp.gin"], params, str(tmp_path), quiet=True)
    names = {"reconstruction/dense_2", "target_distance/dense_1", "target_approach/logits", "closer/dense_2"}
    metrics, steps = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "alignment.jsonl")
    )
    assert [line["step"] for line in steps] == [10, 20, 30, 40]
    for figures in (*metrics, *steps, result["alignment"]):
        assert names <= set(figures)
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    tags = {v.tag for event in tf.compat.v1.train.summary_iterator(str(events)) for v in event.summary.value}
    assert names <= tags
    report(tmp_path)
    assert (tmp_path / "alignment_curves.png").stat().st_size > 10_000


def test_regression_is_numpy_s(float64, monkeypatch):
    for kind in FAMILY:
        model = dense(4, 6, 3, 6, 4)
        options = {"reduction": "sum", "reconstruction": "denoise"}
        rule = build(kind, model, "mean_squared_error", noise=0.2, **options)
        more = {"target_reduction": "example"} if kind == "dtp" else {}
        numpy = mirrored(kind, rule, noise=0.2, loss="mean_squared_error", **OWN.get(kind, {}), **options, **more)
        x = RANDOM.normal(size=(5, 4))
        noise = {n: RANDOM.normal(size=(5, *g.output_shape[1:])) for n, g in enumerate(rule.inverses) if g}
        monkeypatch.setattr(rule, "_draw", lambda number, like, *_, noise=noise: noise[number])
        update = rule.compute(x, x, np.full(5, 0.2))
        forward, feedback = numpy.gradients(x, x, np.full(5, 0.2), noise)
        assert_close([g for g in update.forward], forward)
        assert_close([g for g in update.feedback], feedback)


def test_without_auxiliary_units_it_is_sdtp(float64):
    model = dense(4, 7, 5, 3)
    ao, sdtp = build("ao_sdtp", model, auxiliary_units=0), build("sdtp", model)
    assert ao.projection.shape == (5, 0)
    for mine, theirs in zip(ao.feedback_variables, sdtp.feedback_variables, strict=True):
        mine.assign(theirs)
    x, y = batch(model)
    one, other = ao.compute(x, y), sdtp.compute(x, y)
    for group in ("forward", "feedback"):
        for a, b in zip(getattr(one, group), getattr(other, group), strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_weights_on_the_auxiliary_units_it_is_sdtp_too(float64):
    model = dense(4, 7, 5, 3)
    ao, sdtp = build("ao_sdtp", model), build("sdtp", model)
    for mine, theirs in zip(ao.feedback_variables, sdtp.feedback_variables, strict=True):
        extra = mine.shape[0] - theirs.shape[0]
        mine.assign(np.concatenate([theirs.numpy(), np.zeros((extra, *mine.shape[1:]))]))
    x, y = batch(model)
    for a, b in zip(ao.targets(x, y), sdtp.targets(x, y), strict=True):
        assert_close(a, b, 1e-12)


class Linear(keras.layers.Layer):
    """u → (u ⊙ s'(a)) Wᵀ for a stage s(h W + b) at the activation `h` it is told: the transposed Jacobian."""

    def __init__(self, stage, **kwargs):
        super().__init__(**kwargs)
        self.dense = stage.layers[-1]
        self.activation = self.h = None

    def call(self, u):
        slope = 1 - tf.square(self.h) if self.dense.activation is keras.activations.tanh else 1.0
        return tf.matmul(u * slope, self.dense.kernel.value, transpose_b=True)


@pytest.mark.parametrize("kind", ["dtp", "ldrl"])
def test_with_the_transposed_jacobian_it_is_backpropagation(kind, float64):
    model = dense(4, 7, 5, 6, 3)
    maps = []

    def transposed(stage, activation):
        inputs = keras.Input(stage.output_shape[1:], dtype="float64")
        maps.append(Linear(stage))
        maps[-1].h = tf.zeros((1, stage.output_shape[-1]), "float64")
        return keras.Model(inputs, maps[-1](inputs))

    step = 0.05
    rule, exact = build(kind, model, inverse=transposed, target_step=step), build_exact(model)
    x, y = batch(model)
    weights = RANDOM.uniform(0.1, 1, len(x))
    for each, (h, _) in zip(maps, rule.targets(x, y)[1:], strict=False):
        each.h = h
    ours = [np.asarray(gradient) for gradient in rule.compute(x, y, weights).forward]
    theirs = [np.asarray(gradient) for gradient in exact.compute(x, y, weights).forward]
    if kind == "dtp":
        assert_close(ours, [2 * step * g for g in theirs[:-2]] + theirs[-2:])
    else:
        assert_close(ours, [step * g for g in theirs])


def build_exact(model):
    rule = rules.Backpropagation()
    rule.build(model, "softmax_cross_entropy")
    return rule


def invert(stage, activation):
    """The exact inverse of a square stage tanh(h W + b)."""
    layer = stage.layers[-1]
    inputs = keras.Input(stage.output_shape[1:], dtype="float64")

    class Exact(keras.layers.Layer):
        def call(self, u):
            u = tf.atanh(u) if layer.activation is keras.activations.tanh else u
            return tf.matmul(u - layer.bias.value, tf.linalg.inv(layer.kernel.value))

    return keras.Model(inputs, Exact()(inputs))


def orthogonal():
    hidden = [L.Dense(5, "tanh", kernel_initializer="orthogonal", bias_initializer="normal") for _ in range(3)]
    return keras.Sequential([keras.Input((5,)), *hidden, L.Dense(5, kernel_initializer="orthogonal")])


def test_with_exact_inverses_the_correction_vanishes_and_targets_are_met(float64):
    model = orthogonal()
    x = 0.3 * RANDOM.normal(size=(4, 5))
    y = np.asarray(model(x)) + 0.01 * RANDOM.normal(size=(4, 5))
    targets = {
        kind: build(kind, model, "mean_squared_error", inverse=invert).targets(x, y) for kind in ("tp", "sdtp", "dtp")
    }
    for (_, plain), (_, difference) in zip(targets["tp"], targets["sdtp"], strict=True):
        np.testing.assert_allclose(difference, plain, rtol=1e-10)
    for kind in ("tp", "sdtp", "dtp"):
        found = [t for _, t in targets[kind]]
        stages = tfbio.stages(model)
        for number in range(1, 4 if kind != "dtp" else 3):
            np.testing.assert_allclose(stages[number](found[number - 1]), found[number], rtol=1e-9)
        assert np.abs(found[0] - targets[kind][0][0]).max() > 1e-4
    figures = build("sdtp", model, "mean_squared_error", inverse=invert).diagnostics(x, y)
    for name, value in figures.items():
        kind = name.partition("/")[0]
        expected = {"reconstruction": 0.0, "target_approach": 0.0, "closer": 1.0}.get(kind, float(value))
        assert float(value) == pytest.approx(expected, abs=1e-8) and (kind != "target_distance" or value > 1e-3)


@pytest.mark.parametrize("kind", ["dtp", "sdtp", "ao_sdtp", "ldrl"])
def test_a_reached_target_teaches_hidden_stages_nothing(kind, float64):
    model = dense(4, 7, 5, 3)
    rule = build(kind, model, "mean_squared_error")
    x = RANDOM.normal(size=(5, 4))
    y = np.asarray(model(x))
    for h, t in rule.targets(x, y):
        np.testing.assert_allclose(h, t, rtol=0, atol=1e-14)
    for gradient in rule.compute(x, y).forward:
        np.testing.assert_allclose(gradient, 0.0, atol=1e-14)
    assert max(np.abs(gradient).max() for gradient in rule.compute(x, y).feedback) > 1e-3
    plain = build("tp", model, "mean_squared_error").compute(x, y)
    assert max(np.abs(gradient).max() for gradient in plain.forward) > 1e-3  # TP needs exact inverses for it


@pytest.mark.parametrize("reconstruction", ["preserve", "denoise"])
def test_the_best_linear_inverse(reconstruction, float64, monkeypatch):
    r"""pinv(W) for noise-preserving losses; 1 / (1 + σ²) of it for de-noising ones on white data."""
    model = dense(6, 6, 4, 3, activation=None)
    model.layers[0].set_weights([np.eye(6), np.zeros(6)])
    model.layers[1].bias.assign(np.zeros(4))
    sigma = 0.5
    rule = build("sdtp", model, "mean_squared_error", noise=sigma, reconstruction=reconstruction)
    # Data and noise that are white and uncorrelated exactly, not on average.
    q = np.linalg.qr(RANDOM.normal(size=(12, 12)))[0] * np.sqrt(12)
    x, noise = q[:, :6], q[:, 6:]
    monkeypatch.setattr(rule, "_draw", lambda number, like, *_: noise if number == 1 else tf.zeros_like(like))
    w = model.layers[1].kernel.numpy()
    expected = np.linalg.pinv(w) / (1.0 if reconstruction == "preserve" else 1 + sigma**2)
    rule.inverses[1].set_weights([expected, np.zeros(6)])
    y = np.zeros((12, 3))

    def gradient():
        pairs = zip(rule.compute(x, y).feedback, rule.feedback_variables, strict=True)
        return next(np.asarray(g) for g, v in pairs if v is rule.inverses[1].variables[0])

    np.testing.assert_allclose(gradient(), 0.0, atol=1e-6)  # a weight of 1/12 is rounded to float32
    rule.inverses[1].set_weights([1.01 * expected, np.zeros(6)])
    assert np.abs(gradient()).max() > 1e-3


def test_each_loss_moves_its_own_stage_only(float64):
    """The weights of stage l and of the inverses move nothing but what the equations say."""
    for kind in FAMILY:
        model = dense(4, 7, 5, 6, 3)
        rule = build(kind, model)
        x, y = batch(model)
        before = rule.compute(x, y)
        activations = [h for h, _ in rule.targets(x, y)]
        # The inverse losses of a stage depend on that stage and those below, never on another inverse …
        top = next(g for g in reversed(rule.inverses) if g is not None)
        for variable in top.variables:
            variable.assign(variable + 0.5)
        after = rule.compute(x, y)
        mine = {id(variable) for variable in top.variables}
        for a, b, variable in zip(before.feedback, after.feedback, rule.feedback_variables, strict=True):
            assert np.array_equal(a, b) == (id(variable) not in mine), variable.path
        # … nor do activations, and the last stage's gradient, on any inverse.
        for a, (b, _) in zip(activations, rule.targets(x, y), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(before.forward[-2:], after.forward[-2:], strict=True):
            np.testing.assert_array_equal(a, b)
        assert not np.array_equal(before.forward[0], after.forward[0])


def test_one_snapshot(float64):
    """Targets of all stages come from the weights before the update, whatever the order of the updates is."""
    model = dense(4, 7, 5, 3)
    rule = build("sdtp", model)
    x, y = batch(model)
    before = [v.numpy() for v in [*model.variables, *rule.variables]]
    rule.compute(x, y)
    rule.targets(x, y)
    for value, variable in zip(before, [*model.variables, *rule.variables], strict=True):
        np.testing.assert_array_equal(value, variable)


def test_sdtp_targets_have_low_rank_at_the_top(float64):
    """With a linear top inverse, t − h of the last hidden stage spans at most C − 1 dimensions."""
    model = dense(6, 9, 8, 4)
    x, y = RANDOM.normal(size=(30, 6)), RANDOM.integers(0, 4, 30)

    def linear_top(stage, activation, **options):
        return tfbio.inverse(stage, None if stage.output_shape[-1] == 4 else activation, **options)

    h, t = build("sdtp", model, inverse=linear_top).targets(x, y)[-2]
    assert np.linalg.matrix_rank(t - h, tol=1e-10) == 3
    h, t = build("ao_sdtp", model, inverse=linear_top).targets(x, y)[-2]
    assert np.linalg.matrix_rank(t - h, tol=1e-10) == 3  # z cancels in a linear inverse
    h, t = build("ao_sdtp", model).targets(x, y)[-2]
    assert np.linalg.matrix_rank(t - h, tol=1e-10) > 3


def test_noise_is_standard_normal_and_a_function_of_seed_stage_and_step(float64):
    model = dense(400, 300, 300, 300, 3)
    rule, same, other = build("sdtp", model, seed=1), build("sdtp", model, seed=1), build("sdtp", model, seed=2)
    like = tf.zeros((50, 300), "float64")
    batch = Batch.of(like, like)
    draw = rule._draw(1, like, batch).numpy()
    assert abs(draw.mean()) < 0.05 and abs(draw.std() - 1) < 0.05 and np.abs(np.corrcoef(draw[:2])[0, 1]) < 0.3
    np.testing.assert_array_equal(draw, same._draw(1, like, batch))
    rule.step.assign_add(1)
    for another in (rule._draw(1, like, batch), same._draw(2, like, batch), other._draw(1, like, batch)):
        assert abs(np.corrcoef(draw.ravel(), another.numpy().ravel())[0, 1]) < 0.05


def test_noise_of_each_stage_is_its_own(float64, monkeypatch):
    model = dense(4, 7, 5, 3)
    rule = build("sdtp", model, noise=(9.0, 0.0, 0.5))
    monkeypatch.setattr(
        rule, "_draw", lambda number, like, *_: tf.fill(tf.shape(like), tf.constant(float(number), "float64"))
    )
    seen = {}
    image = rule._image
    monkeypatch.setattr(rule, "_image", lambda number, h: [seen.setdefault(number, h.numpy()), image(number, h)][1])
    x, y = batch(model)
    rule.compute(x, y)
    h = [h.numpy() for h, _ in rule.targets(x, y)]
    np.testing.assert_array_equal(seen[1], h[0])
    np.testing.assert_allclose(seen[2], h[1] + 0.5 * 2)


def test_batch_reduction_counts_examples_that_count(float64):
    model = dense(4, 7, 5, 3)
    x, y = batch(model, 8)
    example, whole = build("dtp", model), build("dtp", model, target_reduction="batch")
    for mine, theirs in zip(whole.feedback_variables, example.feedback_variables, strict=True):
        mine.assign(theirs)
    weights = np.array([0.2] * 5 + [0.0] * 3)
    for factor in (1.0, 1024.0):  # a loss scale is not a count
        ours, theirs = (
            [np.asarray(g) for g in rule.compute(x, y, factor * weights).forward] for rule in (whole, example)
        )
        np.testing.assert_allclose(5 * ours[2], theirs[2], rtol=1e-9)
        np.testing.assert_allclose(ours[4], theirs[4], rtol=1e-12)


def test_an_autoencoder_learns():
    """To 0.05 to 0.08 of the loss at the start (three seeds); with its first layer frozen, to 0.12 to 0.21."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = np.tanh(rng.normal(size=(256, 3)) @ rng.normal(size=(3, 16))).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x)).batch(32)
    rule, optimizer = {"class_name": "dtp", "config": OWN["dtp"]}, keras.optimizers.Adam(2e-3)
    trainer = tfbio.Trainer(dense(16, 4, 24, 16), rule, optimizer, "mean_squared_error", jit_compile=False)
    before = trainer.evaluate(data)["loss"]
    trainer.fit(data, epochs=40, verbose=False)
    assert trainer.evaluate(data)["loss"] < 0.1 * before


@pytest.mark.parametrize("kind", ["dtp", "ao_sdtp"])
def test_inverses_take_the_asked_activation(kind):
    for inverse, expected in ((None, "tanh"), ({"activation": "relu"}, "relu"), ({"activation": None}, "linear")):
        rule = build(kind, dense(4, 7, 5, 3), inverse=inverse)
        assert {g.layers[-1].activation.__name__ for g in rule.inverses if g is not None} == {expected}


def test_a_single_stage_has_no_targets():
    with pytest.raises(ValueError, match="two stages"):
        build("dtp", keras.Sequential([keras.Input((4,)), L.Dense(3)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, "noise"),
        ({"noise": (0.1, 0.2)}, "expected one number or 4"),
        ({"reconstruction": "none"}, "'preserve', 'denoise'"),
        ({"reduction": "none"}, "'sum', 'mean'"),
        ({"schedule": "sometimes"}, "'parallel', 'alternating'"),
        ({"period": 3}, "alternating"),
        ({"schedule": "alternating", "period": 0}, "period"),
        ({"reconstruction": "ldrl", "noise": 0.0}, "needs some"),
        ({"inverse": {"size": 3}}, "size"),
        ({"inverse": lambda stage, activation: stage}, "the input of"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build("dtp", dense(4, 7, 5, 6, 3), **options)


@pytest.mark.parametrize("rule", ["dtp", {"class_name": "ldrl", "config": {"feedback_iterations": 2}}])
def test_targets_of_a_network_with_penalties_on_weights(rule):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, "tanh", kernel_regularizer="l2"), keras.layers.Dense(4, "tanh")]
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.Dense(3)])
    trainer = tfbio.Trainer(model, rule, "sgd", jit_compile=False)
    x, y = np.ones((8, 5), "float32"), np.arange(8) % 3
    trainer.fit((x, y), verbose=False)
    assert len(trainer.rule.targets(tf.constant(x), tf.constant(y))) == 3
