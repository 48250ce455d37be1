"""Angles, norms and signs of gradients and feedback, against NumPy."""

import json

import keras
import numpy as np
import pytest

import tfbio
from tfbio.analysis.alignment import Alignment, alignment, angle, norm_ratio


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


def test_norm_ratio_of_known_vectors():
    assert norm_ratio([0.0, 4.0, 9.0]) == pytest.approx(2 / 3)
    assert np.isnan(norm_ratio([0.0, 4.0, 0.0]))


def degrees(u, v):
    u, v = (np.concatenate([np.ravel(part) for part in parts]).astype(float) for parts in (u, v))
    return np.degrees(np.arccos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1)))


def dense(name, activation="tanh"):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(units, activation) for units in (8, 7)]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(4)])
    rule = tfbio.rules.get(name)
    rule.build(model, "softmax_cross_entropy")
    return rule


@pytest.mark.parametrize("name", ["fa", "dfa", "drtp", "frsf", "brsf", "kp"])
def test_gradients_equal_numpy(name):
    rule, exact = dense(name), tfbio.rules.get("bp")
    exact.build(rule.model, "softmax_cross_entropy")
    x, y = batch()
    g, b = ([np.asarray(gradient) for gradient in r.compute(x, y).forward] for r in (rule, exact))
    measured = alignment(rule, x, y)
    norms = [np.sqrt(sum(np.sum(part**2) for part in parts)) for parts in (g, b)]
    assert measured["angle/total"] == pytest.approx(degrees(g, b), abs=1e-2)
    assert measured["norm_ratio/total"] == pytest.approx(norms[0] / norms[1], rel=1e-5)
    for number, layer in enumerate(rule.model.layers):
        path = layer.kernel.path.rpartition("/")[0]
        part = slice(2 * number, 2 * number + 2)
        assert measured[f"angle/{path}"] == pytest.approx(degrees(g[part], b[part]), abs=2e-2)


@pytest.mark.parametrize("name", ["fa", "usf", "frsf", "brsf", "kp"])
def test_feedback_equals_numpy(name):
    rule = dense(name)
    measured = alignment(rule, *batch())
    compared = 0
    for layer in rule.feedback_layers:
        ((w, b),) = layer.pairs
        if w is b:
            assert f"feedback_angle/{w.path}" not in measured  # exact
            continue
        w, b, compared = np.asarray(w), np.asarray(b), compared + 1
        path = layer.layer.kernel.path
        assert measured[f"feedback_angle/{path}"] == pytest.approx(degrees([b], [w]), abs=1e-2)
        ratio = np.linalg.norm(b) / np.linalg.norm(w)
        assert measured[f"feedback_norm_ratio/{path}"] == pytest.approx(ratio, rel=1e-5)
        assert measured[f"sign_concordance/{path}"] == pytest.approx(np.mean(np.sign(b) == np.sign(w)))
        if name in ("usf", "frsf", "brsf"):
            assert measured[f"sign_concordance/{path}"] == 1.0
    assert compared == (3 if name == "kp" else 2)


def test_direct_feedback_is_compared_with_the_product_of_the_kernels_above():
    rule = dense("dfa", activation=None)  # a deep linear net: the mean Jacobian is (W_{l+1} … W_L)ᵀ
    second, third = (np.asarray(layer.kernel) for layer in rule.model.layers[1:])
    measured = alignment(rule, *batch())
    products = [(second @ third).T, third.T]
    for layer, projection, product in zip(rule.model.layers, rule.projections, products, strict=False):
        b = np.asarray(projection)
        assert measured[f"feedback_angle/{layer.name}"] == pytest.approx(degrees([b], [product]), abs=1e-2)
        assert measured[f"sign_concordance/{layer.name}"] == pytest.approx(np.mean(np.sign(b) == np.sign(product)))
        projection.assign(product)
    measured = alignment(rule, *batch())
    assert measured["feedback_angle/" + rule.model.layers[0].name] == pytest.approx(0.0, abs=0.1)
    assert measured["angle/total"] == pytest.approx(0.0, abs=0.1)  # then it is backpropagation


def test_direct_feedback_is_compared_with_the_mean_over_the_batch():
    rule, (x, y) = dense("dfa"), batch()
    first, second, third = rule.model.layers
    h = np.asarray(second(first(x)))
    jacobians = np.einsum("uo,bu,hu->boh", np.asarray(third.kernel), 1 - h**2, np.asarray(second.kernel))
    measured = alignment(rule, x, y)[f"feedback_angle/{first.name}"]
    assert measured == pytest.approx(degrees([np.asarray(rule.projections[0])], [jacobians.mean(0)]), abs=1e-2)


def test_backpropagation_is_at_zero_from_itself_with_dropout():
    measured = alignment(built("bp"), *batch())
    assert measured["angle/total"] == pytest.approx(0.0, abs=0.05)
    assert measured["norm_ratio/total"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("name", ["bp", "fa", "dfa", "brsf"])
def test_measuring_changes_nothing(name):
    rule = built(name)
    before = [variable.numpy() for variable in rule.model.variables]
    callback = Alignment(rule, *batch())
    first, second = callback.measure(), callback.measure()
    assert first == second
    for variable, value in zip(rule.model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_adds_its_figures_to_an_epoch():
    rule, logs = built("fa"), {"loss": 1.0}
    Alignment(rule, *batch()).on_epoch_end(0, logs)
    assert logs["angle/total"] > 1 and len([name for name in logs if name.startswith("angle/")]) == 5


def test_measures_every_so_many_steps_and_not_twice_after_a_restart(tmp_path):
    def fit(epochs, checkpoints):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(4)])
        trainer = tfbio.Trainer(model, "fa", jit_compile=False)
        trainer.restore(checkpoints)
        measure = Alignment(trainer.rule, *batch(), every_steps=3, path=str(tmp_path / "alignment.jsonl"))
        data = tfbio.data.from_arrays(*batch(), 4)  # 8 steps an epoch
        trainer.fit(data, epochs=epochs, callbacks=[measure], checkpoints=checkpoints, verbose=False)
        return [json.loads(line) for line in (tmp_path / "alignment.jsonl").read_text().splitlines()]

    checkpoints = tfbio.training.Checkpoints(str(tmp_path / "checkpoints"))
    first = fit(1, checkpoints)
    assert [line["step"] for line in first] == [3, 6]
    with (tmp_path / "alignment.jsonl").open("a") as file:  # steps that a killed run measured and then lost
        file.write(json.dumps({"step": 9}) + "\n" + '{"step": 1')
    second = fit(2, checkpoints)
    assert [line["step"] for line in second] == [3, 6, 9, 12, 15] and second[:2] == first
    assert all("angle/total" in line for line in second)


def test_refuses_steps_without_a_file():
    with pytest.raises(ValueError, match="together with `path`"):
        Alignment(built("fa"), *batch(), every_steps=3)
    with pytest.raises(ValueError, match="positive int"):
        Alignment(built("fa"), *batch(), every_steps=0, path="a")
