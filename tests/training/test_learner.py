"""The rules behind Keras's `compile` and `fit`; that its numbers are the trainer's is in `test_trainer`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

X = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
CLASSES = np.arange(12) % 4


def learner(loss="softmax_cross_entropy", metrics=()):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    result = tfbio.Learner(model, "bp")
    result.compile("sgd", loss, metrics=metrics, jit_compile=False)
    return result


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (CLASSES[:, None], r"one-hot rows of shape \(batch, 4\), received shape \(12, 1\).*y\[:, 0\]"),
        (np.eye(5)[CLASSES], r"received shape \(12, 5\)"),
        (CLASSES + 1, "from 0 to 3.*received labels from 1 to 4"),
    ],
)
def test_labels_that_do_not_fit_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        learner().fit(X, y, verbose=0)


def test_a_column_of_class_numbers_in_a_data_set_is_refused():
    data = tf.data.Dataset.from_tensor_slices((X, CLASSES[:, None])).batch(4)
    for call in (learner().fit, learner().evaluate):
        with pytest.raises(ValueError, match="A column of class numbers"):
            call(data, verbose=0)


@pytest.mark.parametrize("y", [CLASSES, np.eye(4)[CLASSES]], ids=["numbers", "rows"])
def test_accuracy_is_what_the_error_leaves(y):
    kept = learner(metrics=["accuracy", keras.metrics.MeanSquaredError("mse")] if y.ndim > 1 else ["accuracy"])
    history = kept.fit(X, y, batch_size=4, epochs=2, verbose=0).history
    assert history["accuracy"] == pytest.approx([1 - error for error in history["error"]])
    right = np.mean(np.argmax(kept.model(X), -1) == CLASSES)
    assert kept.evaluate(X, y, batch_size=4, verbose=0, return_dict=True)["accuracy"] == pytest.approx(right)


def test_accuracy_of_a_regression_is_refused():
    with pytest.raises(ValueError, match="losses that classify, received it with MeanSquaredError"):
        learner("mean_squared_error", ["accuracy"])
