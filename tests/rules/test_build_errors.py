"""Models, losses and names that a rule refuses, and what it says then."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio

RULES = ["bp", "fa", "dfa"]
ALL = pytest.mark.parametrize("name", RULES)


def dense(activation=None, *above):
    return keras.Sequential([keras.Input((4,)), L.Dense(5, "softmax"), L.Dense(3, activation, name="last"), *above])


def operation(function):
    x = keras.Input((4,))
    return keras.Model(x, function(L.Dense(3)(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x)


ENDINGS = {
    "activation argument": lambda: dense("softmax"),
    "sigmoid": lambda: dense("sigmoid"),
    "log_softmax": lambda: dense("log_softmax"),
    "Activation layer": lambda: dense(None, L.Activation("softmax")),
    "float32 Activation layer": lambda: dense(None, L.Activation("softmax", dtype="float32")),
    "Softmax layer": lambda: dense(None, L.Softmax()),
    "TensorFlow's softmax": lambda: dense(tf.nn.softmax),
    "TensorFlow's log_softmax": lambda: dense(tf.nn.log_softmax),
    "layer as an activation": lambda: dense(L.Softmax()),
    "float32 linear Activation above": lambda: dense("softmax", L.Activation("linear", dtype="float32")),
    "reshaping above": lambda: dense("softmax", L.Reshape((1, 3)), L.Flatten()),
    "softmax operation": lambda: operation(keras.ops.softmax),
    "log_softmax operation": lambda: operation(keras.ops.log_softmax),
    "nested": lambda: keras.Sequential([keras.Input((4,)), dense("softmax")]),
    "nested twice": lambda: operation(
        keras.Sequential([keras.Input((3,)), keras.Sequential([keras.Input((3,)), L.Softmax()])])
    ),
    "keras.applications": lambda: keras.applications.MobileNet(
        weights=None, input_shape=(32, 32, 3), classes=3, alpha=0.25
    ),
}


@pytest.mark.parametrize("make", ENDINGS.values(), ids=ENDINGS)
def test_a_model_that_ends_in_a_softmax_is_refused(make):
    for name in RULES[: 1 if make is ENDINGS["keras.applications"] else None]:
        with pytest.raises(ValueError, match="expected logits.*classifier_activation=None"):
            tfbio.rules.get(name).build(make(), "softmax_cross_entropy")


@ALL
def test_other_activations_pass(name):
    for loss, activation in (
        ("softmax_cross_entropy", "tanh"),
        ("mean_squared_error", "sigmoid"),
        ("mean_squared_error", "softmax"),
        ("softmax_cross_entropy", None),
    ):
        tfbio.rules.get(name).build(dense(activation), loss)
    with pytest.raises(ValueError, match="SigmoidCrossEntropy contains.*'last'.*ends in sigmoid"):
        tfbio.rules.get(name).build(dense("sigmoid"), "sigmoid_cross_entropy")


@ALL
def test_a_rule_is_built_once(name):
    rule, model = tfbio.rules.get(name), dense()
    rule.build(model, "softmax_cross_entropy")
    with pytest.raises(ValueError, match=f"already built for '{model.name}'.*from_config"):
        rule.build(dense(), "softmax_cross_entropy")
    assert rule.model is model
    again = type(rule).from_config(rule.get_config())
    again.build(model, "softmax_cross_entropy")  # what the message says works


@ALL
def test_a_rule_whose_build_failed_is_built_with_another_model(name):
    rule = tfbio.rules.get(name)
    with pytest.raises(ValueError, match="expected logits"):
        rule.build(dense("softmax"), "softmax_cross_entropy")
    rule.build(dense(), "softmax_cross_entropy")


@pytest.mark.parametrize("name, sentence", [("dfa", "cut the subclassed"), ("dtp", "subclassed.*Backpropagation")])
def test_a_rule_whose_setup_failed_is_built_with_another_model(name, sentence):
    rule, model = tfbio.rules.get(name), Subclassed()
    model(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=sentence):
        rule.build(model, "softmax_cross_entropy")
    rule.build(dense(), "softmax_cross_entropy")


@ALL
def test_models_that_are_none(name):
    for model, sentence in (
        (keras.Sequential([L.Dense(3)]), "expected a built model"),
        (Subclassed(), "expected a built model"),
        (L.Dense(3), "expected a keras.Model"),
        (None, "expected a keras.Model"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tfbio.rules.get(name).build(model, "softmax_cross_entropy")


@pytest.mark.parametrize("name", ["drtp", "dtp"])
def test_several_outputs_are_refused(name):
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="expected one output, received 2|received losses of several outputs"):
        tfbio.rules.get(name).build(keras.Model(x, [L.Dense(2)(x), L.Dense(3)(x)]), "mean_squared_error")


def test_backpropagation_trains_a_subclassed_model():
    model = Subclassed()
    model(np.zeros((1, 4)))
    rule = tfbio.rules.Backpropagation()
    rule.build(model, "softmax_cross_entropy")
    assert len(rule.compute(np.ones((2, 4), "float32"), np.array([0, 1])).forward) == 2


def test_layers_without_feedback_are_refused_by_name_unless_allowed():
    model = keras.Sequential([keras.Input((5, 4)), L.LSTM(6, dropout=0.1, name="memory"), L.Dense(3)])
    with pytest.raises(ValueError, match=r"'memory' \(LSTM\).*allow_backpropagation=\('memory',\)"):
        tfbio.rules.FeedbackAlignment().build(model, "softmax_cross_entropy")
    with pytest.raises(ValueError, match=r"allow_backpropagation.*\['memroy'\]"):
        tfbio.rules.FeedbackAlignment(allow_backpropagation=["memroy"]).build(dense(), "softmax_cross_entropy")
    rule = tfbio.rules.FeedbackAlignment(allow_backpropagation=["memory"])
    rule.build(model, "softmax_cross_entropy")
    x, y = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32"), np.array([0, 1])
    exact = tfbio.rules.Backpropagation()
    exact.build(model, "softmax_cross_entropy")
    model.get_layer("memory").cell.dropout = 0.0  # for the comparison
    for a, b in zip(rule.compute(x, y).forward, exact.compute(x, y).forward, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # the only other layer is the last, symmetric one


def test_unknown_feedback_is_refused():
    with pytest.raises(ValueError, match="Invalid value for `feedback`.*'nothing'"):
        tfbio.rules.FeedbackRule("nothing").build(dense(), "mean_squared_error")
    with pytest.raises(ValueError, match="Invalid value for `feedback`.*'sane'"):
        tfbio.rules.FeedbackAlignment(last_layer="sane").build(dense(), "mean_squared_error")


def test_direct_feedback_needs_fixed_sizes():
    model = keras.Sequential([keras.Input((None, 4)), L.Conv1D(3, 2), L.GlobalAveragePooling1D(), L.Dense(3)])
    tfbio.rules.DirectFeedbackAlignment().build(model, "softmax_cross_entropy")  # cut behind the pooling: fixed
    with pytest.raises(ValueError, match="stages of a fixed size.*Give the model a fixed input shape"):
        tfbio.rules.DirectFeedbackAlignment(cuts=[model.layers[0].name]).build(model, "softmax_cross_entropy")
