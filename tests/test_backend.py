"""Backends of Keras other than TensorFlow are refused, however they were chosen."""

import os
import subprocess
import sys
import types

import pytest

from tfbio.backend import check_backend


@pytest.fixture
def keras_to_come(monkeypatch, tmp_path):
    """A process in which Keras is not imported yet, with a home of its own."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    yield tmp_path / "keras.json"
    assert "keras" not in sys.modules  # to look takes no import


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_the_variable(keras_to_come, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with pytest.raises(ImportError, match=f"needs Keras's backend 'tensorflow', received '{backend}' .*KERAS_BACKEND"):
        check_backend()
    for allowed in ("tensorflow", ""):
        monkeypatch.setenv("KERAS_BACKEND", allowed)
        check_backend()


@pytest.mark.parametrize("module", ["tfbio", "tfbio.layers", "tfbio.cli"])
def test_the_package_says_it_on_import(module):
    command = [sys.executable, "-c", f"import {module}"]
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "ImportError: tfbio needs Keras's backend 'tensorflow'" in done.stderr


def test_the_file(keras_to_come, monkeypatch):
    check_backend()
    for text in ("{", "[]", "{}", '{"backend": "tensorflow"}'):
        keras_to_come.write_text(text)
        check_backend()
    keras_to_come.write_text('{"backend": "jax"}')
    with pytest.raises(ImportError, match="received 'jax' .*keras.json"):
        check_backend()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")  # comes before the file
    check_backend()


def test_keras_that_is_imported_already(monkeypatch):
    check_backend()
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # too late to change anything
    check_backend()
    other = types.SimpleNamespace(backend=types.SimpleNamespace(backend=lambda: "torch"))
    monkeypatch.setitem(sys.modules, "keras", other)
    with pytest.raises(ImportError, match="received 'torch' .Keras is imported already"):
        check_backend()
