"""No pipeline is tuned while it runs, for whoever drops its iterator would wait for the tuner to wake up."""

import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import from_arrays, stream_of
from tfbio.data.pipelines import without_tuner
from tfbio.data.registry import load
from tfbio.training.feeds import make_feed


class Strategy:
    """One that keeps what it shall distribute."""

    num_replicas_in_sync = 1

    def experimental_distribute_dataset(self, dataset):
        self.dataset = dataset
        return dataset


def plain():
    return tf.data.Dataset.range(8).map(lambda i: (i, i), num_parallel_calls=tf.data.AUTOTUNE).batch(2)


def test_data_sets_of_ours_have_no_tuner(folder):
    stream = load(f"image_folder:{folder}", batch_size=4, size=16)[0]
    memory = from_arrays(np.zeros((8, 2, 2, 1), np.uint8), np.zeros(8, np.int32), 4)
    for dataset in (stream, stream_of(stream).batches(0), memory):
        assert dataset.options().autotune.enabled is False


@pytest.mark.parametrize("as_function", [False, True])
def test_the_trainer_leaves_it_out_of_all_others(as_function):
    strategy = Strategy()
    feed = make_feed((lambda epoch: plain()) if as_function else plain(), strategy)
    feed.open(0, 1)
    assert strategy.dataset.options().autotune.enabled is False
    assert [list(x) for x, _ in strategy.dataset.as_numpy_iterator()] == [[2, 3], [4, 5], [6, 7]]


def test_who_asks_for_it_keeps_it():
    options = tf.data.Options()
    options.autotune.enabled = True
    assert without_tuner(plain().with_options(options)).options().autotune.enabled is True
