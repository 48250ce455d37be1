"""Broadcast feedback puts one signal on each channel, wherever the layers keep their channels."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

from tfbio.feedback.projections import make_projections
from tfbio.layers import LocallyConnected2D
from tfbio.network.graph import channel_axis
from tfbio.rules import DirectFeedbackAlignment


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


def broadcast(shape, axis):
    (projection,) = make_projections("broadcast", None, 1.0, 3, 10, [shape], "float32", [axis])
    return projection.variables[0].numpy(), projection.project(tf.eye(10)).numpy().reshape(10, *shape)


def test_a_signal_is_the_same_at_all_positions_of_a_channel():
    matrix, signal = broadcast((6, 4, 5), 0)
    assert matrix.shape == (10, 6)
    np.testing.assert_array_equal(signal, np.broadcast_to(matrix[:, :, None, None], signal.shape))
    matrix, signal = broadcast((6, 4, 5), -1)
    assert matrix.shape == (10, 5)
    np.testing.assert_array_equal(signal, np.broadcast_to(matrix[:, None, None], signal.shape))


def conv(data_format):
    return L.Conv2D(4, 3, data_format=data_format)


def test_the_last_layer_that_knows_decides():
    first, last = conv("channels_first"), conv("channels_last")
    for layers, rank, axis in [
        ([first, L.ReLU()], 3, 0),
        ([last, L.ReLU()], 3, -1),
        ([last, first], 3, 0),
        ([first, L.ReLU(), L.MaxPooling2D(data_format="channels_first"), L.BatchNormalization(axis=1)], 3, 0),
        ([first, L.Dense(4)], 3, -1),  # acts on the last axis
        ([first, L.Permute((2, 3, 1))], 3, -1),
        ([first, L.Reshape((5, -1))], 2, -1),
        ([L.ReLU()], 3, -1),
    ]:
        assert channel_axis(layers, rank) == axis


def test_keras_s_own_setting_decides_for_images_of_which_no_layer_knows(channels_first):
    assert channel_axis([L.ReLU()], 3) == 0
    assert channel_axis([L.ReLU()], 2) == channel_axis([L.ReLU()], 1) == -1
    assert channel_axis([conv("channels_last"), L.ReLU()], 3) == -1
    assert channel_axis([conv(None)], 3) == 0


def test_a_network_of_channels_first():
    """Locally connected layers run on CPUs with channels first: the one network is the other one, transposed."""
    updates = []
    for data_format in ("channels_first", "channels_last"):
        keras.utils.set_random_seed(0)
        first = data_format == "channels_first"
        shape = (3, 6, 5) if first else (6, 5, 3)
        model = keras.Sequential(
            [
                keras.Input(shape),
                LocallyConnected2D(4, 2, activation="tanh", data_format=data_format),
                L.GlobalAveragePooling2D(data_format=data_format),
                L.Dense(3),
            ]
        )
        rule = DirectFeedbackAlignment(seed=1, storage="broadcast", cuts=[model.layers[0].name])
        rule.build(model, "softmax_cross_entropy")
        assert rule.variables[0].shape == (3, 4)
        x = np.random.default_rng(0).normal(size=(4, 6, 5, 3)).astype("float32")
        x = np.moveaxis(x, 3, 1) if first else x
        updates.append(rule.compute(x, np.array([0, 1, 2, 0])).forward)
    for a, b in zip(*updates, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
