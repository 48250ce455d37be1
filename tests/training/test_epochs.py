"""Epochs, and what belongs to them: their number, figures, callbacks and weights."""

import gc
import json
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints, JsonLines, TensorBoardScalars

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(80, 5)).astype("float32"), RANDOM.integers(0, 3, 80)


def model(seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])


def trainer(rule="bp", optimizer="sgd", seed=1, **options):
    return tfbio.Trainer(model(seed), rule, optimizer, jit_compile=False, **options)


def data(examples=80, size=8):
    return tf.data.Dataset.from_tensor_slices((X[:examples], Y[:examples])).batch(size)


class Epochs(keras.callbacks.Callback):
    """Notes the epochs and batches that begin."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append((self.seen[-1], batch) if isinstance(self.seen[-1], int) else batch)


def test_epochs_are_counted_over_data_of_different_lengths():
    made, noted = trainer(steps_per_loop=100), Epochs()
    made.fit(data(16), epochs=5, verbose=False)  # of 2 steps each
    made.fit(data(80), epochs=7, callbacks=[noted], verbose=False)  # of 10
    assert noted.seen == [5, (5, 0), 6, (6, 0)]
    assert made.epoch == 7 and int(made.step.numpy()) == 5 * 2 + 2 * 10


class Stop(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            raise KeyboardInterrupt


def test_an_epoch_begun_on_other_data_begins_anew():
    made, noted = trainer(steps_per_loop=1), Epochs()
    with pytest.raises(KeyboardInterrupt):
        made.fit(data(80), epochs=1, callbacks=[Stop(3)], verbose=False)
    made.fit(data(80), epochs=1, callbacks=[noted], verbose=False)
    assert noted.seen[1] == (0, 4)  # the same data go on
    noted.seen.clear()
    with pytest.raises(KeyboardInterrupt):
        made.fit(data(80), epochs=2, callbacks=[Stop(3)], verbose=False)
    made.fit(data(16), epochs=2, callbacks=[noted], verbose=False)
    assert noted.seen[:2] == [1, (1, 0)]


def test_an_epoch_without_any_weight_ends_with_a_sentence():
    nothing = tf.data.Dataset.from_tensor_slices((X, Y, np.zeros(80, "float32"))).batch(8)
    with pytest.raises(ValueError, match="`sample_weight`.* epoch 1, received zeros alone"):
        trainer().fit(nothing, verbose=False)
    with pytest.raises(ValueError, match="`sample_weight`.* evaluation, received zeros alone"):
        trainer().evaluate(nothing)


class Logging(tfbio.rules.Backpropagation):
    """Backpropagation that reports the mean of its inputs, which differs from batch to batch."""

    logs = ("mean_input",)

    def update(self, batch):
        return super().update(batch)._replace(logs={"mean_input": tf.reduce_mean(batch.x)})


@pytest.mark.parametrize("parts", [1, 3])
def test_a_rule_s_logs_reach_history_and_files(tmp_path, parts):
    made = trainer(Logging(), accumulation_steps=parts)
    writers = [JsonLines(str(tmp_path / "m.jsonl")), TensorBoardScalars(str(tmp_path / "events"))]
    size = 8 if parts == 1 else 6  # equal microbatches, without filling
    history = made.fit(data(60, size), epochs=2, callbacks=writers, verbose=False).history
    np.testing.assert_allclose(history["mean_input"], [X[:60].mean()] * 2, rtol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["mean_input"] for line in lines] == history["mean_input"]
    events = b"".join(path.read_bytes() for path in (tmp_path / "events").iterdir())
    assert b"mean_input" in events
    learner = tfbio.Learner(model(), Logging())
    learner.compile("sgd", jit_compile=False)
    found = learner.fit(data(60, 8), epochs=1, verbose=0).history["mean_input"]
    np.testing.assert_allclose(found, X[:60].mean(), rtol=1e-5)


def test_a_rule_must_say_what_it_logs():
    class Silent(Logging):
        logs = ()

    with pytest.raises(ValueError, match="`logs`; expected .*received .'mean_input'"):
        trainer(Silent()).fit(data(), verbose=False)


class Counting(tfbio.rules.Backpropagation):
    traces = 0

    def update(self, batch):
        Counting.traces += 1
        return super().update(batch)


def test_a_network_is_traced_once_for_all_splits():
    calls = []

    class Noting(keras.layers.Layer):
        def call(self, x):
            calls.append(None)
            return x

    keras.utils.set_random_seed(1)
    network = keras.Sequential([keras.Input((5,)), Noting(), keras.layers.Dense(3)])
    made = tfbio.Trainer(network, Counting(), "sgd", jit_compile=False)
    sets = [tfbio.data.from_arrays(X[:n], Y[:n], 8, shuffle=False) for n in (80, 40, 16)]
    made.evaluate(sets[0])
    before = len(calls)
    for split in (*sets, *sets):
        made.evaluate(split)
    streams = [data(n).map(lambda x, y: (x, y)) for n in (80, 40)]
    made.evaluate(streams[0])
    after = len(calls)
    made.evaluate(streams[1])
    assert len(calls) == after and after <= before + 1  # a stream's batches have no known size
    for number in range(3):
        made.fit(tfbio.data.from_arrays(X, Y, 8), epochs=number + 1, verbose=False)
    assert Counting.traces == 1


def test_no_data_are_kept():
    made = trainer()
    held = []
    for count in (2, 3, 4):
        part = data().take(count)
        made.evaluate(part)
        held.append(weakref.ref(part))
        del part
    gc.collect()
    assert [reference() for reference in held] == [None] * 3


class Hooks(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.called = []

    def __getattribute__(self, name):
        if name.startswith(("on_test", "on_predict")):
            object.__getattribute__(self, "called").append(name)
        return object.__getattribute__(self, name)


def test_hooks_of_tests_and_predictions_are_called():
    hooks, made = Hooks(), trainer()
    test = ["on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end"]
    made.fit(data(), validation_data=data(), callbacks=[hooks], verbose=False)
    assert [name for name in hooks.called if name in test][-4:] == test
    hooks.called.clear()
    made.evaluate(data(), callbacks=[hooks])
    assert [name for name in hooks.called if name in test][-4:] == test
    made.predict(X, batch_size=40, callbacks=[hooks])
    predict = ["on_predict_begin", *["on_predict_batch_begin", "on_predict_batch_end"] * 2, "on_predict_end"]
    assert hooks.called[-6:] == predict


def test_averaged_weights_are_evaluated_by_keras_s_callback():
    """`SwapEMAWeights` swaps within the hooks of tests."""
    made = trainer("bp", keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9))
    swapped = made.fit(
        data(), validation_data=data(), callbacks=[keras.callbacks.SwapEMAWeights()], verbose=False
    ).history
    plain = trainer("bp", keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9))
    history = plain.fit(data(), validation_data=data(), verbose=False).history
    assert swapped["loss"] == history["loss"]
    averaged = plain.evaluate(data())["loss"]  # `fit` ends with the averages in the model
    assert swapped["val_loss"][0] == pytest.approx(averaged, rel=1e-5) != history["val_loss"][0]


def stateful():
    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=1e9, min_lr=1e-9),
        keras.callbacks.EarlyStopping("loss", patience=5, min_delta=1e9, restore_best_weights=True),
    ]


def test_callbacks_go_on_where_they_were(tmp_path):
    """Nothing counts as an improvement: the rate halves every two epochs, and the sixth is the last."""
    whole, first, second = (trainer("bp", keras.optimizers.SGD(0.1), seed) for seed in (1, 1, 9))
    expected = whole.fit(data(), epochs=20, callbacks=stateful(), verbose=False).history
    assert len(expected["loss"]) == 6 and len(set(expected["learning_rate"])) == 3
    first.fit(data(), epochs=3, callbacks=stateful(), checkpoints=Checkpoints(str(tmp_path)), verbose=False)
    assert second.restore(Checkpoints(str(tmp_path))) == 30
    found = second.fit(data(), epochs=20, callbacks=stateful(), verbose=False).history
    assert found["loss"] == expected["loss"][3:]
    assert found["learning_rate"] == expected["learning_rate"][3:]
    for a, b in zip(whole.model.weights, second.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)  # those of the best epoch, the first


def test_augmentation_rests_in_evaluation_and_goes_on_after_a_restart(tmp_path):
    def noisy(seed=1):
        return trainer(seed=seed, preprocessing=keras.layers.Dropout(0.5, seed=seed), steps_per_loop=1)

    made = noisy()
    assert made.evaluate(data())["loss"] == pytest.approx(trainer().evaluate(data())["loss"], rel=1e-6)
    expected = made.fit(data(), epochs=2, validation_data=data(), verbose=False).history
    assert expected["loss"] != trainer().fit(data(), epochs=2, verbose=False).history["loss"]
    first, second = noisy(), noisy(9)
    with pytest.raises(KeyboardInterrupt):
        saving = Checkpoints(str(tmp_path), every_steps=1)
        first.fit(data(), epochs=2, checkpoints=saving, callbacks=[Stop(4)], verbose=False)
    second.restore(Checkpoints(str(tmp_path)))
    found = second.fit(data(), epochs=2, validation_data=data(), verbose=False).history
    assert found["loss"] == expected["loss"] and found["val_loss"] == expected["val_loss"]


@pytest.mark.parametrize("function", [False, True])
def test_functions_learn_whether_they_train(function):
    """A function of its own, or a layer without `training` that calls another one."""
    if function:

        def preprocessing(x, training):
            return 0.0 * x if training else x
    else:

        class Outer(keras.layers.Layer):
            def __init__(self):
                super().__init__()
                self.inner = keras.layers.Dropout(0.999)

            def call(self, x):
                return self.inner(x)

        preprocessing = Outer()
    made, plain = trainer(preprocessing=preprocessing), trainer()
    assert made.evaluate(data())["loss"] == pytest.approx(plain.evaluate(data())["loss"], rel=1e-6)
    made.fit(data().take(1), verbose=False)
    np.testing.assert_array_equal(made.model.weights[0], model().weights[0])  # of inputs 0 it learns nothing
    plain.fit(data().take(1), verbose=False)
    assert np.abs(plain.model.weights[0] - model().weights[0]).max() > 1e-3
