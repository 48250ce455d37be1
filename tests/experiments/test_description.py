"""Descriptions of runs: alike wherever the same run is made, different where anything that counts is."""

import keras
import numpy as np
import pytest

import tfbio
from tfbio.experiments import description


def branched(activation="relu", scale=2.0, swapped=False, dtype="float32"):
    """A nested model that is used twice, operations, a lambda, and no name given to anything."""
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, keras.layers.Activation(activation)(keras.layers.Dense(4)(inner_input)))
    inputs = keras.Input((4,))
    first, second = inner(inputs), keras.layers.Dense(4)(inputs)
    a, b = (second, first) if swapped else (first, second)
    joined = keras.layers.Subtract()([keras.ops.tanh(a), b * scale])
    joined = keras.layers.Lambda(lambda x: x, output_shape=(4,))(inner(joined))
    return keras.Model(inputs, keras.layers.Dense(2, dtype=dtype)(joined))


def test_networks_are_described_alike_whatever_was_made_before():
    first = description.network(branched())
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Activation("relu"), keras.layers.Dense(2)])
    assert description.network(branched()) == first
    keras.backend.clear_session()
    keras.layers.Subtract()
    assert description.network(branched()) == first
    classifier = keras.applications.MobileNetV3Small((32, 32, 3), weights=None, classes=3, classifier_activation=None)
    again = keras.applications.MobileNetV3Small((32, 32, 3), weights=None, classes=3, classifier_activation=None)
    assert description.network(classifier) == description.network(again)


def test_an_operation_called_like_an_activation_is_not_taken_for_it():
    def made():
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Dense(2)(keras.ops.tanh(keras.layers.Dense(3, "tanh")(inputs))))

    keras.backend.clear_session()
    assert description.network(made()) == description.network(made())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"activation": "tanh"}, "layers.1.config.layers.2.config.activation"),
        ({"scale": 3.0}, "inbound_nodes.0"),
        ({"swapped": True}, "keras_history.0"),
        ({"dtype": "float64"}, "config.dtype"),
    ],
)
def test_networks_of_the_same_weights_differ_by_what_they_compute(change, path):
    found = description.differences(description.network(branched()), description.network(branched(**change)))
    assert path in ".".join(next(found)[0])


def test_a_network_that_can_not_be_serialized_has_no_description():
    class Opaque(keras.layers.Layer):
        def __init__(self, table):
            super().__init__()
            self.table = table

        def call(self, x):
            return x

    assert description.network(keras.Sequential([keras.Input((4,)), Opaque(object())])) is None


def test_batches_of_any_data_set():
    images, labels = np.zeros((10, 4, 4, 1), np.uint8), np.zeros(10, np.int32)
    own = tfbio.data.from_arrays(images, labels, 4, augmentation="flip", drop_remainder=True)
    expected = {"steps_per_epoch": 2, "shuffle": True, "augmentation": "flip"}
    assert description.batches(own) == expected
    assert description.batches(own.take(1)) == {"steps_per_epoch": 1}
    assert description.batches(own.repeat()) == description.batches(lambda epoch: own) == {"steps_per_epoch": None}


def test_batches_of_a_stream(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        keras.utils.save_img(tmp_path / split / "a" / "1.png", np.zeros((8, 8, 3)))
    train, _ = tfbio.data.load(f"image_folder:{tmp_path}", batch_size=1, size=8, augmentation="random_resized_crop")
    expected = {"steps_per_epoch": 1, "shuffle": True, "augmentation": "random_resized_crop", "resizing": "crop"}
    assert description.batches(train) == expected
