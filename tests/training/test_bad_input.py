"""What does not fit is refused before the first step, in a sentence that says what to change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.training import NonFiniteLoss


def model(outputs=4):
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(outputs)])


def data(x_shape=(12, 5), y=None):
    labels = np.zeros(12, np.int32) if y is None else np.asarray(y)
    return tf.data.Dataset.from_tensor_slices((np.ones(x_shape, "float32"), labels)).batch(4)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (data(x_shape=(12, 6)), r"expected inputs of shape \(None, 5\).*received a batch of shape \(4, 6\)"),
        (data(x_shape=(12, 5, 1)), "expected inputs of shape"),
        (data(y=np.full(12, 4)), "from 0 to 3"),
        (data(y=np.full(12, -1)), "from 0 to 3"),
        (data(y=np.zeros((12, 3))), "one-hot rows of shape"),
        (data(y=np.zeros((12, 2, 2))), "class numbers of shape"),
        (data().take(0), "empty"),
        (data().map(lambda x, y: x), "expected batches"),
        (np.ones((12, 5)), "expected a tf.data.Dataset"),
    ],
)
def test_data_that_do_not_fit(dataset, message):
    trainer = tfbio.Trainer(model(), "fa", "sgd", jit_compile=False)
    with pytest.raises(ValueError, match=message):
        trainer.fit(dataset, verbose=False)
    assert int(trainer.step.numpy()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "feedback_alignement"}, "Invalid value for `rule`.*FeedbackAlignment"),
        ({"loss": "nothing"}, "Invalid value for `loss`.*mean_squared_error"),
        ({"loss": keras.losses.MeanSquaredError(reduction="sum")}, "averaged over the global batch"),
        ({"optimizer": "gradient descent"}, "Invalid value for `optimizer`"),
        ({"jit_compile": "yes"}, "jit_compile"),
        ({"steps_per_loop": 0}, "steps_per_loop"),
        ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"accumulation_steps": 1.5}, "accumulation_steps"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfbio.Trainer(model(), **arguments)


def test_a_model_that_ends_in_softmax():
    layers = [keras.Input((5,)), keras.layers.Dense(4, "softmax")]
    with pytest.raises(ValueError, match="expected logits.*activation=None"):
        tfbio.Trainer(keras.Sequential(layers), "bp")


def test_an_unbuilt_model():
    with pytest.raises(ValueError, match="expected a built model"):
        tfbio.Trainer(keras.Sequential([keras.layers.Dense(4)]), "bp")


@pytest.mark.parametrize("rule", ["bp", "fa"])
def test_a_subclassed_model_trains(rule):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(4)

        def call(self, x):
            return self.layer(x)

    own = Own()
    own(np.ones((1, 5), "float32"))
    tfbio.Trainer(own, rule, jit_compile=False).fit(data(), verbose=False)


def test_bad_labels_after_the_first_batch_stop_training():
    labels = np.zeros(12, np.int32)
    labels[10] = 9
    trainer = tfbio.Trainer(model(), "bp", "sgd", jit_compile=False)
    with pytest.raises(NonFiniteLoss, match="The loss became nan at step 3"):
        trainer.fit(data(y=labels), verbose=False)
