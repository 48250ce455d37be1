"""One update path on two replicas or workers, which need processes of their own."""

import json
import socket
from pathlib import Path

import pytest
from processes import Script, output_of


@pytest.mark.parametrize("rules", [["bp", "kp"], ["fa", "dfa", "dtp"]], ids=" ".join)
def test_two_replicas_equal_one_by_trainer_and_learner(rules):
    """Clipped, in float16, where an overflow on one replica skips the step on both."""
    assert "replicas agree" in output_of(Path(__file__).with_name("replicated_updates.py"), *rules)


def test_metrics_and_predictions_of_two_replicas_are_those_of_one(tmp_path):
    """Resumed within an epoch too; what can't be exact is refused."""
    assert "replicas agree" in output_of(Path(__file__).with_name("replicated_updates.py"), "metrics", str(tmp_path))


def test_metrics_and_predictions_of_two_workers_are_those_of_one():
    script = Path(__file__).with_name("worker_metrics.py")
    expected = json.loads(output_of(script, CUDA_VISIBLE_DEVICES="", TF_CONFIG=None).splitlines()[-1])
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("localhost", 0))
        workers = [f"localhost:{each.getsockname()[1]}" for each in (first, second)]
    tasks = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in range(2)]
    processes = [Script(script, CUDA_VISIBLE_DEVICES="", TF_CONFIG=json.dumps(task)) for task in tasks]
    try:
        ended = [process.finish() for process in processes]
    finally:
        for process in processes:
            process.kill()
    for code, output, errors in ended:
        assert code == 0, errors[-3000:]
        found = json.loads(output.splitlines()[-1])
        assert found["history"] == pytest.approx(expected["history"], rel=1e-4)
        for name in ("auc", "r2", "loss", "sum"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
