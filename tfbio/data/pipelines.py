"""How TensorFlow runs a pipeline of data."""

import tensorflow as tf

__all__ = ["without_tuner"]


def without_tuner(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """A data set without TensorFlow's tuner, unless its maker turned that on.

    The tuner's thread sleeps longer and longer between two looks, up to a minute, and who drops an iterator waits for
    it to wake (TensorFlow 2.21): after every epoch. What was left to the tuner (`tf.data.AUTOTUNE`) is as parallel as
    there are cores, up to 16.
    """
    if dataset.options().autotune.enabled is not None:
        return dataset
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
