"""Run by test_replicas.py in a process of its own: figures of three replicas, saved in the middle of an epoch."""

import sys

import numpy as np
import tensorflow as tf

from tfbio.losses import SoftmaxCrossEntropy
from tfbio.training.averages import Averages

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 3
)


def main(folder: str) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
    with strategy.scope():
        averages = Averages(SoftmaxCrossEntropy())
    rng = np.random.default_rng(0)
    batches = [(rng.integers(0, 5, (3, 7)), rng.normal(size=(3, 7, 5)).astype("float32")) for _ in range(40)]

    @tf.function
    def add(y, outputs):
        def of_replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            averages.update_state(y[number], outputs[number], tf.ones(7))

        strategy.run(of_replica)

    def whole():
        averages.reset_state()
        for batch in batches:
            add(*map(tf.constant, batch))
        return averages.read()

    expected = whole()
    loss = SoftmaxCrossEntropy()
    y, outputs = (tf.constant(np.concatenate(part)) for part in zip(*batches, strict=True))
    y, outputs = tf.reshape(y, [-1]), tf.reshape(outputs, [-1, 5])
    np.testing.assert_allclose(expected["loss"], np.mean(loss.per_example(y, outputs)), rtol=1e-6)
    np.testing.assert_allclose(expected["error"], np.mean(loss.mistakes(y, outputs)), rtol=1e-6)
    state = tf.train.Checkpoint(sums=averages.sums.value)
    averages.reset_state()
    for number, batch in enumerate(batches):
        add(*map(tf.constant, batch))
        path = state.write(f"{folder}/{number}")
        averages.reset_state()
        state.read(path)
    assert averages.read() == expected, (averages.read(), expected)
    print("replicas agree")


if __name__ == "__main__":
    main(sys.argv[1])
