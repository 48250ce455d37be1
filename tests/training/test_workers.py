"""Two worker processes take the same steps as one; they meet over loopback."""

import json
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from processes import Script, output_of
from training.pictures import write_pictures
from training.worker import run

from tfbio.experiments.run import _restored, train
from tfbio.training import strategies
from tfbio.training.strategies import make_strategy, slurm_cluster

SCRIPT = Path(__file__).with_name("worker.py")
RULES = ["dtp", "dfa streamed", "kp pictures"]  # tests/stress/test_every_rule.py has the others
RESUMED = "fa normalized"  # the workers' own moving statistics, too


def start(script, *arguments):
    """The processes of a cluster of two workers."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    workers = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    tasks = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in range(2)]
    return [Script(script, *arguments, CUDA_VISIBLE_DEVICES="", TF_CONFIG=json.dumps(task)) for task in tasks]


def start_runs(*runs):
    """Those of a cluster that takes runs, `(rule, workdir, epochs)`, one after the other."""
    return start(SCRIPT, json.dumps([(rule, str(workdir), epochs) for rule, workdir, epochs in runs]))


def wait(processes, until):
    """Until something is so, or one of the processes has ended."""
    deadline = time.monotonic() + 250
    while not until() and time.monotonic() < deadline and all(each.process.is_alive() for each in processes):
        time.sleep(0.05)


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


def with_pictures(rule, folder):
    """The rule with a data set of pictures where it asks for one: three batches of 8, and one for the first worker."""
    if not rule.endswith("pictures"):
        return rule
    if not (folder / "pictures").exists():
        write_pictures(folder / "pictures", 25, 7)
    return rule.replace("pictures", f"image_folder:{folder / 'pictures'}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """What two workers leave that take several runs, are killed within the last one, and go on with it."""
    folder = tmp_path_factory.mktemp("workers")
    runs = [(with_pictures(rule, folder), folder / rule, 2) for rule in RULES]
    runs += [(RESUMED, folder / name, 12) for name in ("whole", "killed")]
    processes, checkpoints = start_runs(*runs), folder / "killed" / "checkpoints"
    wait(processes, lambda: list(checkpoints.glob("step-*.index")))
    for process in processes:
        process.send_signal(signal.SIGKILL)
    outputs = finish(processes, -signal.SIGKILL)
    assert list(checkpoints.glob("step-*.index")) and not (folder / "killed" / "result.json").exists()

    processes = start_runs((RESUMED, folder / "killed", 12), ("fa", folder / "endless", 100000))
    wait(processes, (folder / "endless" / "metrics.jsonl").exists)
    processes[1].send_signal(signal.SIGTERM)  # not the chief
    return folder, outputs, ends(processes)


@pytest.mark.parametrize("rule", RULES)
def test_two_workers_equal_one(rule, cluster, tmp_path):
    folder, outputs, _ = cluster
    assert "epoch 2/2" in outputs[0] and not outputs[1]  # the chief alone reports
    assert_equal_one(rule, folder, tmp_path)


def assert_equal_one(rule, folder, alone):
    """What two workers left in `folder/rule` is what a single process leaves."""
    full = with_pictures(rule, folder)
    train(str(alone), run(full, 2, "one_device"), quiet=True)
    for a, b in zip(*(weights(path, full, 2) for path in (alone, folder / rule)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    first, second = (json.loads((path / "result.json").read_text()) for path in (alone, folder / rule))
    assert second["final"] == pytest.approx(first["final"], rel=1e-3)
    assert second["alignment"] == pytest.approx(first["alignment"], rel=1e-2, abs=0.1)
    lines = (folder / rule / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_killed_workers_go_on_bit_for_bit(cluster):
    folder = cluster[0]
    for a, b in zip(*(weights(folder / name, RESUMED, 12) for name in ("whole", "killed")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_to_one_worker_stops_all_of_them_with_one_checkpoint(cluster):
    folder, _, ended = cluster
    stopped = [errors.rpartition("TrainingInterrupted: ")[2].split(";")[0] for _, _, errors in ended]
    assert stopped[0] == stopped[1] and stopped[0].startswith("Stopped at step"), ended
    step = stopped[0].split()[-1]
    assert (folder / "endless" / "checkpoints" / f"step-{step}.index").exists()


def test_metrics_and_predictions_of_two_workers_are_those_of_one():
    script = SCRIPT.with_name("worker_metrics.py")
    expected = json.loads(output_of(script, CUDA_VISIBLE_DEVICES="", TF_CONFIG=None).splitlines()[-1])
    for output in finish(start(script)):
        found = json.loads(output.splitlines()[-1])
        assert found["history"] == pytest.approx(expected["history"], rel=1e-4)
        for name in ("auc", "r2", "loss", "sum"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_figures_of_three_replicas_saved_in_the_middle_of_an_epoch_are_the_undisturbed_ones(tmp_path):
    """Three, of whose values a third is not exact; one process can't have strategies of two and of three replicas."""
    assert "replicas agree" in output_of(SCRIPT.with_name("replicated_averages.py"), tmp_path)


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
    first = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: first if kind == "CPU" else [])
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
