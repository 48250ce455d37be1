"""A run that was stopped anywhere and resumed is, bit for bit, the run that never stopped."""

import logging
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.training import CheckpointError, Checkpoints, TrainingInterrupted

#: Several updates of its inverses a batch.
LDRL = {"class_name": "ldrl", "config": {"feedback_iterations": (1, 2, 3)}}
#: In the middle of a turn, with an optimizer for each kind of variables.
AO_SDTP = {"class_name": "ao_sdtp", "config": {"auxiliary_units": 3, "schedule": "alternating", "period": 3}}


def make(rule, seed, jit_compile=False, **options):
    """A trainer with everything that has a state: dropout, batch normalisation, momentum, feedback."""
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("tanh"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2, seed=5),
        keras.layers.Dense(6, "tanh"),
        keras.layers.Dense(3),
    ]
    optimizer = keras.optimizers.Adam(1e-2)
    preprocessing = keras.layers.Rescaling(1 / 255)
    return tfbio.Trainer(
        keras.Sequential(layers), rule, optimizer, preprocessing=preprocessing, jit_compile=jit_compile, **options
    )


def data():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (52, 8, 8, 1), np.uint8), rng.integers(0, 3, 52)
    return tfbio.data.from_arrays(images, labels, 8, seed=4, augmentation="flip_crop")


def state(trainer):
    optimizers = [o for o in (trainer.optimizer, trainer.feedback_optimizer) if o is not None]
    groups = (trainer.model.variables, trainer.rule.variables, *(o.variables for o in optimizers))
    return [variable.numpy() for group in groups for variable in group]


class StopAt(keras.callbacks.Callback):
    """Sends this process a signal once a step is reached."""

    def __init__(self, trainer, step, number=signal.SIGTERM):
        super().__init__()
        self._trainer, self._step, self._number = trainer, step, number

    def on_train_batch_end(self, batch, logs=None):
        if int(self._trainer.step.numpy()) == self._step:
            os.kill(os.getpid(), self._number)


@pytest.mark.parametrize(
    ("rule", "stop", "jit_compile"),
    [
        ("bp", 1, False),
        ("fa", 5, True),
        ("dfa", 13, True),
        ("dfa_regenerated", 4, True),
        ("brsf", 9, False),
        ("kp", 10, False),
        ({"class_name": "wm", "config": {"interval": 3}}, 8, False),
        ("dtp", 8, False),
        ("sdtp", 13, True),
        ("tp", 3, False),
        (AO_SDTP, 11, False),
        ("ddtp", 11, False),
        (LDRL, 11, False),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path, rule, stop, jit_compile):
    whole = make(rule, 1, jit_compile)
    expected = whole.fit(data(), epochs=3, verbose=False).history

    checkpoints = Checkpoints(str(tmp_path))
    first = make(rule, 1, jit_compile, steps_per_loop=1)
    with pytest.raises(TrainingInterrupted) as caught:
        first.fit(data(), epochs=3, checkpoints=checkpoints, callbacks=[StopAt(first, stop)], verbose=False)
    assert caught.value.signal_number == signal.SIGTERM
    second = make(rule, 99, jit_compile)  # other weights, other feedback: all must come from the checkpoint
    assert second.restore(Checkpoints(str(tmp_path))) == stop
    history = second.fit(data(), epochs=3, checkpoints=Checkpoints(str(tmp_path)), verbose=False).history
    for a, b in zip(state(whole), state(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history["loss"] == expected["loss"][-len(history["loss"]) :]  # the interrupted epoch's average too


def endless(epoch):
    """An order for each epoch, which goes on beyond it."""
    rng = np.random.default_rng(epoch)
    images, labels = rng.integers(0, 256, (13, 8, 8, 1), np.uint8), rng.integers(0, 3, 13)
    return tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(8)


@pytest.mark.parametrize("source", [data, lambda: endless], ids=["memory", "function"])
def test_resumed_equals_uninterrupted_where_steps_end_an_epoch(tmp_path, source):
    """In epochs of three steps, stopped within the second."""
    whole, second = make("bp", 1), make("bp", 99)
    whole.fit(source(), epochs=3, steps_per_epoch=3, verbose=False)
    first = make("bp", 1, steps_per_loop=1)
    with pytest.raises(TrainingInterrupted):
        options = {"checkpoints": Checkpoints(str(tmp_path)), "callbacks": [StopAt(first, 5)]}
        first.fit(source(), epochs=3, steps_per_epoch=3, verbose=False, **options)
    assert second.restore(Checkpoints(str(tmp_path))) == 5
    second.fit(source(), epochs=3, steps_per_epoch=3, verbose=False)
    for a, b in zip(state(whole), state(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    trainer = make("bp", 1, steps_per_loop=1)
    callbacks = [StopAt(trainer, 2, signal.SIGINT), StopAt(trainer, 2, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path)), callbacks=callbacks, verbose=False)
    assert not isinstance(caught.value, TrainingInterrupted)


def test_saves_by_step_and_keeps_the_newest(tmp_path):
    trainer = make("bp", 1)
    trainer.fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path), every_steps=2, keep=3), verbose=False)
    assert [path.name for path in Checkpoints(str(tmp_path)).paths()] == ["step-4", "step-6", "step-7"]


def test_saves_by_time_within_an_epoch(tmp_path):
    trainer = make("bp", 1, steps_per_loop=2)
    saving = Checkpoints(str(tmp_path), every_seconds=1e-3, keep=9)
    trainer.fit(data(), epochs=1, checkpoints=saving, verbose=False)
    assert [path.name for path in saving.paths()] == ["step-2", "step-4", "step-6", "step-7"]
    trainer.fit(data(), epochs=2, checkpoints=Checkpoints(str(tmp_path), keep=9), verbose=False)
    assert [path.name for path in saving.paths()][4:] == ["step-14"]  # not before its time


def test_a_truncated_checkpoint_is_passed_over_and_named(tmp_path, caplog):
    trainer = make("fa", 1)
    trainer.fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path), every_steps=3), verbose=False)
    newest = Checkpoints(str(tmp_path)).paths()[-1]
    for file in tmp_path.glob(f"{newest.name}.data*"):
        file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "tfbio"):
        assert make("fa", 2).restore(Checkpoints(str(tmp_path))) == 6
    assert newest.name in caplog.text and "step-6" in caplog.text


def test_no_readable_checkpoint_is_an_error(tmp_path):
    trainer = make("fa", 1)
    trainer.fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path)), verbose=False)
    for file in tmp_path.glob("*.data*"):
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 1 checkpoints.*Delete the folder"):
        make("fa", 1).restore(Checkpoints(str(tmp_path)))


def test_a_checkpoint_of_another_network_is_an_error(tmp_path):
    make("dfa", 1).fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path)), verbose=False)
    other = tfbio.Trainer(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]))
    with pytest.raises(CheckpointError):
        other.restore(Checkpoints(str(tmp_path)))


def test_nothing_to_restore(tmp_path):
    assert make("bp", 1).restore(Checkpoints(str(tmp_path / "none"))) == 0


@pytest.mark.parametrize("option", [{"every_steps": -1}, {"every_steps": 0}, {"every_seconds": 0}, {"keep": 0}])
def test_bad_policies(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        Checkpoints(str(tmp_path), **option)
