"""Two replicas take the same steps as one; logical devices need a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


def agree(script, argument):
    command = [sys.executable, str(Path(__file__).with_name(script)), argument]
    process = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "replicas agree" in process.stdout


@pytest.mark.parametrize(
    "rule", ["bp", "fa", "dfa", "dfa_regenerated", "brsf", "kp", "wm", "dtp", "ao_sdtp", "ddtp", "ldrl"]
)
def test_two_replicas_equal_one(rule):
    agree("replicas.py", rule)


def test_two_replicas_of_streamed_pictures_equal_one(tmp_path):
    agree("streamed_replicas.py", str(tmp_path))
