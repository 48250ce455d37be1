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
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # A shell can't trap what was ignored when it started, as SIGINT is in what another one runs in the background.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, **options)


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


@pytest.mark.parametrize(
    ("send", "number", "code"),
    [
        (os.kill, signal.SIGTERM, 143),
        (os.kill, signal.SIGINT, 130),
        (os.killpg, signal.SIGINT, 130),  # as a terminal does on Ctrl-C
    ],
)
def test_a_signal_reaches_all(folder, send, number, code):
    process = start(folder, "2", "train", WAIT="yes")
    deadline = time.monotonic() + 30
    while len(list(folder.glob("waiting-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    send(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == code
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
    shown = subprocess.run([*command[:3], *AWKWARD], capture_output=True, text=True, timeout=60, check=True).stdout
    assert words(shown)[-len(AWKWARD) - 1 : -1] == AWKWARD  # a line that a shell takes as it is
    assert subprocess.run(command[:2], capture_output=True, timeout=60, check=False).returncode == 2


AWKWARD = ["train", "-n", "", "--gin_file=a b.gin", """--gin_param=load.name="a\\\\b's & $(HOME) @NAME@ `x`\n[*]?\""""]
RECORDER = """#!/usr/bin/env bash
printf '%s\\0' "$(basename "$0")" "$@" >>"$RECORD"
printf '\\0' >>"$RECORD"
if [ "${!#}" = --filename=- ]; then cat >"$RECORD.manifest"; fi
for word; do case $word in *.tar.gz) tar -tzf "$word" >"$RECORD.files" ;; esac; done
"""


def words(line):
    """What a shell makes of a line."""
    command = ["bash", "-c", f"printf '%s\\0' {line}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def launch(folder, launcher, *arguments, **environment):
    """Runs a launcher with programs in the place of gcloud and kubectl that only note how they were called."""
    programs, record = folder / "programs", folder / "record"
    programs.mkdir(exist_ok=True)
    for name in ("gcloud", "kubectl"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "RECORD": str(record), **environment}
    command = ["bash", f"launchers/{launcher}", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    calls = [call.split("\0") for call in record.read_text().split("\0\0")[:-1]] if record.exists() else []
    return done, calls


def test_kubernetes_tells_every_worker_of_the_others(folder):
    done, calls = launch(folder, "kubernetes.sh", "3", "reg/im&ge:1", *AWKWARD, NAME="digits", GPUS="8", CLAIM="disk")
    assert done.returncode == 0, done.stderr
    assert calls == [["kubectl", "apply", "--filename=-"]]
    manifest = (folder / "record.manifest").read_text()
    lines = {line.strip().partition(": ")[0]: line.partition(": ")[2] for line in manifest.splitlines()}
    expected = {"completions": "3", "parallelism": "3", "nvidia.com/gpu": "8"}
    assert {name: lines[name] for name in expected} == expected
    assert lines["image"] == '"reg/im&ge:1"' and lines["claimName"] == '"disk"'
    arguments = [argument.replace("$$(", "$(") for argument in json.loads(lines["args"])]
    assert arguments == [*AWKWARD, '--gin_param=train.strategy="multi_worker"']
    assert "$$(HOME)" in lines["args"]  # or the cluster would fill it in
    (config,) = [line for line in manifest.splitlines() if "cluster" in line and "value:" in line]
    config = json.loads(config.partition("value: ")[2].strip("'").replace("$(INDEX)", "1"))
    assert config["cluster"] == {"worker": [f"digits-{index}.digits:22222" for index in range(3)]}
    assert config["task"] == {"type": "worker", "index": 1}
    assert lines["subdomain"].startswith('"digits" ') and manifest.count(' name: "digits"\n') == 2
    assert "@" not in manifest.replace("@NAME@ `x`", "").replace("@…@", "")


def test_a_tpu_is_made_filled_and_deleted(folder):
    environment = {"NAME": "t", "ZONE": "z", "ACCELERATOR": "v5litepod-8", "VERSION": "tpu-vm-tf-2.20.0-pjrt"}
    for name in (".git/HEAD", "runs/q/run.json", "gin/runs/base.gin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    for command in ("create", "copy", "delete"):
        done, calls = launch(folder, "tpu_vm.sh", command, **environment)
        assert done.returncode == 0, done.stderr
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    create, copy, install, delete = calls
    options = ["--accelerator-type=v5litepod-8", "--version=tpu-vm-tf-2.20.0-pjrt", "--zone=z"]
    assert create == [*tpu, "create", "t", *options]
    archive = Path(copy[5])
    assert copy == [*tpu, "scp", str(archive), "t:", "--worker=0", "--zone=z"] and archive.name == "tfbio.tar.gz"
    assert not archive.parent.exists()
    files = (folder / "record.files").read_text().split()
    assert "./gin/runs/base.gin" in files and not [file for file in files if file.startswith(("./.git/", "./runs/"))]
    assert install[4:7] == ["ssh", "t", "--worker=0"] and "pip install" in install[7]
    assert delete == [*tpu, "delete", "t", "--quiet", "--zone=z"]


@pytest.mark.parametrize(
    ("version", "settings"),
    [
        ("tpu-vm-tf-2.20.0-pod-pjrt", ["TPU_NAME=t", "TPU_LOAD_LIBRARY=0"]),  # a slice: its servers hold the TPUs
        ("tpu-vm-tf-2.20.0-pjrt", ["TPU_NAME=local", "TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so"]),
        ("tpu-vm-tf-2.20.0", ["TPU_NAME=local"]),
    ],
)
def test_one_program_drives_a_whole_slice(folder, version, settings):
    done, calls = launch(folder, "tpu_vm.sh", "run", *AWKWARD, NAME="t", ZONE="z", VERSION=version)
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert call[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "t", "--worker=0"]
    for setting in settings:
        assert f" {setting} " in call[7]
    assert ("TPU_LOAD_LIBRARY" in call[7]) == ("-pod" in version)
    # What the machine's shell makes of the command is what was given here.
    assert words(call[7].partition(".venv/bin/tfbio ")[2]) == [*AWKWARD, '--gin_param=train.strategy="tpu"']


@pytest.mark.parametrize(
    ("launcher", "arguments", "shown"),
    [
        ("kubernetes.sh", ["2", "image", "train"], ["kubectl apply", 'args: ["train"', "kind: Job"]),
        ("tpu_vm.sh", ["create"], ["tpu-vm create t"]),
        ("tpu_vm.sh", ["copy"], ["tpu-vm scp", "pip install"]),
        ("tpu_vm.sh", ["run", "train"], ["tfbio train"]),
        ("tpu_vm.sh", ["delete"], ["tpu-vm delete t"]),
    ],
)
def test_dry_runs_of_clusters_only_print(folder, launcher, arguments, shown):
    environment = {"NAME": "t", "ZONE": "z", "ACCELERATOR": "a", "VERSION": "v"}
    done, calls = launch(folder, launcher, "--dry_run", *arguments, **environment)
    assert done.returncode == 0 and not calls, done.stderr
    assert all(text in done.stdout for text in shown)


@pytest.mark.parametrize(
    ("launcher", "arguments"),
    [
        ("kubernetes.sh", []),
        ("kubernetes.sh", ["two", "image", "train"]),
        ("kubernetes.sh", ["2", "image"]),
        ("tpu_vm.sh", []),
        ("tpu_vm.sh", ["run"]),
        ("tpu_vm.sh", ["delete", "all"]),
        ("tpu_vm.sh", ["stop"]),
    ],
)
def test_wrong_calls_of_clusters(folder, launcher, arguments):
    done, calls = launch(folder, launcher, *arguments, NAME="t", ZONE="z")
    assert done.returncode == 2 and f"bash launchers/{launcher}" in done.stderr and not calls


@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["create"], ["NAME", "ZONE", "ACCELERATOR", "VERSION"]),
        (["copy"], ["NAME", "ZONE"]),
        (["run", "train"], ["NAME", "ZONE", "VERSION"]),
        (["delete"], ["NAME", "ZONE"]),
    ],
)
def test_all_variables_that_a_tpu_needs_are_listed(folder, dry, arguments, wanted):
    unset = dict.fromkeys(("NAME", "ZONE", "ACCELERATOR", "VERSION"), "")
    done, calls = launch(folder, "tpu_vm.sh", *dry, *arguments, **unset)
    assert done.returncode == 2 and not calls
    assert [line.split(",")[0].strip() for line in done.stderr.splitlines()[1:]] == wanted
    done, calls = launch(folder, "tpu_vm.sh", *dry, *arguments, **{**unset, "NAME": "t"})
    assert [line.split(",")[0].strip() for line in done.stderr.splitlines()[1:]] == wanted[1:] and not calls


@pytest.mark.parametrize("variables", [{"NAME": "My_run"}, {"NAME": "1a"}, {"NAME": "a" * 53}, {"GPUS": "two"}])
def test_names_that_a_cluster_does_not_take(folder, variables):
    done, calls = launch(folder, "kubernetes.sh", "2", "image", "train", **variables)
    assert done.returncode == 2 and f"received '{variables.get('NAME', 'tfbio')}'" in done.stderr and not calls


@pytest.mark.parametrize(
    ("launcher", "arguments"),
    [
        ("local.sh", []),
        ("local.sh", ["train", "--workdir=w"]),
        ("test.sh", ["tests/rules", "-x"]),
        ("multi_worker.sh", ["2", "train", "--workdir=w"]),
        ("kubernetes.sh", ["2", "image", "train"]),
        ("slurm.sbatch", ["train", "--workdir=w"]),
        ("tpu_vm.sh", ["run", "train"]),
    ],
)
def test_every_launcher_takes_dry_run_first_and_makes_nothing(tmp_path, launcher, arguments):
    """With the real environment, which is neither there nor made."""
    shutil.copytree(LAUNCHERS, tmp_path / "launchers")
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    environment = {"NAME": "t", "ZONE": "z", "VERSION": "v", "PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    command = ["bash", f"launchers/{launcher}", "--dry_run", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert (arguments or ["tfbio study"])[-1] in done.stdout and "dry_run" not in done.stdout


@pytest.mark.parametrize("flag", [["--workdir", "w d"], ["-workdir=w d"], ["-workdir", "w d"], ["--workdir=w d"]])
def test_logs_of_workers_are_in_the_work_directory(folder, flag):
    process = start(folder, "2", "train", *flag)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (folder / "w d" / "workers" / "worker-1.log").exists() and not (folder / "runs").exists()
