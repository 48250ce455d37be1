"""Strategies by name: where a run's replicas live."""

import tensorflow as tf

__all__ = ["make_strategy"]


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy called `name`.

    Args:
        name: `"one_device"` (TensorFlow's default: the first GPU, else the CPU) or `"mirrored"` (one replica on each
            visible GPU, or on each logical CPU if there is no GPU).

    Raises:
        ValueError: unknown name.
    """
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])
    raise ValueError(f"Invalid value for `strategy`: expected 'one_device' or 'mirrored', received {name!r}.")
