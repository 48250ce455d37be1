"""What the plan past this machine counts, against built rules and against the programs that XLA makes of them."""

import math
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

import tfbio

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import export_stablehlo
import scaling_model

NETWORKS = {
    "dense": lambda: [keras.Input((5,)), L.Dense(4, "tanh"), L.Dense(6, "tanh")],
    "convolutional": lambda: [
        keras.Input((6, 6, 2)),
        L.Conv2D(3, 3, activation="tanh"),
        L.Conv2D(4, 3, 2, padding="same", activation="tanh"),
        L.Flatten(),
        L.Dense(5, "tanh"),
    ],
    "locally connected": lambda: [
        keras.Input((6, 6, 2)),
        tfbio.layers.LocallyConnected2D(3, 3, activation="tanh"),
        tfbio.layers.LocallyConnected2D(4, 3, 2, activation="tanh"),
        L.Flatten(),
    ],
}
RULES = pytest.mark.parametrize("rule", scaling_model.RULES)


def counted(name, rule):
    """A trainer with the rule, and what is counted of it."""
    model = keras.Sequential([*NETWORKS[name](), L.Dense(3)])
    made = tfbio.rules.get(rule)
    if rule == "ao_sdtp":
        made = tfbio.rules.AuxiliaryOutputSDTP(auxiliary_units=scaling_model.AUXILIARY)
    return tfbio.Trainer(model, made, "sgd", jit_compile=True), scaling_model.work(rule, model)


def size(variables):
    return sum(math.prod(variable.shape) for variable in variables)


@RULES
@pytest.mark.parametrize("network", NETWORKS)
def test_values_are_those_of_the_built_rule(network, rule):
    trainer, work = counted(network, rule)
    learned = size(trainer.rule.feedback_variables)
    assert work.learned == learned
    seed = 2 if rule == "dfa_regenerated" else 0
    assert work.kept + seed == size(trainer.rule.variables) - learned
    assert sum(values for _, values, _, _ in work.pieces) == size(trainer.model.trainable_variables) + learned
    assert sum(layer.parameters for layer in scaling_model.weighted(trainer.model)) == trainer.model.count_params()


@pytest.mark.parametrize("rule", ["bp", "usf", "dfa", "dtp", "ao_sdtp"])
def test_multiply_adds_are_those_of_the_compiled_step(rule, monkeypatch):
    monkeypatch.setattr(scaling_model, "AUXILIARY", 7)
    trainer, work = counted("dense", rule)
    step = trainer._loop.step(trainer.rule.phases[0])
    text = step.experimental_get_compiler_ir(*export_stablehlo.batch(trainer.model, 8))(stage="optimized_hlo")
    shapes = {name: numbers(found) for name, found in re.findall(r"(%[\w.\-]+) = f32\[([\d,]*)\]", text)}
    products = re.findall(r"(%[\w.\-]+) = f32\S* dot\((?:f32\S* )?(%[\w.\-]+), (?:f32\S* )?(%[\w.\-]+)\)", text)
    # Operands of m·k and k·n numbers and a result of m·n, all together (m·k·n)².
    done = sum(math.isqrt(math.prod(math.prod(shapes[name]) for name in product)) for product in products)
    assert done == 8 * (work.forward + sum(piece[0] for piece in work.pieces)) > 0


def numbers(text):
    return [int(number) for number in text.split(",") if number]


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (L.Dense(7), (5,), 35),
        (L.Conv2D(4, 3, 2, padding="same"), (8, 6, 2), 4 * 3 * 9 * 2 * 4),
        (tfbio.layers.LocallyConnected2D(4, 3), (8, 6, 2), 6 * 4 * 9 * 2 * 4),
        (L.Conv2DTranspose(2, 3, 2, padding="same"), (4, 3, 4), 4 * 3 * 9 * 2 * 4),
    ],
)
def test_multiply_adds_of_a_layer(layer, shape, expected):
    (found,) = scaling_model.weighted(keras.Sequential([keras.Input(shape), layer]))
    assert found.macs == expected and found.first


def test_branches_are_walked():
    """A residual block: the shortcut's kernel is the first in its stage as the branch's is."""
    parts = scaling_model.stages(tfbio.models.resnet18((32, 32, 3), 10))
    firsts = [[layer.first for layer in part.layers if layer.kernel] for part in parts]
    assert firsts[:2] == [[True], [True, False]] and firsts[3] == [True, False, True] and firsts[-1] == [True]


def test_an_all_reduce_moves_what_a_ring_moves():
    """Each of n members sends the sum of n - 1 pieces of 1/n, twice."""
    for members in (1, 2, 5):
        pieces = np.full(members, 1 / members)
        assert scaling_model.ring(120.0, members) == pytest.approx(2 * 120 * pieces[1:].sum())
    chip = scaling_model.Chip(1e12, 0.5, 1e9, 1e9, 4, 100.0, 10.0, 0.0, 1.0)
    assert chip.all_reduce(25, 1) == 0.0
    assert chip.all_reduce(25, 4) == pytest.approx(2 * 3 / 4 * 100 / 100)
    assert chip.all_reduce(25, 8) == pytest.approx(2 * 3 / 4 * 100 / 100 + 2 * 1 / 2 * (100 / 4) / 10)


def test_no_order_ends_before_johnsons():
    import itertools

    rng = np.random.default_rng(0)
    for _ in range(20):
        pieces = [tuple(pair) for pair in rng.uniform(size=(5, 2))]
        best = min(scaling_model.finish(order) for order in itertools.permutations(pieces))
        assert scaling_model.finish(scaling_model.johnson(pieces)) == pytest.approx(best)
    assert scaling_model.finish([(2.0, 1.0), (1.0, 5.0)]) == 8.0  # the second sum waits for its piece alone


def test_a_step_is_its_parts(monkeypatch):
    work = scaling_model.Work(forward=10, pieces=[(20, 25, 0, 0), (30, 25, 0, 7)])
    chip = scaling_model.Chip(1000.0, 0.5, 1e9, 1e12, 4, 100.0, 10.0, 0.0, 1.0)
    alone = scaling_model.step(chip, work, 50, 5, 1)
    assert alone["overlapped"] == alone["exposed"] == pytest.approx(2 * 5 * 60 / 500 + 7, rel=1e-6)
    monkeypatch.setattr(scaling_model, "BUCKET", 100)
    several = scaling_model.step(chip, work, 50, 5, 4)
    assert several["exposed"] == pytest.approx(alone["exposed"] + 2 * 1.5, rel=1e-6)
    assert several["overlapped"] == pytest.approx(alone["exposed"] + 1.5, rel=1e-6)  # the first sum is hidden


def test_target_propagation_has_no_way_through_a_residual_network():
    with pytest.raises(ValueError, match="mirror"):
        scaling_model.work("dtp", tfbio.models.resnet18((32, 32, 3), 10))


def test_small_sums_are_joined():
    """Sixteen pieces of a thousandth of a bucket pay the latency once."""
    work = scaling_model.Work(forward=0, pieces=[(1, 1000, 0, 0)] * 16)
    chip = scaling_model.Chip(2.0, 1.0, 1e9, 1e12, 4, 1e15, 1e15, 100.0, 1.0)
    several = scaling_model.step(chip, work, 16000, 1, 4)
    assert several["overlapped"] == pytest.approx(16 + 2 * 100 * 2, rel=1e-6)
