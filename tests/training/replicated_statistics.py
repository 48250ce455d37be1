"""Run by test_replicas.py in a process of its own: moving statistics of two replicas, of a run that is resumed too."""

import sys

import keras
import numpy as np
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def make(strategy):
    """Batch normalisation comes first, so that its statistics are the data's and no weight's."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(4, "tanh")]
        model = keras.Sequential([*layers, keras.layers.Dense(2)])
    return tfbio.Trainer(model, "bp", "sgd", strategy=strategy, jit_compile=False)


def data():
    rng = np.random.default_rng(0)
    return tfbio.data.from_arrays(rng.normal(2, 3, (16, 3)).astype("float32"), rng.integers(0, 2, 16), 4)


class Dies(keras.callbacks.Callback):
    every_steps = 1

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def main(folder: str) -> None:
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    one, whole, first, second = make(tf.distribute.get_strategy()), make(two), make(two), make(two)
    one.fit(data(), epochs=2, verbose=False)
    figures = whole.fit(data(), epochs=2, validation_data=data(), verbose=False).history
    try:
        first.fit(data(), epochs=2, checkpoints=Checkpoints(folder, every_steps=2), callbacks=[Dies()], verbose=False)
    except KeyboardInterrupt:
        assert second.restore(Checkpoints(folder)) == 2
    second.fit(data(), epochs=2, checkpoints=Checkpoints(folder), verbose=False)
    for trainer in (whole, second):
        for variable in trainer.model.variables:
            replicas = [value.numpy() for value in two.experimental_local_results(variable.value)]
            np.testing.assert_array_equal(*replicas, err_msg=variable.path)
    for a, b in zip(whole.model.variables, second.model.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6 if "moving" in a.path else 0, err_msg=a.path)
    means = [trainer.model.layers[0].moving_mean.numpy() for trainer in (one, whole)]
    np.testing.assert_allclose(*means, rtol=1e-5)  # halves of a batch have its mean on average
    last = figures["val_loss"][-1]
    assert abs(second.evaluate(data())["loss"] - last) < 1e-6 * last
    print("replicas agree")


if __name__ == "__main__":
    main(sys.argv[1])
