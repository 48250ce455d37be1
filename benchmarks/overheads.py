"""What a strategy and checkpoints cost the loop: `tfbio.Trainer.fit` with them beside without.

    python benchmarks/overheads.py --network bartunov_cifar10_conv --json out.json

Contenders, on synthetic images in memory: `no strategy`, and `mirrored` with one replica, as they come: XLA compiles
whole steps without a strategy and nothing under one, so that there is `no strategy, no XLA`, too. One call is an epoch
of a few steps. Processor time is reported beside the clock's, for a busy machine disturbs it less. A checkpoint's cost
is the median of the seconds that one takes, within the same rounds, over those of the default interval.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported
import numpy as np
import tensorflow as tf
from timing import interleaved, machine, ratios, table, write

import tfbio
from tfbio.experiments.run import Run
from tfbio.training import Checkpoints


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="bartunov_cifar10_conv")
    parser.add_argument("--rule", default="fa")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4, help="in an epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    size, steps = arguments.batch_size, arguments.steps
    make = getattr(tfbio.models, arguments.network)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * size, *make().input_shape[1:]), np.uint8)
    data = tfbio.data.from_arrays(images, rng.integers(0, 10, steps * size).astype(np.int32), size)
    strategies = {"no strategy": tf.distribute.get_strategy(), "mirrored": tf.distribute.MirroredStrategy(["CPU:0"])}

    def trainer(strategy: tf.distribute.Strategy, jit_compile: bool | str) -> tfbio.Trainer:
        with strategy.scope():
            return tfbio.Trainer(
                make(), arguments.rule, "adam", preprocessing=keras.layers.Rescaling(1 / 255), jit_compile=jit_compile
            )

    used: dict[str, list[float]] = {}

    def epochs(name: str, strategy: tf.distribute.Strategy, jit_compile: bool | str):
        one, count = trainer(strategy, jit_compile), iter(range(1, 10**6))

        def run() -> None:
            start = time.process_time()
            one.fit(data, epochs=next(count), verbose=False)
            used.setdefault(name, []).append((time.process_time() - start) / steps)

        return run

    saver, saved = trainer(strategies["no strategy"], False), []

    with tempfile.TemporaryDirectory() as folder:
        checkpoints, count = Checkpoints(folder), iter(range(10**6))

        def save() -> None:
            start = time.perf_counter()
            checkpoints.save(saver._state.checkpoint, next(count))
            saved.append(time.perf_counter() - start)

        contenders = {
            name: epochs(name, strategies[name.partition(",")[0]], jit_compile)
            for name, jit_compile in (("no strategy", "auto"), ("no strategy, no XLA", False), ("mirrored", "auto"))
        }
        seconds = interleaved({**contenders, "checkpoint": save}, arguments.rounds, steps)
    del seconds["checkpoint"]
    interval, once = Run.checkpoint_seconds, statistics.median(saved[1:])
    parameters = sum(int(np.prod(variable.shape)) for variable in saver.model.variables)
    used = {name: times[1:] for name, times in used.items()}  # the first call traces
    tables = {
        f"{what}, ratio to {reference}": ratios(times, reference)
        for reference in ("no strategy", "no strategy, no XLA")
        for what, times in (("clock", seconds), ("processor", used))
    }
    result = {
        "arguments": vars(arguments),
        "machine": machine(),
        **tables,
        "checkpoint": {"seconds": once, "interval": interval, "share": once / interval, "parameters": parameters},
    }
    for title, rows in tables.items():
        print(f"\nms a step by the {title}\n{table(rows)}")
    print(
        f"\na checkpoint: {once:.2f} s, {parameters} parameters: {once / interval:.2%} of {interval:.0f} s, {machine()}"
    )
    write(arguments.json, result)


if __name__ == "__main__":
    main()
