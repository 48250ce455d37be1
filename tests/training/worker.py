"""Run by test_workers.py, once for each process of a cluster: trains small runs, one after the other."""

import functools
import json
import sys

import keras
import numpy as np
import tensorflow as tf

import tfbio
from tfbio.experiments.run import Run, train
from tfbio.training import strategies


def load(name="", split="train", batch_size=8, seed=0, shuffle=True, augmentation="flip_crop", drop_remainder=False):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (27, 6, 6, 2), np.uint8), rng.integers(0, 4, 27).astype(np.int32)
    if augmentation == "streamed":
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)
    else:
        data = tfbio.data.from_arrays(images, labels, batch_size, seed=seed, shuffle=shuffle, augmentation=augmentation)
    preprocessing = keras.layers.Rescaling(1 / 255)
    info = tfbio.data.DatasetInfo("random", split, ("train", "test"), 4, (6, 6, 2), 27, preprocessing, None)
    return data, info


def model(input_shape, classes, normalized=False):
    layers = [
        keras.layers.Conv2D(3, 3, activation="tanh", name="conv"),
        *([keras.layers.BatchNormalization()] if normalized else []),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(5, "tanh", name="hidden"),
        keras.layers.Dense(classes, name="logits"),
    ]
    return keras.Sequential([keras.Input(input_shape), *layers], name="small")


def make(rule: str) -> tfbio.rules.LearningRule:
    rule = tfbio.rules.get(rule)
    if hasattr(rule, "_draw"):  # noise is each replica's own; here, a function of the example
        rule._draw = lambda number, like, *_: tf.sin(5 * like)
    return rule


def run(rule: str, epochs: int, strategy: str) -> Run:
    rule, _, data = rule.partition(" ")
    if data.startswith("image_folder:"):
        source = functools.partial(tfbio.data.load, data, size=6, augmentation="flip_random_resized_crop")
    else:
        source = functools.partial(load, augmentation="streamed") if data == "streamed" else load
    return Run(
        load=source,
        model=functools.partial(model, normalized=data == "normalized"),
        rule=functools.partial(make, rule),
        optimizer=lambda: keras.optimizers.AdamW(1e-2),
        epochs=epochs,
        batch_size=8,
        evaluate_on=("test",),
        strategy=strategy,
        jit_compile=False,
        checkpoint_steps=3,
        alignment=epochs == 2,
    )


if __name__ == "__main__":
    # The first strategy of several is all runs': those of a second one would meet under the same keys.
    strategies._multi_worker = functools.cache(strategies._multi_worker)
    for rule, workdir, epochs in json.loads(sys.argv[1]):
        train(workdir, run(rule, epochs, "multi_worker"))
