"""The launchers of several processes, with a program in tfbio's place that only says how it was called."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).parents[1] / "launchers"
PROGRAM = """#!/usr/bin/env bash
index=${TF_CONFIG##*index\\": }
index=${index%%\\}*}
echo "$TF_CONFIG" >"config-$index"
echo "$@" >"arguments-$index"
echo "worker $index speaks"
if [ "${FAIL:-}" = "$index" ]; then exit 7; fi
if [ -n "${WAIT:-}" ]; then
    trap 'echo stopped >"stopped-$index"; exit 143' TERM
    touch "waiting-$index"
    for _ in $(seq 300); do sleep 0.1; done
fi
"""


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(LAUNCHERS, tmp_path / "launchers")
    functions = (
        "root=$PWD",
        "environment=$PWD/bin_",
        "dry_run=${dry_run:-}",
        'run() { if [ -n "$dry_run" ]; then echo "$@"; else "$@"; fi; }',
        "prepare_environment() { :; }",
    )
    (tmp_path / "launchers" / "_environment.sh").write_text("\n".join(functions) + "\n")
    program = tmp_path / "bin_" / "bin" / "tfbio"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    return tmp_path


def start(folder, *arguments, **environment):
    command = ["bash", "launchers/multi_worker.sh", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **pipes)


def test_every_process_is_told_of_the_others(folder):
    process = start(folder, "3", "train", "--gin_file=a.gin", "--workdir=w", PORT="5000")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output == "worker 0 speaks\n"  # the others speak to their logs
    assert (folder / "w" / "workers" / "worker-2.log").read_text() == "worker 2 speaks\n"
    for index in range(3):
        task = json.loads((folder / f"config-{index}").read_text())
        assert task["cluster"] == {"worker": ["localhost:5000", "localhost:5001", "localhost:5002"]}
        assert task["task"] == {"type": "worker", "index": index}
        arguments = (folder / f"arguments-{index}").read_text()
        assert arguments == 'train --gin_file=a.gin --workdir=w --gin_param=train.strategy="multi_worker"\n'


@pytest.mark.parametrize("failing", ["0", "1"])
def test_a_failure_stops_the_others(folder, failing):
    process = start(folder, "2", "train", FAIL=failing, WAIT="yes")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7, errors


def test_a_signal_reaches_all(folder):
    process = start(folder, "2", "train", WAIT="yes")
    deadline = time.monotonic() + 30
    while len(list(folder.glob("waiting-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert len(list(folder.glob("stopped-*"))) == 2


def test_dry_run_starts_nothing(folder):
    process = start(folder, "--dry_run", "2", "train", "--gin_param=train.epochs=1")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.count("bin/tfbio train --gin_param=train.epochs=1") == 2 and '"index": 1' in output
    assert not list(folder.glob("arguments-*")) and not (folder / "runs").exists()


@pytest.mark.parametrize("arguments", [(), ("two", "train"), ("2",)])
def test_wrong_calls(folder, arguments):
    process = start(folder, *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "launchers/multi_worker.sh N train" in errors


def test_slurm_passes_everything_on():
    command = ["bash", str(LAUNCHERS / "slurm.sbatch"), "--dry_run", "train", "--gin_param=a=1"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert output.startswith("srun ") and "tfbio train --gin_param=a=1" in output and "multi_worker" in output
    assert subprocess.run(command[:2], capture_output=True, timeout=60, check=False).returncode == 2
