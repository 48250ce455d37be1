"""Run by test_replicas.py in a process of its own: pictures streamed to one replica, and to two on virtual CPUs.

21 pictures in batches of 4 are five batches and one picture, of which the second replica gets none.
"""

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


def train(folder, strategy, **options):
    def data(split, **more):
        return tfbio.data.load(f"image_folder:{folder}", split, 4, size=12, corrupt="skip", **more)[0]

    keras.utils.set_random_seed(1)
    layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3, strides=2, activation="tanh")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)]
    with strategy.scope():
        model = keras.Sequential(layers)
        optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)
    scaling = keras.layers.Rescaling(1 / 255)
    trainer = tfbio.Trainer(
        model, "kp", optimizer, strategy=strategy, preprocessing=scaling, jit_compile=False, **options
    )
    training = data("train", seed=3, augmentation="flip_random_resized_crop")
    history = trainer.fit(training, epochs=2, validation_data=data("test"), verbose=False).history
    return [variable.numpy() for variable in (*model.variables, *trainer.rule.variables)], history


def main(folder: Path) -> None:
    write_pictures(folder, 21)
    (folder / "train" / "b" / "13.jpg").write_bytes(b"\xff\xd8\xff broken")
    one = tf.distribute.get_strategy()
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    expected, figures = train(folder, one)
    for options in ({}, {"accumulation_steps": 2}):
        found, history = train(folder, two, **options)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name, values in figures.items():
            if name != "seconds":
                np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)
    print("replicas agree")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
