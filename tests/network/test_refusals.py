"""Models and layers that can't be rewired or cut, and what is said then."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x)


def two_outputs():
    x = keras.Input((4,))
    return keras.Model(x, [L.Dense(2)(x), L.Dense(3)(x)])


def subclassed():
    model = Subclassed()
    model(tf.zeros((1, 4)))
    return model


@pytest.mark.parametrize("function", [tfbio.stages, lambda model: tfbio.with_feedback(model, "random")])
@pytest.mark.parametrize(
    "make, sentence",
    [
        (subclassed, "received the subclassed Subclassed.*Backpropagation"),
        (lambda: keras.Sequential([L.Dense(3)]), "without an input shape. Put keras.Input"),
        (two_outputs, "expected one output, received 2"),
    ],
)
def test_models_without_a_graph_of_one_output_are_refused(function, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        function(make())


def recurrent():
    return keras.Sequential([keras.Input((5, 4)), L.Dense(4), L.LSTM(6, name="memory"), L.Dense(3, name="top")])


def attention():
    x = inputs = keras.Input((5, 4))
    x = L.MultiHeadAttention(2, 3, name="attend")(x, x)
    return keras.Model(inputs, L.Dense(3)(x))


def distributed_in_time():
    return keras.Sequential([keras.Input((5, 4)), L.TimeDistributed(L.Dense(3), name="timed"), L.Dense(3)])


@pytest.mark.parametrize(
    "make, name, kind",
    [
        (recurrent, "memory", "LSTM"),
        (attention, "attend", "MultiHeadAttention"),
        (distributed_in_time, "timed", "TimeDistributed"),
    ],
)
def test_layers_without_feedback_are_refused_by_name_unless_allowed(make, name, kind):
    model = make()
    with pytest.raises(ValueError, match=rf"layer '{name}' \({kind}\).*allow_backpropagation=\('{name}',\)"):
        tfbio.with_feedback(model, "random")
    network = tfbio.with_feedback(model, "random", allow_backpropagation=(name,))
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    np.testing.assert_array_equal(network(x), model(x))
    assert network.get_layer(name) is model.get_layer(name)
    assert network.layers[-1].layer is model.layers[-1]


def test_unknown_names_to_allow_are_refused():
    with pytest.raises(ValueError, match=r"allow_backpropagation.*\['memroy'\]; the model has .*'memory'"):
        tfbio.with_feedback(recurrent(), "random", allow_backpropagation=("memory", "memroy"))
    network = tfbio.with_feedback(recurrent(), "random", allow_backpropagation=("memory", "top"))
    assert [type(layer).__name__ for layer in network.layers] == ["Feedback", "LSTM", "Dense"]
