"""Strategies by name: where a run's replicas live."""

import functools
import itertools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

__all__ = ["is_there", "make_strategy", "slurm_cluster"]

_PORT = 22222

_TF_CONFIG = '{"cluster": {"worker": ["host:port", …]}, "task": {"type": "worker", "index": 0}}'


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
        ValueError: unknown name, `"multi_worker"` without a cluster or with variables that don't say one, or `"tpu"`
            without a TPU.
    """
    if name == "one_device":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        # A single replica has nobody to meet, and XLA can compile whole steps where there is no strategy.
        return _mirrored(*devices) if len(devices) > 1 else tf.distribute.get_strategy()
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

    Raises:
        ValueError: the variables that should say a cluster don't.
    """
    if name == "multi_worker":
        return _cluster(os.environ) is not None
    if name == "tpu":
        try:
            _tpu(tpu)
        except ValueError:
            return False
    return True


@functools.cache  # collectives of a second strategy would meet those of the first one under the same keys
def _mirrored(*devices: str) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(list(devices))


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
    cluster = _cluster(os.environ)
    if cluster is None:
        raise ValueError(
            "Invalid value for `strategy`: 'multi_worker' needs to know its processes: set the environment variable "
            f"TF_CONFIG in each, {_TF_CONFIG}, or start them by launchers/multi_worker.sh or under Slurm."
        )
    os.environ["TF_CONFIG"] = json.dumps(cluster)  # what TensorFlow reads
    return tf.distribute.MultiWorkerMirroredStrategy()


def _cluster(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `TF_CONFIG` says, if it says something, or else Slurm; None where this process is on its own."""
    text = environment.get("TF_CONFIG", "")
    try:
        config = json.loads(text.strip() or "{}")
        if config:
            addresses = config["cluster"][config["task"]["type"]]
            sound = config["task"]["type"] in ("chief", "worker") and isinstance(addresses, list)
            sound = sound and int(config["task"]["index"]) in range(len(addresses))
            if not sound or not all(isinstance(address, str) for address in addresses):
                raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid("TF_CONFIG", f"{_TF_CONFIG}, the index of an address in that list", text) from error
    return config or slurm_cluster(environment)


def _invalid(variable: str, expected: str, received: str) -> ValueError:
    return ValueError(
        f"Invalid value for the environment variable {variable}: expected {expected}, received {received!r}."
    )


def slurm_cluster(environment: Mapping[str, str], port: int = _PORT) -> dict[str, Any] | None:
    """What `TF_CONFIG` should say in a task of a Slurm job step, or None outside of one.

    Args:
        environment: the task's environment: `SLURM_STEP_NODELIST`, `SLURM_STEP_TASKS_PER_NODE` and `SLURM_PROCID`,
            tasks laid out node by node (Slurm's default, `--distribution=block`).
        port: of the first task on each node; the others count up from it.

    Raises:
        ValueError: a variable is not as Slurm writes it, or they contradict each other.
    """
    names = ("SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID")
    if not all(name in environment for name in names):
        return None
    listed, tasks, rank = (environment[name] for name in names)
    counts: list[int] = []
    for part in tasks.split(","):  # "2(x3),1": two tasks on each of three nodes, then one
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise _invalid(names[1], "numbers of tasks such as 2(x3),1", tasks)
        counts += [int(match[1])] * int(match[2] or 1)
    nodes = _expanded(names[0], listed)
    if len(nodes) != len(counts):
        raise _invalid(names[1], f"a number for each of the {len(nodes)} nodes {listed}", tasks)
    workers = [f"{node}:{port + i}" for node, n in zip(nodes, counts, strict=True) for i in range(n)]
    if not rank.isdecimal() or int(rank) >= len(workers):
        raise _invalid(names[2], f"a number below {len(workers)}, the tasks of {tasks}", rank)
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": int(rank)}}


def _expanded(variable: str, nodes: str) -> list[str]:
    """Slurm's list of nodes, `a[01-03,7],b`, one by one; several brackets in a name are all combinations."""
    piece = r"\[\d+(?:-\d+(?::\d+)?)?(?:,\d+(?:-\d+(?::\d+)?)?)*\]"
    name = rf"(?:[^,\[\]\s]|{piece})+"
    if not re.fullmatch(rf"{name}(?:,{name})*", nodes):
        raise _invalid(variable, "names of nodes such as a[01-03,7],b", nodes)
    names = []
    for one in re.findall(name, nodes):
        parts = re.split(rf"({piece})", one)
        choices = [_numbers(part[1:-1]) if part.startswith("[") else [part] for part in parts]
        names += ["".join(choice) for choice in itertools.product(*choices)]
    return names


def _numbers(ranges: str) -> list[str]:
    """`01-03,7,0-4:2` one by one, each as long as its range's first."""
    numbers = []
    for part in ranges.split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part).groups()
        numbers += [str(n).zfill(len(first)) for n in range(int(first), int(last or first) + 1, int(step or 1))]
    return numbers
