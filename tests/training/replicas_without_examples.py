"""Run by test_replicas.py in a process of its own: last batches that leave the second of two replicas no example."""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from pictures import write_pictures

import tfbio

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
ONE = tf.distribute.get_strategy()
TWO = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def arrays():
    """Nine examples: in batches of four, two batches and one example."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (9, 4, 4, 3), np.uint8), rng.integers(0, 2, 9).astype(np.int32)


def in_memory():
    return tfbio.data.from_arrays(*arrays(), 4)


def plain():
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(4)


def train(strategy, data, rule="bp", synchronized=None, **options):
    """A trainer after an epoch; `synchronized` is None for a network without batch normalisation."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        normalization = keras.layers.BatchNormalization(synchronized=bool(synchronized))
        layers = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(5)]
        layers += [*([] if synchronized is None else [normalization]), keras.layers.Activation("tanh")]
        model = keras.Sequential([*layers, keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    scaling = keras.layers.Rescaling(1 / 255)
    trainer = tfbio.Trainer(
        model, rule, optimizer, strategy=strategy, preprocessing=scaling, jit_compile=False, **options
    )
    history = trainer.fit(data, epochs=1, verbose=False).history
    return trainer, [history["loss"], *trainer.evaluate(data).values()]


def main(folder: Path) -> None:
    write_pictures(folder, 9)
    pictures = tfbio.data.load(f"image_folder:{folder}", "train", 4, size=4)[0]
    for data, options in ((in_memory(), {"accumulation_steps": 2}), (plain(), {}), (pictures, {})):
        trainer, figures = train(TWO, data, synchronized=False, **options)
        assert np.all(np.isfinite(figures[0]))
        for variable in trainer.model.variables:
            for value in TWO.experimental_local_results(variable.value):
                assert np.all(np.isfinite(value)), (data, variable.path)
    # What stands in for no example counts for nothing, and synchronised batch normalisation doesn't see it.
    for options in ({"rule": "dfa"}, {"synchronized": True}):
        (one, expected), (two, found) = (train(strategy, in_memory(), **options) for strategy in (ONE, TWO))
        for a, b in zip(one.model.variables, two.model.variables, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6, err_msg=f"{options} {a.path}")
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=str(options))
    print("replicas agree")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
