"""Folders, labels and settings whose names mean something to a pattern, a shell, a formula or a table."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio import export, files
from tfbio.analysis.report import report
from tfbio.experiments import config, study
from tfbio.experiments import run as runs
from tfbio.training import Checkpoints

PATTERNS = ("dir [v1]/r", "q?", "runs*", "a]", "[", "a\\b")


def small(input_shape, classes):
    return tfbio.models.fully_connected(input_shape, classes, units=(6,))


def settings(**options):
    return runs.Run(model=small, optimizer="adam", rule="fa", jit_compile=False, evaluate_on=("test",), **options)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_folder_that_tensorflow_takes_for_a_pattern_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = {
        "train": lambda: runs.train(name, settings(), quiet=True),
        "evaluate": lambda: runs.evaluate(name, settings()),
        "export": lambda: runs.export(name, settings()),
        "study": lambda: study.study(name, {"rule": {"fa": "rules/fa.gin"}}, run_cell=config.train_cell),
        "checkpoints": lambda: Checkpoints(name),
        "model": lambda: export.export(small((2, 2, 1), 2), name),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="expected a path without .* Choose another folder") as caught:
            call()
        assert "\n" not in str(caught.value) and repr(str(tmp_path / name)) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_current_folder_counts_too_and_so_does_a_bucket(tmp_path, monkeypatch):
    (tmp_path / "[1]").mkdir()
    monkeypatch.chdir(tmp_path / "[1]")
    with pytest.raises(ValueError, match="`workdir`"):
        files.check_no_pattern("workdir", "runs/q")
    with pytest.raises(ValueError, match="received 'gs://bucket/q"):
        files.check_no_pattern("workdir", "gs://bucket/q?")
    files.check_no_pattern("workdir", "gs://bucket/q")


def test_a_pattern_never_deletes_another_run_s_checkpoints(tmp_path):
    state = tf.train.Checkpoint(v=tf.Variable(1.0))
    kept = Checkpoints(str(tmp_path / "run1"))
    kept.save(state, 5)
    with pytest.raises(ValueError, match="`directory`"):
        Checkpoints(str(tmp_path / "run?")).save(state, 1)
    assert [path.name for path in kept.paths()] == ["step-5"]


def test_other_names_are_names(tmp_path):
    """A folder where a run is trained, gone on with, evaluated, exported, reported on."""
    name = "#1 50% {a,b} (ü) 'x' $HOME ~ & ;"
    folder = tmp_path / name / "r"
    (tmp_path / "given.gin").write_text(
        'include "quickstart.gin"\ntrain.epochs = 1\ntrain.jit_compile = False\ntrain.alignment = False\n'
    )
    config.run_train([str(tmp_path / "given.gin")], [], str(folder), quiet=True)
    result = config.run_train([str(tmp_path / "given.gin")], ["train.epochs=2"], str(folder), quiet=True)
    assert (result["epochs"], result["steps"]) == (2, 2 * 23)
    assert [path.name for path in Checkpoints(str(folder / "checkpoints")).paths()] == ["step-23", "step-46"]
    error = config.run_evaluate(str(folder), [], "test", best=False)["error"]
    assert error == pytest.approx(result["final"]["test_error"])
    path, saved = config.run_export(str(folder), [], False, False)
    model, loaded, x = keras.models.load_model(path), tf.saved_model.load(saved), np.zeros((1, 8, 8, 1), "float32")
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-6)
    assert report(str(tmp_path / name)).startswith(f"# {name}\n")


def test_labels_and_layers_are_text_in_tables_and_pictures(tmp_path):
    """A label that is half a formula ended a study's report after all of its training."""
    folder = tmp_path / "r"
    folder.mkdir()
    figures = {"epoch": 1, "error": 0.5, "alignment_angle/layer/$\\foo$": 3.0}
    (folder / "metrics.jsonl").write_text(json.dumps(figures) + "\n")
    labels = {"rule|of\nmine": "a|b\nc", "network": "$\\foo$", "dataset": "$1 or $2"}
    (folder / "result.json").write_text(json.dumps({"labels": labels, "seed": 0, "final": {"test_error": 0.1}}))
    table = report(str(tmp_path)).splitlines()
    assert table[2].startswith("| rule\\|of mine | network | dataset | seeds |")
    assert table[4].startswith("| a\\|b c | $\\foo$ | $1 or $2 | 1 |")
    assert {"learning_curves.png", "alignment_curves.png"} <= set(os.listdir(tmp_path))
