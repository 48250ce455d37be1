"""Runs in a work directory: what they leave there, how they go on, and what they refuse."""

import functools
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from processes import output_of

import tfbio
from tfbio.experiments import run as runs
from tfbio.experiments.run import Run, WorkdirError, train
from tfbio.training import TrainingInterrupted

#: Data sets are functions of their arguments and the epoch, so that a run may have another's.
digits = functools.cache(tfbio.data.load)


def settings(**options):
    options = {
        "load": digits,
        "model": small,
        "epochs": 2,
        "optimizer": "adam",
        "jit_compile": False,
        "evaluate_on": ("test",),
        **options,
    }
    return Run(**options)


def small(input_shape, classes):
    return tfbio.models.fully_connected(input_shape, classes, units=(12,))


def rectified(input_shape, classes):
    return tfbio.models.fully_connected(input_shape, classes, units=(12,), activation="relu")


def loads(**settings):
    """A data set with settings of its own, which those of a call come before, as gin has it."""
    return lambda **options: digits(**{**settings, **options})


def held_out(**options):
    return digits(validation=200, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, run):
    return runs._restored(str(folder), run).trainer.model.get_weights()


def test_a_run_directory_holds_what_the_documents_say(tmp_path):
    result = train(str(tmp_path), settings(rule="fa", alignment=True, published={"test_error": 0.1}), quiet=True)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert [line["epoch"] for line in lines(tmp_path)] == [1, 2]
    assert {"loss", "error", "test_loss", "test_error", "seconds", "step", "angle/total"} <= set(lines(tmp_path)[0])
    assert {"run.json", "metrics.jsonl", "tensorboard", "checkpoints", "result.json"} <= set(os.listdir(tmp_path))
    assert list((tmp_path / "tensorboard").iterdir())
    assert result["epochs"] == 2 and result["steps"] == 2 * 23 and result["parameters"] == 64 * 12 + 12 + 12 * 10 + 10
    assert result["labels"] == {"dataset": "digits", "network": "fully_connected", "rule": "FeedbackAlignment"}
    assert result["final"]["test_error"] == pytest.approx(lines(tmp_path)[-1]["test_error"])
    assert result["best"] is None  # nothing is selected on test data unasked
    assert result["alignment"]["angle/total"] == pytest.approx(lines(tmp_path)[-1]["angle/total"], abs=1e-3)
    assert result["published"] == {"test_error": 0.1}


def test_the_same_seed_is_the_same_run_and_another_is_not(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(str(tmp_path / name), settings(rule="dfa", seed=seed, load=tfbio.data.load), quiet=True)
    a, b, c = ([line["loss"] for line in lines(tmp_path / name)] for name in "abc")
    assert a == b and a != c


def test_goes_on_after_an_interruption_as_if_nothing_had_happened(tmp_path, monkeypatch):
    options = {"rule": "fa", "load": held_out, "evaluate_on": ("validation",), "patience": 2, "epochs": 6}
    options["optimizer"] = lambda: keras.optimizers.Adam(0.1)  # so large that the loss soon gets worse
    whole = train(str(tmp_path / "whole"), settings(**options), quiet=True)
    assert whole["epochs"] < 6  # stopped early

    original = keras.callbacks.EarlyStopping.on_epoch_end
    calls = []

    def interrupt(self, epoch, logs=None):
        original(self, epoch, logs)
        calls.append(epoch)
        if len(calls) == 2:
            os.kill(os.getpid(), 15)

    monkeypatch.setattr(keras.callbacks.EarlyStopping, "on_epoch_end", interrupt)
    with pytest.raises(TrainingInterrupted):
        train(str(tmp_path / "parts"), settings(**options), quiet=True)
    monkeypatch.setattr(keras.callbacks.EarlyStopping, "on_epoch_end", original)
    assert not (tmp_path / "parts" / "result.json").exists()
    parts = train(str(tmp_path / "parts"), settings(**options), quiet=True)
    assert parts["epochs"] == whole["epochs"] and parts["final"] == whole["final"] and parts["best"] == whole["best"]
    for a, b in zip(*(weights(tmp_path / name, settings(**options)) for name in ("whole", "parts")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_run_again_and_more_epochs_go_on(tmp_path):
    first = train(str(tmp_path), settings(), quiet=True)
    assert train(str(tmp_path), settings(), quiet=True) == first
    longer = train(str(tmp_path), settings(epochs=3), quiet=True)
    assert longer["epochs"] == 3 and [line["epoch"] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rule": "fa"}, "rule"),
        ({"seed": 5}, "seed"),
        ({"batch_size": 32}, "batch_size"),
        ({"optimizer": "sgd"}, "optimizer.class_name was 'Adam', is now 'SGD'"),
        ({"model": rectified}, "network.*activation was 'tanh', is now 'relu'"),
        ({"load": loads(augmentation="crop")}, "batches.augmentation was None, is now 'crop'"),
        ({"load": loads(shuffle=False)}, "batches.shuffle was True, is now False"),
        ({"load": loads(drop_remainder=True)}, "batches.steps_per_epoch was 23, is now 22"),
        ({"load": loads(normalization="centered")}, "preprocessing"),
    ],
)
def test_a_directory_of_another_run_is_refused_untouched(finished, change, key):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(WorkdirError, match=f"other settings.*{key}.*Choose another"):
        train(str(finished), settings(**{"epochs": 3, **change}), quiet=True)
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    train(str(folder), settings(epochs=1), quiet=True)
    return folder


def test_more_parts_of_a_batch_may_go_on(finished, tmp_path):
    """Who runs out of memory in the middle asks for them."""
    shutil.copytree(finished, tmp_path / "run")
    keras.layers.InputLayer((1,))  # so that Keras counts on
    result = train(str(tmp_path / "run"), settings(epochs=2, accumulation_steps=2), quiet=True)
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1, 2] and result["epochs"] == 2


def test_a_split_that_is_evaluated_from_some_epoch_on_selects_among_these(tmp_path):
    train(str(tmp_path), settings(load=held_out, evaluate_on=(), epochs=1), quiet=True)
    best = train(str(tmp_path), settings(load=held_out, evaluate_on=("validation",), epochs=2), quiet=True)["best"]
    assert best["epoch"] == 2 and (tmp_path / "best.weights.h5").exists()
    best = train(str(tmp_path), settings(load=held_out, evaluate_on=(), epochs=3), quiet=True)["best"]
    assert best["epoch"] == 2  # its weights are still there


def test_best_is_selected_on_validation_and_on_test_only_by_name(tmp_path):
    run = settings(load=held_out, evaluate_on=("validation", "test"), epochs=3)
    best = train(str(tmp_path / "validation"), run, quiet=True)["best"]
    history = lines(tmp_path / "validation")
    expected = min(history, key=lambda line: line["val_error"])
    assert best["selected_on"] == "validation" and best["epoch"] == expected["epoch"]
    assert best["test_error"] == expected["test_error"]
    assert not list((tmp_path / "validation").glob("*.part*"))
    best = train(str(tmp_path / "test"), settings(select_on="test", epochs=3), quiet=True)["best"]
    assert best["selected_on"] == "test"
    assert best["error"] == min(line["test_error"] for line in lines(tmp_path / "test"))


def test_the_best_epoch_s_weights_are_kept_apart(tmp_path):
    """So large a learning rate that the last epoch is not the best; killed and resumed, it is the same file."""
    options = {"load": held_out, "evaluate_on": ("validation",), "epochs": 5}
    run = settings(optimizer=lambda: keras.optimizers.Adam(0.1), **options)
    best = train(str(tmp_path / "whole"), run, quiet=True)["best"]
    assert best["epoch"] < 5
    assert runs.evaluate(str(tmp_path / "whole"), run, "validation", best=True)["error"] == pytest.approx(best["error"])
    last = runs.evaluate(str(tmp_path / "whole"), run, "validation")["error"]
    assert last == pytest.approx(lines(tmp_path / "whole")[-1]["val_error"]) and last != pytest.approx(best["error"])
    runs.export(str(tmp_path / "whole"), run, best=True)
    exported = keras.models.load_model(tmp_path / "whole" / "export" / "model.keras").get_weights()
    small((8, 8, 1), 10).load_weights(tmp_path / "whole" / "best.weights.h5")  # plain Keras reads it

    half = settings(optimizer=lambda: keras.optimizers.Adam(0.1), **{**options, "epochs": best["epoch"]})
    train(str(tmp_path / "parts"), half, quiet=True)
    assert train(str(tmp_path / "parts"), run, quiet=True)["best"] == best
    restored = runs._restored(str(tmp_path / "parts"), run, best=True).trainer.model.get_weights()
    for a, b in zip(exported, restored, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_kept_apart_unless_a_split_selects(tmp_path):
    train(str(tmp_path), settings(epochs=1), quiet=True)
    assert not (tmp_path / "best.weights.h5").exists()
    with pytest.raises(WorkdirError, match="no best weights"):
        runs.evaluate(str(tmp_path), settings(epochs=1), best=True)


def test_epochs_trained_again_are_not_seen_twice(tmp_path):
    """Killed after an epoch's line was written and before its checkpoint: patience counts that epoch once."""
    run = settings(load=held_out, evaluate_on=("validation",), patience=2, epochs=6)
    run.optimizer = lambda: keras.optimizers.Adam(0.1)
    whole = train(str(tmp_path / "whole"), run, quiet=True)
    assert 3 <= whole["epochs"] < 6
    run.epochs = whole["epochs"] - 2
    train(str(tmp_path / "parts"), run, quiet=True)
    (tmp_path / "parts" / "metrics.jsonl").write_text((tmp_path / "whole" / "metrics.jsonl").read_text())
    run.epochs = 6
    parts = train(str(tmp_path / "parts"), run, quiet=True)
    assert parts["steps"] == whole["steps"] and parts["final"] == whole["final"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": "64"}, "`batch_size`: expected a positive int, received '64'"),
        ({"batch_size": 64.0}, "`batch_size`"),
        ({"checkpoint_steps": 0}, "`checkpoint_steps`: expected a positive int or None, received 0"),
        ({"alignment_steps": 0}, "`alignment_steps`"),
        ({"evaluate_on": "test"}, "evaluate_on"),
        ({"select_on": "train"}, "select_on"),
        ({"select_on": "test", "evaluate_on": ("validation",)}, '`select_on`.*Add "test" to evaluate_on'),
        ({"patience": 1, "select_on": "validation"}, "aside"),
        ({"strategy": "many"}, "strategy"),
    ],
)
def test_bad_settings(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        train(str(tmp_path), settings(**option), quiet=True)


def test_a_data_set_of_one_s_own_needs_the_documented_arguments_only(tmp_path):
    def load(split, batch_size, seed, shuffle=None):
        return tfbio.data.load("digits", split, batch_size, seed=seed, shuffle=shuffle)

    assert "test_error" in train(str(tmp_path), settings(load=load, epochs=1), quiet=True)["final"]


def test_splits_that_can_not_be_loaded_are_said_before_training(tmp_path):
    def load(split, **options):
        if split == "test":
            raise tfbio.data.DataNotFoundError("no test data here")
        return tfbio.data.load("digits", split, **options)

    with pytest.raises(tfbio.data.DataNotFoundError, match="no test data"):
        train(str(tmp_path / "new"), settings(load=load, evaluate_on=()), quiet=True)
    assert not (tmp_path / "new" / "metrics.jsonl").exists()
    train(str(tmp_path / "old"), settings(epochs=1), quiet=True)
    with pytest.raises(tfbio.data.DataNotFoundError, match="no test data"):
        train(str(tmp_path / "old"), settings(load=load, evaluate_on=()), quiet=True)
    assert (tmp_path / "old" / "result.json").exists()  # what was finished stays so


def test_moving_averages_are_evaluated_and_exported_as_they_were_reported(tmp_path):
    averaging = {"class_name": "SGD", "config": {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.9}}
    first = train(str(tmp_path), settings(optimizer=averaging, epochs=1), quiet=True)["final"]
    assert runs.evaluate(str(tmp_path), settings(optimizer=averaging))["loss"] == first["test_loss"]
    longer = train(str(tmp_path), settings(optimizer=averaging, epochs=2), quiet=True)["final"]
    whole = train(str(tmp_path / "whole"), settings(optimizer=averaging, epochs=2), quiet=True)["final"]
    assert longer == whole


def test_evaluate_needs_a_run(tmp_path):
    with pytest.raises(WorkdirError, match="no run directory"):
        runs.evaluate(str(tmp_path), settings())
    result = train(str(tmp_path), settings(), quiet=True)
    figures = runs.evaluate(str(tmp_path), settings())
    assert figures["error"] == result["final"]["test_error"]
    with pytest.raises(ValueError, match="no validation examples"):
        runs.evaluate(str(tmp_path), settings(), "validation")


@pytest.fixture(scope="module")
def of_direct_feedback(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dfa")
    train(str(folder), settings(rule="dfa"), quiet=True)
    return folder


@pytest.mark.parametrize("preprocessing", [False, True])
def test_exports_load_where_tfbio_can_not_be_imported(of_direct_feedback, tmp_path, preprocessing):
    run = settings(rule="dfa")
    shutil.copytree(of_direct_feedback, tmp_path, dirs_exist_ok=True)
    runs.export(str(tmp_path), run, preprocessing)
    trainer = runs._restored(str(tmp_path), run).trainer
    raw = next(iter(tfbio.data.load("digits", "test", 20)[0]))[0].numpy()
    scaled = np.asarray(trainer.preprocessing(raw))
    expected = np.asarray(trainer.model(scaled))
    if preprocessing:
        expected = np.asarray(trainer.loss.predict(expected))
        np.testing.assert_allclose(expected.sum(1), 1.0, rtol=1e-5)
    np.save(tmp_path / "images.npy", raw if preprocessing else scaled)
    script = Path(__file__).parents[1] / "without_tfbio.py"
    assert "keras" in output_of(script, tmp_path / "images.npy", tmp_path / "export")
    for name in ("keras", "served"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected, rtol=1e-4, atol=1e-5)
