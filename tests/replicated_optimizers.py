"""Run by test_optimizers.py in a process of its own: each update rule on one replica and on two virtual CPUs."""

import keras
import numpy as np
import tensorflow as tf
from test_optimizers import ALL, make, network, problem

import tfbio

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def main() -> None:
    two, (x, y) = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), problem()
    for name in ALL:
        weights = []
        for strategy in (tf.distribute.get_strategy(), two):
            with strategy.scope():
                keras.utils.set_random_seed(3)
                model, optimizer = network(), make(name)
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
            trainer = tfbio.Trainer(model, "bp", optimizer, strategy=strategy, jit_compile=False)
            trainer.fit(data, epochs=3, verbose=False)
            weights.append([*model.get_weights(), *(v.numpy() for v in optimizer.variables)])
        for a, b in zip(*weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)
        for variable in model.variables:
            first, second = (value.numpy() for value in two.experimental_local_results(variable.value))
            np.testing.assert_array_equal(first, second, err_msg=name)
    print("replicas agree")


if __name__ == "__main__":
    main()
