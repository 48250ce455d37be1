"""Every rule's training step is one program of static shapes that XLA compiles for any device; it can be exported."""

import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

import tfbio
from tfbio.rules import _NAMES

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import export_stablehlo

# What XLA has on CPUs, GPUs and TPUs alike. Not here, and not to be added: custom_call (host callbacks and libraries of
# one device), infeed, outfeed, send, recv, and operations whose result's shape is known at run time only.
OPERATIONS = """abs add and bitcast_convert broadcast_in_dim ceil clamp compare concatenate constant convert convolution
cosine divide dot dot_general dynamic_slice dynamic_update_slice exponential exponential_minus_one floor gather iota
is_finite log log_plus_one logistic maximum minimum multiply negate not or pad popcnt power reduce reduce_window
remainder reshape return reverse rng_bit_generator round_nearest_afz round_nearest_even rsqrt scatter select
select_and_scatter shift_left shift_right_arithmetic shift_right_logical sign sine slice sort sqrt subtract tanh
transpose tuple get_tuple_element while xor""".split()
L = keras.layers
TURNS = {"class_name": "wm", "config": {"interval": 2}}  # two programs: with mirror step and without
NETWORKS = {
    "dense": ("float32", (5,), lambda: [L.Dense(4, "tanh"), L.Dense(6, "tanh")]),
    "convolutional": (
        "mixed_bfloat16",
        (6, 6, 2),
        lambda: [L.Conv2D(3, 3, 2, "same", activation="tanh"), L.Flatten(), L.Dense(4, "tanh")],
    ),
}


def trainer(rule, network, optimizer="sgd"):
    policy, shape, layers = NETWORKS[network]
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input(shape), *layers(), L.Dense(3)])
    return tfbio.Trainer(model, rule, optimizer, jit_compile=True)


def operations(text):
    """The operations of an MLIR module in text, dialect included."""
    return set(re.findall(r"^\s*(?:%[\w:, %]+ = )?\"?([a-z]\w*\.\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", [*_NAMES, TURNS], ids=[*_NAMES, "turns"])
def test_a_step_is_made_of_operations_that_every_device_has(rule, network):
    made = trainer(rule, network)
    programs = list(export_stablehlo.programs(made, export_stablehlo.batch(made.model, 4)))
    assert len({text for _, text in programs}) == (2 if rule is TURNS else 1)
    for phase, text in programs:
        used = operations(text)
        assert {"stablehlo.add", "stablehlo.tanh", "func.func"} <= used
        assert used - {f"stablehlo.{name}" for name in OPERATIONS} - {"func.func"} == set(), phase
        assert "custom_call" not in text and "tensor<?" not in text and "x?" not in text


@pytest.mark.parametrize(
    "forbidden", ["tf.py_function(lambda h: h, [h], h.dtype)", "tf.boolean_mask(h, h[:, 0] > 0)", "tf.linalg.qr(h).q"]
)
def test_what_a_device_lacks_is_seen(forbidden):
    """The test above can fail: each of these is refused by XLA, or shows in the list."""

    @tf.function(jit_compile=True)
    def step(h):
        return eval(forbidden)

    try:
        text = step.experimental_get_compiler_ir(tf.ones((3, 2)))(stage="stablehlo")
    except (tf.errors.OpError, ValueError):
        return
    assert operations(text) - {f"stablehlo.{name}" for name in OPERATIONS} - {"func.func"} or "tensor<?" in text


DTYPES = {"f32": tf.float32, "f64": tf.float64, "i32": tf.int32, "i64": tf.int64}


def run(text, inputs):
    """What an exported program returns."""
    types = re.findall(rf"tensor<([0-9x]*?)({'|'.join(DTYPES)})>", re.search(r"@main\(.*?\) -> \((.*?)\) \{", text)[1])
    shapes = [[int(size) for size in shape.split("x") if size] for shape, _ in types]
    dtypes = [DTYPES[name] for _, name in types]
    with tf.device("CPU"):
        return gen_xla_ops.xla_call_module(inputs, version=9, module=text, Sout=shapes, Tout=dtypes, platforms=["CPU"])


@pytest.mark.parametrize(("rule", "optimizer"), [("bp", "adam"), ("dfa_regenerated", "sgd")])
def test_an_exported_program_takes_the_trainers_step(rule, optimizer):
    made = trainer(rule, "dense", optimizer)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)
    given = [tf.constant(x), tf.constant(y), tf.ones([8]), tf.constant(8.0)]
    for phase, text in export_stablehlo.programs(made, given):
        step = made._loop.step(phase)
        concrete = step.get_concrete_function(*given)
        by_handle = {id(variable.handle): variable for variable in concrete.variables}
        variables = [by_handle[id(handle)] for handle in concrete.captured_inputs]
        before = [variable.numpy() for variable in variables]
        loss, *after = run(text, [*given, *before])
        assert float(step(*given)) == float(loss)
        aliases = re.findall(r"parameter_number = (\d+) : i64\}, output_index = array<i64: (\d+)>", text)
        assert len(aliases) == len(after)
        moved = 0
        for parameter, output in aliases:
            variable = variables[int(parameter) - len(given)]
            np.testing.assert_array_equal(variable.numpy(), after[int(output) - 1])
            moved += not np.array_equal(variable.numpy(), before[int(parameter) - len(given)])
        assert moved > len(made.model.weights) / 2


def test_a_file_is_named_by_what_is_in_it(tmp_path):
    path = export_stablehlo.export(str(tmp_path / "steps"), "bartunov_mnist_fc", "bp", 4, "mixed_bfloat16", "sgd")
    assert path == tmp_path / "steps" / "bartunov_mnist_fc-bp-b4-mixed_bfloat16.mlir"
    text = path.read_text(encoding="utf-8")
    assert "loc(" not in text and "4x784xbf16" in text and text.count("func.func @main(") == 1
    # The batch, the weights, the optimizer's rate and count, the averages.
    assert len(re.findall(r"%arg\d+: tensor<", re.search(r"@main\((.*?)\) ->", text)[1])) == 4 + 12 + 2 + 1
