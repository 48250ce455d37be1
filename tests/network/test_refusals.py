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


def subclassed():
    model = Subclassed()
    model(tf.zeros((1, 4)))
    return model


@pytest.mark.parametrize(
    "make, sentence",
    [
        (subclassed, "received the subclassed Subclassed.*Backpropagation"),
        (lambda: keras.Sequential([L.Dense(3)]), "without an input shape. Put keras.Input"),
    ],
)
def test_models_without_a_graph_can_not_be_cut_into_stages(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        tfbio.stages(make())


def recurrent():
    memory = L.LSTM(6, dropout=0.1, name="memory")
    return keras.Sequential([keras.Input((5, 4)), L.Dense(4), memory, L.Dense(3, name="top")])


def in_both_directions():
    memory = L.Bidirectional(L.GRU(6, reset_after=False, name="gru"), name="memory")
    return keras.Sequential([keras.Input((5, 4)), L.Dense(4), memory, L.Dense(3, name="top")])


@pytest.mark.parametrize(
    "make, name, kind", [(recurrent, "memory", "LSTM"), (in_both_directions, "memory/forward_gru", "GRU")]
)
def test_layers_without_feedback_are_refused_by_name_unless_allowed(make, name, kind):
    model = make()
    with pytest.raises(ValueError, match=rf"'{name}' \({kind}\).*allow_backpropagation=\('{name}',"):
        tfbio.with_feedback(model, "random")
    network = tfbio.with_feedback(model, "random", allow_backpropagation=("memory",))
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    np.testing.assert_array_equal(network(x), model(x))
    assert [each.layer for each in network.feedback_layers] == [model.layers[0], model.layers[-1]]


def test_unknown_names_to_allow_are_refused():
    with pytest.raises(ValueError, match=r"allow_backpropagation.*\['memroy'\], which mean none; it has .*'memory/"):
        tfbio.with_feedback(recurrent(), "random", allow_backpropagation=("memory", "memroy"))
    network = tfbio.with_feedback(recurrent(), "random", allow_backpropagation=("memory", "top"))
    assert [each.layer for each in network.feedback_layers] == [network.model.layers[0]]
