"""Locally connected layers against Keras 2's: forward and both gradients, on the layers of the CIFAR-10 network.

    python benchmarks/locally_connected.py --json docs/results/benchmarks/locally_connected.json

Needs `tf_keras` (`pip install --no-deps tf_keras`, of TensorFlow's version): Keras 2, for this file alone. Contenders
take one batch of images and one of output errors, and return the gradients of images, kernel and bias. Keras 2 pads
only `valid`, so that it gets images padded before. All run in turn, round by round, in this process.

The share of the peak counts the three matrix products of a step in its best round, against the best of all rounds of a
large square product. Memory is by how much the peak exceeds what was there before the first step, each contender in a
process of its own (`--memory`); XLA's includes what its compiler takes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # TensorFlow reads the log level when it is imported
from timing import interleaved, machine, ratios, table, write

from tfbio.layers import LocallyConnected2D

# name → (side of the image, channels, kernel size, stride, filters), all with same padding
LAYERS = {"local_1": (32, 3, 5, 2, 64), "local_2": (16, 64, 5, 2, 128), "local_3": (8, 128, 3, 1, 256)}
CONTENDERS = ("tfbio", "tfbio gather XLA", "tfbio slices XLA", "tf_keras 1", "tf_keras 1 XLA", "tf_keras 2")
PEAK = 2048  # rows of the square matrices whose product is the peak


def step(name: str, layer: str, batch: int) -> Callable[[], tf.Tensor]:
    """A function that takes one step of a contender and returns when it is done."""
    side, channels, kernel_size, stride, filters = LAYERS[layer]
    library, *options = name.split()
    outputs = -(-side // stride)
    if library == "tfbio":
        implementation = next((option for option in options if option != "XLA"), "auto")
        made = LocallyConnected2D(filters, kernel_size, stride, "same", implementation=implementation)
        made.build((batch, side, side, channels))
        margins = None
    else:
        import tf_keras

        total = max((outputs - 1) * stride + kernel_size - side, 0)
        made = tf_keras.layers.LocallyConnected2D(filters, kernel_size, stride, implementation=int(options[0]))
        made.build((batch, side + total, side + total, channels))
        margins = [(0, 0), *[(total // 2, total - total // 2)] * 2, (0, 0)]
    weights = [getattr(v, "value", v) if library == "tfbio" else v for v in made.trainable_variables]
    x = tf.random.stateless_normal((batch, side, side, channels), (0, 0))
    dy = tf.random.stateless_normal((batch, outputs, outputs, filters), (0, 1))

    @tf.function(jit_compile="XLA" in options)
    def gradients(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = made(x if margins is None else tf.pad(x, margins))
        return tape.gradient(y, [x, *weights], dy)

    return lambda: [g.numpy() for g in gradients(x, dy)[2:]]  # the bias's: small, and there when all is


def flops(layer: str, batch: int) -> float:
    """Of the three matrix products: outputs, and the gradients of images and kernel."""
    side, channels, kernel_size, stride, filters = LAYERS[layer]
    return 3 * 2.0 * batch * (-(-side // stride)) ** 2 * kernel_size**2 * channels * filters


def compare(layer: str, batch: int, rounds: int, names: list[str]) -> dict:
    """The figures of one layer."""
    square = tf.random.stateless_normal((PEAK, PEAK), (0, 0))
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(square, square)[:1]))
    contenders = {name: step(name, layer, batch) for name in names}
    seconds = interleaved({**contenders, "peak": lambda: product().numpy()}, rounds)
    peak = 2.0 * PEAK**3 / min(seconds.pop("peak"))
    rows = ratios(seconds, "tfbio")
    work = flops(layer, batch)
    for name, times in seconds.items():
        rows[name]["best_gflops"] = work / min(times) / 1e9
    others = [seconds[name] for name in names if name in ("tf_keras 1", "tf_keras 2")]
    best = [min(pair) for pair in zip(*others, strict=True)]
    speedups = [other / own for other, own in zip(best, seconds["tfbio"], strict=True)]
    print(f"\n{layer}, batch {batch}")
    print(table(rows))
    return {
        "rows": rows,
        "square_product_gflops": peak / 1e9,
        "faster_than_the_best_of_tf_keras": statistics.median(speedups),
    }


def memory(layer: str, batch: int, name: str) -> float:
    """MiB by which this process's peak exceeds what it held before, in three steps of a contender (Linux)."""
    run = step(name, layer, batch)
    before = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    for _ in range(3):
        run()
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def memory_of_each(layer: str, batch: int, names: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--layers", layer, "--batch_size", str(batch), "--memory"]
    grown = {}
    for name in names:
        output = subprocess.run([*command, name], capture_output=True, text=True, check=True).stdout
        grown[name] = json.loads(output.strip().splitlines()[-1])
    print("peak memory, MiB:", ", ".join(f"{name} {value:.0f}" for name, value in grown.items()))
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=LAYERS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory", metavar="CONTENDER", help="only print the memory of this one, of the first layer")
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    if arguments.memory:
        print(memory(arguments.layers[0], arguments.batch_size, arguments.memory))
        return
    print(machine())
    results = {}
    for layer in arguments.layers:
        results[layer] = compare(layer, arguments.batch_size, arguments.rounds, arguments.contenders)
        results[layer]["memory_mib"] = memory_of_each(layer, arguments.batch_size, arguments.contenders)
    peak = max(result["square_product_gflops"] for result in results.values())
    print(f"\npeak {peak:.0f} GFLOP/s; shares of it, of each contender's best round:")
    for layer, result in results.items():
        result["share_of_peak"] = {name: row["best_gflops"] / peak for name, row in result["rows"].items()}
        print(layer, ", ".join(f"{name} {share:.0%}" for name, share in result["share_of_peak"].items()))
    options = {name: value for name, value in vars(arguments).items() if name not in ("memory", "json")}
    write(arguments.json, {"arguments": options, "machine": machine(), "layers": results})


if __name__ == "__main__":
    main()
