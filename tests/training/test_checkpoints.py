"""A run that was stopped anywhere and resumed is, bit for bit, the run that never stopped."""

import functools
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


@functools.cache
def data(examples=52):
    """A function of epoch and position, so that one serves all trainers; the last batch is not full."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (examples, 8, 8, 1), np.uint8), rng.integers(0, 3, examples)
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


@pytest.mark.parametrize(("rule", "stop"), [("bp", 1), (AO_SDTP, 11)], ids=["bp", "ao_sdtp"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path, rule, stop):
    whole = make(rule, 1)
    expected = whole.fit(data(), epochs=3, verbose=False).history
    first = make(rule, 1, steps_per_loop=1)
    with pytest.raises(TrainingInterrupted) as caught:
        options = {"checkpoints": Checkpoints(str(tmp_path)), "callbacks": [StopAt(first, stop)]}
        first.fit(data(), epochs=3, verbose=False, **options)
    assert caught.value.signal_number == signal.SIGTERM
    assert_resumes(tmp_path, rule, stop, whole, expected)


def leave_oldest(checkpoints):
    """As if the run had been killed before it wrote the others."""
    for path in checkpoints.paths()[1:]:
        for file in path.parent.glob(f"{path.name}.*"):
            file.unlink()


# One of each kind of rule, and of what is random in one; tests/stress/resume.py has all of them, compiled and not.
@pytest.mark.parametrize(
    ("rule", "stop", "jit_compile"),
    [
        ("fa", 5, True),
        ("dfa_regenerated", 4, True),
        ("brsf", 9, False),
        ("kp", 10, False),
        ({"class_name": "wm", "config": {"interval": 3}}, 8, False),
        ("sdtp", 13, True),
        ("ddtp", 11, False),
        (LDRL, 11, False),
    ],
    ids=["fa", "dfa_regenerated", "brsf", "kp", "wm", "sdtp", "ddtp", "ldrl"],
)
def test_resumed_equals_uninterrupted(tmp_path, rule, stop, jit_compile):
    """From the checkpoint of a step that the whole run left on its way."""
    whole = make(rule, 1, jit_compile)
    saving = Checkpoints(str(tmp_path), every_steps=stop, keep=99)
    examples = 48 if jit_compile else 52  # XLA compiles each size of a batch
    expected = whole.fit(data(examples), epochs=3, checkpoints=saving, verbose=False).history
    leave_oldest(saving)
    assert_resumes(tmp_path, rule, stop, whole, expected, jit_compile, examples)


def assert_resumes(folder, rule, stop, whole, expected, jit_compile=False, examples=52):
    """Another trainer, that goes on from the checkpoint of step `stop`, ends where `whole` did, with its figures."""
    second = make(rule, 99, jit_compile)  # other weights, other feedback: all must come from the checkpoint
    assert second.restore(Checkpoints(str(folder))) == stop
    history = second.fit(data(examples), epochs=3, checkpoints=Checkpoints(str(folder)), verbose=False).history
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
    """In epochs of three steps, gone on with within the second."""
    whole, second = make("bp", 1), make("bp", 99)
    saving = Checkpoints(str(tmp_path), every_steps=5, keep=9)
    whole.fit(source(), epochs=3, steps_per_epoch=3, checkpoints=saving, verbose=False)
    leave_oldest(saving)
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
