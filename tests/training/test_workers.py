"""Two worker processes take the same steps as one; they meet over loopback."""

import json
import runpy
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from processes import Script

from tfbio.experiments.run import _restored
from tfbio.training import strategies
from tfbio.training.strategies import make_strategy, slurm_cluster

SCRIPT = Path(__file__).with_name("worker.py")
run = runpy.run_path(str(SCRIPT))["run"]
write_pictures = runpy.run_path(str(SCRIPT.with_name("pictures.py")))["write_pictures"]


def start(count, rule, workdir, epochs):
    """The processes of a cluster of `count` workers, or a single one without a cluster."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(count):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        config, strategy = (json.dumps(task), "multi_worker") if count > 1 else (None, "one_device")
        processes.append(Script(SCRIPT, rule, workdir, epochs, strategy, CUDA_VISIBLE_DEVICES="", TF_CONFIG=config))
    return processes


def ends(processes):
    """Exit code, output and errors of each; where one fails to end, none is left behind."""
    try:
        return [process.finish() for process in processes]
    finally:
        for process in processes:
            process.kill()


def finish(processes, code=0):
    ended = ends(processes)
    for found, _, errors in ended:
        assert found == code, errors[-3000:]
    return [output for _, output, _ in ended]


def weights(workdir, rule, epochs):
    trainer = _restored(str(workdir), run(rule, epochs, "one_device")).trainer
    return [variable.numpy() for variable in (*trainer.model.variables, *trainer.rule.variables)]


@pytest.mark.parametrize("rule", ["dtp", "dfa streamed", "kp pictures"])  # tests/stress/two_workers.py has the others
def test_two_workers_equal_one(rule, tmp_path):
    if rule.endswith("pictures"):
        write_pictures(tmp_path / "pictures", 25, 7)  # three batches of 8, and one picture for the first worker
        rule = rule.replace("pictures", f"image_folder:{tmp_path / 'pictures'}")
    one, two = (finish(start(count, rule, tmp_path / str(count), 2)) for count in (1, 2))
    assert "epoch 2/2" in one[0] and "epoch 2/2" in two[0] and not two[1]  # the chief alone reports
    for a, b in zip(*(weights(tmp_path / count, rule, 2) for count in "12"), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    first, second = (json.loads((tmp_path / count / "result.json").read_text()) for count in "12")
    assert second["final"] == pytest.approx(first["final"], rel=1e-3)
    assert second["alignment"] == pytest.approx(first["alignment"], rel=1e-2, abs=0.1)
    lines = (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_killed_workers_go_on_bit_for_bit(tmp_path):
    rule = "fa normalized"  # the workers' own moving statistics, too
    finish(start(2, rule, tmp_path / "whole", 12))
    killed = start(2, rule, tmp_path / "killed", 12)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("step-*.index")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in killed:
        process.send_signal(signal.SIGKILL)
    finish(killed, -signal.SIGKILL)
    assert list(checkpoints.glob("step-*.index")) and not (tmp_path / "killed" / "result.json").exists()
    finish(start(2, rule, tmp_path / "killed", 12))
    for a, b in zip(*(weights(tmp_path / name, rule, 12) for name in ("whole", "killed")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_to_one_worker_stops_all_of_them_with_one_checkpoint(tmp_path):
    processes = start(2, "fa", tmp_path / "run", 100000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)  # not the chief
    ended = ends(processes)
    stopped = [errors.rpartition("TrainingInterrupted: ")[2].split(";")[0] for _, _, errors in ended]
    assert stopped[0] == stopped[1] and stopped[0].startswith("Stopped at step"), ended
    step = stopped[0].split()[-1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{step}.index").exists()


def test_cluster_of_a_slurm_job():
    environment = {
        "SLURM_STEP_NODELIST": "gpu[08-10,12],login",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1(x3)",
        "SLURM_PROCID": "3",
    }
    found = slurm_cluster(environment, port=5000)
    nodes = ["gpu08:5000", "gpu08:5001", "gpu09:5000", "gpu09:5001", "gpu10:5000", "gpu12:5000", "login:5000"]
    assert found == {"cluster": {"worker": nodes}, "task": {"type": "worker", "index": 3}}
    assert slurm_cluster({}) is None
    alone = {"SLURM_STEP_NODELIST": "a1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_PROCID": "0"}
    assert slurm_cluster(alone, port=5000)["cluster"] == {"worker": ["a1:5000"]}


def test_one_device_needs_no_strategy(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["the only one"] * (kind == "CPU"))
    assert make_strategy("mirrored") is make_strategy("one_device")


def test_strategies_that_are_refused(monkeypatch):
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG"):
        make_strategy("multi_worker")
    with pytest.raises(ValueError, match="synchronous"):
        make_strategy("parameter_server")
    with pytest.raises(ValueError, match="'tpu', received 'tpus'"):
        make_strategy("tpus")


@pytest.fixture
def no_tpu_connected():
    strategies._connected.cache_clear()
    yield
    strategies._connected.cache_clear()


@pytest.mark.usefixtures("no_tpu_connected")
def test_a_tpu_that_is_not_there_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="'local' gave none .*TPU_NAME") as caught:
        make_strategy("tpu", "local")
    assert "\n" not in str(caught.value)

    def refuse(address):
        raise OSError(f"no route to {address}\nand a second line")

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", refuse)
    monkeypatch.setenv("TPU_NAME", "pod")
    with pytest.raises(ValueError, match="'pod' gave none .no route to pod.: run"):
        make_strategy("tpu")


@pytest.mark.usefixtures("no_tpu_connected")
def test_the_tpu_that_is_meant_is_the_one_that_is_taken(monkeypatch):
    """With both of TensorFlow's parts replaced: what they do with a TPU can't be seen without one."""
    connected = []

    def connect(address):
        connected.append(address)
        return f"at {address}"

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", connect)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver: ("strategy", resolver))
    monkeypatch.delenv("TPU_NAME", raising=False)
    assert make_strategy("tpu") == ("strategy", "at local")
    monkeypatch.setenv("TPU_NAME", "pod")
    assert make_strategy("tpu") == ("strategy", "at pod")
    assert make_strategy("tpu", "grpc://10.0.0.2:8470") == ("strategy", "at grpc://10.0.0.2:8470")
    # To look whether it is there and then to use it starts a TPU once.
    assert strategies.is_there("tpu")
    assert connected == ["local", "pod", "grpc://10.0.0.2:8470"]
