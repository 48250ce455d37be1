"""Time a step of the whole loop, input included: `tfbio.Trainer.fit` beside `keras.Model.fit` and bare compute.

    python benchmarks/loop_time.py --json out.json

Contenders, on the MNIST fully connected net of Bartunov et al. 2018 and synthetic images of MNIST's shape and number:
`keras fit` is Keras's loop with its defaults on NumPy arrays; `trainer` is tfbio's with its defaults on the same arrays
in memory; `bare` is the trainer's own step on one fixed batch, in a graph loop without any input. One call is an epoch.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported
import numpy as np
import tensorflow as tf
from timing import FixedBatch, interleaved, machine, ratios, table, write

import tfbio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rule", default="bp")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--examples", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    size, steps = arguments.batch_size, arguments.examples // arguments.batch_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * size, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, steps * size).astype(np.int32)
    preprocessing = keras.layers.Rescaling(1 / 255)

    def trainer() -> tfbio.Trainer:
        return tfbio.Trainer(tfbio.models.bartunov_mnist_fc(), arguments.rule, "adam", preprocessing=preprocessing)

    plain = tfbio.models.bartunov_mnist_fc()
    plain.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    floats = images.astype(np.float32) / 255
    whole, bare = trainer(), trainer()
    data = tfbio.data.from_arrays(images, labels, size)
    epochs = iter(range(1, 10**6))
    fixed = FixedBatch(tf.constant(images[:size]), tf.constant(labels[:size]))
    contenders = {
        "keras fit": lambda: plain.fit(floats, labels, batch_size=size, verbose=0),
        "trainer": lambda: whole.fit(data, epochs=next(epochs), verbose=False),
        "bare": lambda: bare._loop(fixed, None, 0, 0, steps).numpy(),
    }
    seconds = interleaved(contenders, arguments.rounds, steps)
    result = {"arguments": vars(arguments), "machine": machine()}
    for reference in ("keras fit", "bare"):
        result[f"ratio to {reference}"] = rows = ratios(seconds, reference)
        print(f"\nratio to {reference}, {arguments.rule}, batch {size}, {machine()}\n{table(rows)}")
    write(arguments.json, result)


if __name__ == "__main__":
    main()
