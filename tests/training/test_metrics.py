"""Keras metrics: NumPy's figures, weighted, reset each epoch, in checkpoints."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints, JsonLines

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(44, 5)).astype("float32"), RANDOM.integers(0, 6, 44)
WEIGHTS = RANDOM.uniform(0.5, 2.0, 44).astype("float32")


def model(seed=1, outputs=6):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(7, "tanh"), keras.layers.Dense(outputs)])


def trainer(metrics, seed=1, **options):
    return tfbio.Trainer(model(seed), "fa", "sgd", metrics=metrics, jit_compile=False, **options)


def data(weighted=True, size=8):
    return tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS) if weighted else (X, Y)).batch(size)


def dense():
    return data().map(lambda x, y, w: (x, tf.one_hot(y, 6), w))


def top(k, logits):
    return np.any(np.argsort(-logits, 1)[:, :k] == Y[:, None], 1)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_they_are_numpy_s(jit_compile):
    metrics = [keras.metrics.SparseTopKCategoricalAccuracy(3, name="top_3"), "sparse_categorical_crossentropy"]
    made = tfbio.Trainer(model(), "bp", "sgd", metrics=metrics, jit_compile=jit_compile)
    logits = made.model(X).numpy()
    figures = made.evaluate(data())
    assert figures["top_3"] == pytest.approx(np.average(top(3, logits), weights=WEIGHTS), rel=1e-5)
    assert figures["sparse_categorical_crossentropy"] == pytest.approx(figures["loss"], rel=1e-5)  # of probabilities
    assert made.evaluate(data(False, 44))["top_3"] == pytest.approx(np.mean(top(3, logits)))


def test_they_start_anew_each_epoch_and_reach_every_log(tmp_path):
    made = trainer(["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(1, name="top_1")])
    lines = JsonLines(str(tmp_path / "metrics.jsonl"))
    history = made.fit(data(), epochs=3, validation_data=data(), callbacks=[lines], verbose=False).history
    np.testing.assert_allclose(history["top_1"], history["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(history["accuracy"], 1 - np.array(history["error"]))
    np.testing.assert_allclose(history["val_top_1"], history["val_accuracy"], rtol=1e-6)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["top_1"] for line in written] == history["top_1"]
    assert len(set(history["top_1"])) > 1


class Evaluating(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        self.trainer.evaluate(dense())


def test_an_evaluation_within_an_epoch_leaves_them_alone():
    plain, disturbed = (trainer(["mean_squared_error"], steps_per_loop=2) for _ in range(2))
    evaluating = Evaluating()
    evaluating.trainer = disturbed
    expected = plain.fit(dense(), epochs=2, verbose=False).history
    found = disturbed.fit(dense(), epochs=2, callbacks=[evaluating], verbose=False).history
    assert found["mean_squared_error"] == expected["mean_squared_error"]


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def metrics():
    return [keras.metrics.AUC(num_thresholds=50, name="auc"), "mean_squared_error"]


def test_resumed_within_an_epoch_they_are_the_undisturbed_ones(tmp_path):
    whole, first, second = (trainer(metrics(), seed, steps_per_loop=1) for seed in (1, 1, 9))
    expected = whole.fit(dense(), epochs=2, verbose=False).history
    saving = Checkpoints(str(tmp_path), every_steps=1)
    with pytest.raises(KeyboardInterrupt):
        first.fit(dense(), epochs=2, checkpoints=saving, callbacks=[Stop()], verbose=False)
    assert second.restore(Checkpoints(str(tmp_path))) == 2
    found = second.fit(dense(), epochs=2, verbose=False).history
    for name in ("auc", "mean_squared_error", "loss"):
        assert found[name] == expected[name]


class Largest(keras.metrics.Metric):
    """The largest probability: no sum."""

    def __init__(self):
        super().__init__(name="largest")
        self.value = self.add_variable((), "zeros", name="value")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(tf.maximum(tf.convert_to_tensor(self.value), tf.reduce_max(y_pred)))

    def result(self):
        return self.value


class Unweighted(Largest):
    def update_state(self, y_true, y_pred):
        self.value.assign_add(tf.reduce_sum(y_pred))


def test_what_is_no_sum_is_refused_where_a_batch_is_taken_in_parts():
    made = trainer([Largest()])
    assert made.evaluate(data())["largest"] == pytest.approx(np.max(made.loss.predict(made.model(X))), rel=1e-6)
    with pytest.raises(ValueError, match="'largest' .*microbatches"):
        trainer([Largest()], accumulation_steps=2).evaluate(data())
    with pytest.raises(ValueError, match="'largest' .*takes no `sample_weight`"):
        trainer([Unweighted()]).evaluate(data())


def test_one_number_each():
    with pytest.raises(ValueError, match="one number each.*'f1_score'.*average"):
        trainer([keras.metrics.F1Score()]).evaluate(dense())


def test_several_outputs_have_their_own():
    keras.utils.set_random_seed(1)
    x = keras.Input((5,))
    outputs = {"a": keras.layers.Dense(6, name="a")(x), "b": keras.layers.Dense(2, name="b")(x)}
    losses = {"a": "softmax_cross_entropy", "b": "mean_squared_error"}
    made = tfbio.Trainer(
        keras.Model(x, outputs), "bp", "sgd", losses, metrics={"b": ["mae"], "a": "accuracy"}, jit_compile=False
    )
    targets = RANDOM.normal(size=(44, 2)).astype("float32")
    labelled = tf.data.Dataset.from_tensor_slices((X, {"a": Y, "b": targets}, WEIGHTS)).batch(8)
    figures = made.evaluate(labelled)
    found = {name: value.numpy() for name, value in made.model(X).items()}
    mae = np.average(np.abs(found["b"] - targets).mean(1), weights=WEIGHTS)
    assert figures["b_mae"] == pytest.approx(mae, rel=1e-5)
    right = np.average(found["a"].argmax(1) == Y, weights=WEIGHTS)
    assert figures["a_accuracy"] == pytest.approx(right, rel=1e-5)
    history = made.fit(labelled, verbose=False).history
    assert {"b_mae", "a_accuracy", "a_loss", "b_loss", "a_error"} <= set(history)


def test_keras_weighs_what_it_is_asked_to_weigh():
    """`compile` has unweighted metrics and weighted ones; the trainer's are weighted."""
    top_1 = keras.metrics.SparseTopKCategoricalAccuracy
    learner = tfbio.Learner(model(), "bp")
    learner.compile("sgd", metrics=[top_1(1, name="plain")], weighted_metrics=[top_1(1, name="weighed")])
    figures = learner.evaluate(data(), verbose=0, return_dict=True)
    right = top(1, learner.model(X).numpy())
    assert figures["plain"] == pytest.approx(np.mean(right), rel=1e-5)
    assert figures["weighed"] == pytest.approx(np.average(right, weights=WEIGHTS), rel=1e-5)
    assert figures["weighed"] == pytest.approx(1 - figures["error"], rel=1e-5)
    assert trainer([top_1(1, name="weighed")]).evaluate(data())["weighed"] == pytest.approx(figures["weighed"])
