"""A command's standard error while TensorFlow starts, with a module in TensorFlow's place where something is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfbio import startup

# The module by itself: its package may have imported TensorFlow.
START = f"""
import os, runpy, sys
start = runpy.run_path({str(Path(startup.__file__))!r})["import_tensorflow"]
exists = os.path.exists
os.path.exists = lambda path: "GPU" in os.environ if path == "/dev/nvidiactl" else exists(path)
start()
os.write(2, b"on\\n")
"""
FINDS_NOTHING = """
import types
config = types.SimpleNamespace(list_physical_devices=lambda kind: [])
"""


@pytest.fixture
def errors(tmp_path):
    """A function from what TensorFlow does on import, after a note, to what a process that starts it says."""

    def call(module, code=0, start=START, **environment):
        (tmp_path / "tensorflow.py").write_text(f"import os\nos.write(2, b'a note\\n')\n{module}")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0", **environment}
        command = [sys.executable, "-c", start]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        return done.stderr

    return call


def test_a_machine_without_gpu_is_no_news():
    """TensorFlow itself, whose first line comes before it reads any setting."""
    program = f"{START}\nimport tensorflow as tf\nassert tf.constant(1) + 1 == 2"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == "on\n" and done.stdout == ""


def test_a_run_says_nothing_but_its_own(tmp_path):
    """On a machine without a GPU, from the import to the export."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    options = ["--gin_param=train.epochs=1", "--gin_param=train.alignment=False"]
    for arguments in (["train", "--gin_file=quickstart.gin", *options], ["export"]):
        command = [sys.executable, "-m", "tfbio", *arguments, f"--workdir={tmp_path}"]
        done = subprocess.run(command, env={**environment, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "" and len(done.stdout.splitlines()) == 2


def test_notes_are_shown_if_a_gpu_is_not_found(errors):
    assert errors(FINDS_NOTHING, GPU="there") == "a note\non\n"
    assert errors(FINDS_NOTHING) == "on\n"
    assert errors(FINDS_NOTHING, GPU="there", CUDA_VISIBLE_DEVICES="") == "on\n"  # nor shall it be found


def test_notes_are_shown_if_the_import_fails(errors):
    shown = errors("raise ImportError('no libcudart')", code=1)
    assert shown.startswith("a note\nTraceback") and shown.endswith("ImportError: no libcudart\n")


def test_a_process_that_dies_says_where(errors):
    """As TensorFlow does on a processor for which it is not built."""
    shown = errors("os.abort()", code=-6)
    assert shown.startswith("Fatal Python error: Aborted") and "tensorflow.py" in shown


def test_without_a_standard_error(tmp_path):
    (tmp_path / "tensorflow.py").write_text(FINDS_NOTHING)
    start = START.rpartition("os.write")[0] + "print('on')"
    command = ["bash", "-c", 'exec "$@" 2>&-', "bash", sys.executable, "-c", start]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True).stdout == b"on\n"


def test_a_process_that_has_tensorflow_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(startup, "_errors_held_back", lambda: pytest.fail("would redirect"))
    startup.import_tensorflow()
