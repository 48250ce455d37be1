"""Writes training steps as StableHLO, to be timed by any runtime that compiles it, TensorFlow or not.

    python benchmarks/export_stablehlo.py --network resnet50 --rules bp fa dfa --batch_size 128 --directory steps

A file is the very program that XLA compiles for `tfbio.Trainer`: the rule, the optimizer and the running averages, at
static shapes. One MLIR module in text, without locations, of operations of the dialects `stablehlo` and `func` alone
(`mhlo.copy`, XLA's own, is written as a reshape to the same shape); attributes may be XLA's. Its `@main` takes the
batch (x, y, each example's weight, their sum over the global batch), then the variables that the step reads, in the
order in which it first uses them: weights, optimizer, feedback, counters. It returns the loss and the new values of
those that it writes; `mhlo.input_output_alias` says which input each of them replaces. Files are called
`NETWORK-RULE-bBATCH-PRECISION.mlir`.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported
import tensorflow as tf

import tfbio

_LOCATION = re.compile(r' loc\((?:[^()"]|"[^"]*"|\([^()]*\))*\)')
_COPY = re.compile(r"mhlo\.copy (%\w+) : (tensor<[^>]*>)")


def batch(model: keras.Model, size: int) -> tuple[tf.Tensor, ...]:
    """What a classifier's step takes: `(x, y, sample_weight, total)` of `size` blank examples."""
    x = tf.zeros((size, *model.input_shape[1:]))
    return x, tf.zeros((size,), tf.int32), tf.ones([size]), tf.constant(float(size))


def programs(trainer: tfbio.Trainer, arguments: tuple[tf.Tensor, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """The step of each of the rule's phases: `(groups of variables that learn, StableHLO text)`.

    Args:
        trainer: a trainer with `jit_compile=True`.
        arguments: a batch, as `batch` makes it.
    """
    for phase in trainer.rule.phases:
        text = trainer._loop.step(phase).experimental_get_compiler_ir(*arguments)(stage="stablehlo")
        lines = (line for line in text.splitlines() if not line.startswith("#loc"))
        text = _LOCATION.sub("", "\n".join(lines)) + "\n"
        yield phase, _COPY.sub(r"stablehlo.reshape \1 : (\2) -> \2", text)


def export(
    directory: str, network: str, rule: str, batch_size: int, precision: str = "float32", optimizer: str = "adam"
) -> Path:
    """Writes the file of one rule on one network, with its default shape; returns its path.

    Args:
        directory: where to; made if it is not there.
        network: a function of `tfbio.models`.
        rule: a rule's short name.
        batch_size: examples in a step.
        precision: Keras's dtype policy.
        optimizer: a Keras optimizer's name.
    """
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    trainer = tfbio.Trainer(getattr(tfbio.models, network)(), rule, optimizer, jit_compile=True)
    ((_, text),) = programs(trainer, batch(trainer.model, batch_size))  # rules by name have one phase
    path = Path(directory) / f"{network}-{rule}-b{batch_size}-{precision}.mlir"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=["bartunov_mnist_fc"], help="functions of tfbio.models")
    parser.add_argument("--rules", nargs="+", default=["bp", "fa", "dfa"], help="short names")
    parser.add_argument("--batch_size", type=int, nargs="+", default=[128])
    parser.add_argument("--precision", nargs="+", default=["float32"], help="float32, mixed_bfloat16, …")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--directory", default="steps")
    arguments = parser.parse_args()
    for network in arguments.network:
        for precision in arguments.precision:
            for size in arguments.batch_size:
                for rule in arguments.rules:
                    path = export(arguments.directory, network, rule, size, precision, arguments.optimizer)
                    print(f"{path}: {path.stat().st_size:,} bytes", flush=True)
                    keras.backend.clear_session()


if __name__ == "__main__":
    main()
