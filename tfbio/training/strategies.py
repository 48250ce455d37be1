"""Strategies by name: where a run's replicas live."""

import functools
import json
import os
import re
from collections.abc import Mapping

import tensorflow as tf

__all__ = ["is_there", "make_strategy", "slurm_cluster"]

_PORT = 22222


def make_strategy(name: str, tpu: str = "") -> tf.distribute.Strategy:
    """The `tf.distribute` strategy called `name`. Call it before anything else is computed in the process.

    Args:
        name: `"one_device"` (TensorFlow's default: the first GPU, else the CPU), `"mirrored"` (one replica on each
            visible GPU, or on each logical CPU if there is no GPU; of one device, the same as `"one_device"`),
            `"multi_worker"` (the same in each of several processes, which the environment variable `TF_CONFIG` names,
            or Slurm's), or `"tpu"` (one replica on each core of a TPU or of a slice of several, all led by this
            process).
        tpu: which TPU: `"local"` for the one of this machine, a Cloud TPU's name or a `grpc://` address; empty for what
            the environment variable `TPU_NAME` says, or else `"local"`. Other strategies have no use for it.

    Raises:
        ValueError: unknown name, `"multi_worker"` without a cluster, or `"tpu"` without a TPU.
    """
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        # A single replica has nobody to meet, and XLA can compile whole steps where there is no strategy.
        return tf.distribute.MirroredStrategy(devices) if len(devices) > 1 else tf.distribute.get_strategy()
    if name == "multi_worker":
        return _multi_worker()
    if name == "tpu":
        return _tpu(tpu)
    if name == "parameter_server":
        raise ValueError(
            "Invalid value for `strategy`: expected a synchronous one, received 'parameter_server', under which "
            "workers update each other's weights between a step's forward and backward pass, so that a rule's gradient "
            "is no longer the one that it defines. Use 'multi_worker'."
        )
    raise ValueError(
        f"Invalid value for `strategy`: expected 'one_device', 'mirrored', 'multi_worker' or 'tpu', received {name!r}."
    )


def is_there(name: str, tpu: str = "") -> bool:
    """Whether what a strategy needs besides devices of this process is there: a cluster's other processes, or a TPU.

    Args:
        name: as for `make_strategy`.
        tpu: as for `make_strategy`.
    """
    if name == "multi_worker":
        return "TF_CONFIG" in os.environ or slurm_cluster(os.environ) is not None
    if name == "tpu":
        try:
            _tpu(tpu)
        except ValueError:
            return False
    return True


def _tpu(address: str) -> tf.distribute.Strategy:
    return _connected(address or os.environ.get("TPU_NAME") or "local")


@functools.cache  # to connect starts the TPU, which to look for it and then to use it would do twice
def _connected(address: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(address)
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # what looks for a TPU, and what starts it, fail in ways that have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            f"Invalid value for `strategy`: 'tpu' needs a TPU, and {address!r} gave none ({reason[:200]}): run on a "
            "TPU VM with TensorFlow's TPU build (pip install 'tfbio[tpu]'), or say which TPU in train.tpu or TPU_NAME."
        ) from error


def _multi_worker() -> tf.distribute.Strategy:
    if "TF_CONFIG" not in os.environ:
        cluster = slurm_cluster(os.environ)
        if cluster is None:
            raise ValueError(
                "Invalid value for `strategy`: 'multi_worker' needs to know its processes: set the environment "
                'variable TF_CONFIG in each, {"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", '
                '"index": 0}}, or start them by launchers/multi_worker.sh or under Slurm.'
            )
        os.environ["TF_CONFIG"] = json.dumps(cluster)
    return tf.distribute.MultiWorkerMirroredStrategy()


def slurm_cluster(environment: Mapping[str, str], port: int = _PORT) -> dict | None:
    """What `TF_CONFIG` should say in a task of a Slurm job step, or None outside of one.

    Args:
        environment: the task's environment: `SLURM_STEP_NODELIST`, `SLURM_STEP_TASKS_PER_NODE` and `SLURM_PROCID`,
            tasks laid out node by node (Slurm's default, `--distribution=block`).
        port: of the first task on each node; the others count up from it.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID")
    if not all(name in environment for name in names):
        return None
    nodes, tasks, rank = (environment[name] for name in names)
    counts: list[int] = []
    for part in tasks.split(","):  # "2(x3),1": two tasks on each of three nodes, then one
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part).groups()
        counts += [int(count)] * int(times or 1)
    workers = [f"{node}:{port + i}" for node, n in zip(_expanded(nodes), counts, strict=True) for i in range(n)]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": int(rank)}}


def _expanded(nodes: str) -> list[str]:
    """Slurm's list of nodes, `a[01-03,7],b`, one by one."""
    names = []
    for prefix, ranges, suffix in re.findall(r"([^,\[]+)(?:\[([^\]]*)\]([^,]*))?", nodes):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last) + 1) if last else [None]
            names += [f"{prefix}{first if n is None else str(n).zfill(len(first))}{suffix}" for n in numbers]
    return names
