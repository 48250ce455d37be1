"""The variables that tell a process of its cluster: as Slurm and users write them, and as they should not."""

import json
import os

import pytest
import tensorflow as tf

from tfbio.training.strategies import is_there, make_strategy, slurm_cluster

SLURM = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID")


def slurm(nodes, tasks="1", rank="0"):
    return dict(zip(SLURM, (nodes, tasks, rank), strict=True))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("rack[0-1]_blade[0-1]", ["rack0_blade0", "rack0_blade1", "rack1_blade0", "rack1_blade1"]),
        ("n[0-3:2]", ["n0", "n2"]),
        ("r[1,3]n[08-10]-ib,login", ["r1n08-ib", "r1n09-ib", "r1n10-ib", "r3n08-ib", "r3n09-ib", "r3n10-ib", "login"]),
        ("a.b-c_7", ["a.b-c_7"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("n[7]", ["n7"]),
    ],
)
def test_every_node_of_a_list(nodes, expected):
    found = slurm_cluster(slurm(nodes, f"1(x{len(expected)})"), port=5)
    assert found["cluster"]["worker"] == [f"{name}:5" for name in expected]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (slurm("n[0-1", "1(x2)"), "variable SLURM_STEP_NODELIST: expected names of nodes .* received 'n.0-1'"),
        (slurm("n[a-b]"), "variable SLURM_STEP_NODELIST"),
        (slurm(""), "variable SLURM_STEP_NODELIST"),
        (slurm("n0,,n1", "1(x2)"), "variable SLURM_STEP_NODELIST"),
        (slurm("n[0-2]", "2(x2)"), r"SLURM_STEP_TASKS_PER_NODE: expected a number for each of the 3 nodes n\[0-2\]"),
        (slurm("n0", "2(y2)"), r"SLURM_STEP_TASKS_PER_NODE: expected numbers of tasks .* received '2\(y2\)'"),
        (slurm("n0", "2", "2"), "variable SLURM_PROCID: expected a number below 2"),
        (slurm("n0", "2", "-1"), "variable SLURM_PROCID"),
    ],
)
def test_what_slurm_does_not_write_is_named(environment, message):
    with pytest.raises(ValueError, match=message) as caught:
        slurm_cluster(environment)
    assert "\n" not in str(caught.value)


@pytest.fixture
def connected(monkeypatch):
    """What TensorFlow is told, without a cluster to meet."""
    for name in ("TF_CONFIG", *SLURM):
        monkeypatch.delenv(name, raising=False)
    told = []

    def note():
        told.append(json.loads(os.environ["TF_CONFIG"]))

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", note)
    return told


@pytest.mark.parametrize("empty", ["", "  ", "{}"])
def test_an_empty_tf_config_says_nothing(connected, monkeypatch, empty):
    monkeypatch.setenv("TF_CONFIG", empty)
    assert not is_there("multi_worker")
    with pytest.raises(ValueError, match="needs to know its processes"):
        make_strategy("multi_worker")
    for name, value in slurm("a[1-2]", "1(x2)", "1").items():
        monkeypatch.setenv(name, value)
    assert is_there("multi_worker")
    make_strategy("multi_worker")
    assert connected == [{"cluster": {"worker": ["a1:22222", "a2:22222"]}, "task": {"type": "worker", "index": 1}}]


def config(cluster, **task):
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize(
    "text",
    [
        "{'cluster': {}}",
        '{"cluster": ',
        "[1]",
        "node0:1,node1:1",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"task": {"type": "worker", "index": 0}}',
        config(["a:1"], type="worker", index=0),
        config({"worker": ["a:1"]}, type="worker", index=1),
        config({"worker": ["a:1"]}, type="worker", index=-1),
        config({"worker": ["a:1"]}, type="worker", index=None),
        config({"worker": ["a:1"]}, type="worker", index="first"),
        config({"worker": ["a:1"]}, type="chief", index=0),
        config({"worker": ["a:1"], "ps": ["b:1"]}, type="ps", index=0),
        config({"worker": "ab:1"}, type="worker", index=0),
        config({"worker": [1]}, type="worker", index=0),
    ],
)
def test_a_tf_config_that_says_no_cluster_is_named(connected, monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    for call in (make_strategy, is_there):
        with pytest.raises(ValueError, match="environment variable TF_CONFIG: expected .* received ") as caught:
            call("multi_worker")
        assert "\n" not in str(caught.value)
    assert not connected


def test_a_tf_config_is_passed_on(connected, monkeypatch):
    for cluster, task in (({"worker": ["a:1", "b:1"]}, ("worker", "1")), ({"chief": ["a:1"]}, ("chief", 0))):
        text = config(cluster, type=task[0], index=task[1])
        monkeypatch.setenv("TF_CONFIG", text)
        make_strategy("multi_worker")
        assert connected.pop() == json.loads(text)
