"""Two replicas take the same steps as one; logical devices need a process of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "rule", ["bp", "fa", "dfa", "dfa_regenerated", "brsf", "kp", "wm", "dtp", "ao_sdtp", "ddtp", "ldrl"]
)
def test_two_replicas_equal_one(rule):
    script = Path(__file__).with_name("replicas.py")
    process = subprocess.run([sys.executable, str(script), rule], capture_output=True, text=True, timeout=280)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "replicas agree" in process.stdout
