"""Work directories that are no local folders: TensorFlow's file system in memory stands for a bucket."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from etils.epath import backend, gpath, register

import tfbio
from tfbio.analysis.report import report
from tfbio.experiments import config, processes
from tfbio.experiments import run as runs
from tfbio.training import Checkpoints, TrainingInterrupted


@pytest.fixture
def bucket(monkeypatch, request):
    """A fresh `ram://` folder; the library of paths is told that the scheme is TensorFlow's, as it knows of `gs`."""
    monkeypatch.setattr(gpath, "_URI_PREFIXES", (*gpath._URI_PREFIXES, "ram://"))
    monkeypatch.setattr(gpath, "_URI_SCHEMES", gpath._URI_SCHEMES | {"ram"})
    monkeypatch.setitem(gpath._URI_MAP_ROOT, "ram://", "/ram/")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "ram", backend.tf_backend)
    register.register_path_cls(("ram://",))(gpath.PosixGPath)
    folder = f"ram://bucket/{request.node.name}"
    yield folder
    tf.io.gfile.rmtree("ram://bucket")


def settings(**options):
    def load(**arguments):
        return tfbio.data.load("digits", validation=1237, **arguments)  # 200 are left

    def model(input_shape, classes):
        return tfbio.models.fully_connected(input_shape, classes, units=(12,))

    options = {"load": load, "model": model, "rule": "kp", "evaluate_on": ("validation",), "epochs": 3, **options}
    return runs.Run(optimizer="adam", jit_compile=False, alignment_steps=2, checkpoint_steps=3, **options)


def lines(folder, name):
    text = tf.io.gfile.GFile(f"{folder}/{name}").read()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


def test_a_run_goes_on_in_a_bucket_as_in_a_folder(bucket, tmp_path, monkeypatch):
    expected = runs.train(str(tmp_path), settings(), quiet=True)

    def save(self, *arguments):
        path = original(self, *arguments)
        if path.endswith("-6"):
            os.kill(os.getpid(), 15)
        return path

    original = Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(TrainingInterrupted):
            runs.train(bucket, settings(), quiet=True)
    found = runs.train(bucket, settings(), quiet=True)
    assert found["final"] == expected["final"] and found["best"] == expected["best"]
    for name in ("metrics.jsonl", "alignment.jsonl"):
        assert lines(bucket, name) == lines(tmp_path, name)
    assert sorted(tf.io.gfile.listdir(bucket)) == sorted(os.listdir(tmp_path))
    assert len(tf.io.gfile.glob(f"{bucket}/checkpoints/*.index")) == 2

    assert runs.evaluate(bucket, settings(), "validation", best=True)["error"] == found["best"]["error"]
    model, _ = runs.export(bucket, settings())
    local, _ = runs.export(str(tmp_path), settings())
    tf.io.gfile.copy(model, str(tmp_path / "copy.keras"))
    for a, b in zip(*(keras.models.load_model(p).get_weights() for p in (tmp_path / "copy.keras", local)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert tf.saved_model.load(f"{bucket}/export/saved_model").serve(np.zeros((1, 8, 8, 1), "float32")).shape == (1, 10)
    rows = [report(folder).splitlines()[4].rsplit("|", 2) for folder in (bucket, str(tmp_path))]
    assert rows[0][0] == rows[1][0]  # all but the last column, seconds
    assert tf.io.gfile.GFile(f"{bucket}/learning_curves.png", "rb").read(4) == b"\x89PNG"
    with pytest.raises(runs.WorkdirError, match=f"^{bucket} holds a run with other settings.*seed"):
        runs.train(bucket, settings(seed=3), quiet=True)


def test_gin_files_come_from_buckets_too(bucket, monkeypatch):
    tf.io.gfile.makedirs(bucket)
    with tf.io.gfile.GFile(f"{bucket}/mine.gin", "w") as file:
        file.write('include "quickstart.gin"\ntrain.epochs = 1\ntrain.jit_compile = False\n')
    trained = config.run_train([f"{bucket}/mine.gin"], ["load.validation=1337"], f"{bucket}/run", quiet=True)
    assert trained["epochs"] == 1
    assert "train.epochs = 1" in tf.io.gfile.GFile(f"{bucket}/run/operative_config.gin").read()
    error = config.run_evaluate(f"{bucket}/run", [], "test", best=False)["error"]
    assert error == pytest.approx(trained["final"]["test_error"])
    with pytest.raises(runs.WorkdirError, match="no config.gin"):
        config.run_evaluate(f"{bucket}/other", [], "test", best=False)
    with pytest.raises(config.ConfigError, match="no file 'ram://bucket/none.gin'"):
        config.run_train(["ram://bucket/none.gin"], [], f"{bucket}/run")


def test_what_a_study_s_cell_prints_reaches_the_bucket(bucket, capfd):
    path = processes.Path(f"{bucket}/cell/log.txt")
    for text in ("first", "second"):
        with processes._output_to(path):
            os.write(1, f"{text}\n".encode())
    assert path.read_text() == "first\nsecond\n"
    assert capfd.readouterr().out == ""
