"""Interleaved timing in one process: what every benchmark here is built on."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfbio.training.batches import Examples

__all__ = ["FixedBatch", "interleaved", "machine", "table", "write"]


class FixedBatch:
    """A feed that hands out one batch again and again."""

    def __init__(self, x: tf.Tensor, y: tf.Tensor):
        self._examples = Examples(x, y, tf.ones([len(y)]), tf.constant(float(len(y))))
        self.reader = self

    def take(self, handle: None, epoch: tf.Tensor, index: tf.Tensor) -> tuple:
        return ()

    def unpack(self, handle: None) -> Examples:
        return self._examples


def interleaved(contenders: Mapping[str, Callable[[], Any]], rounds: int, work: int = 1) -> dict[str, list[float]]:
    """Seconds for each contender, round by round.

    Args:
        contenders: functions by name; each call does `work` units and returns when they are done.
        rounds: how often to go through all of them, in turn, after one call each that is not counted.
        work: number of units in a call; the seconds returned are for one unit.
    """
    for run in contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / work)
    return seconds


def ratios(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """For each contender its median seconds and the median, minimum and maximum of the ratio, round by round."""
    rows = {}
    for name, times in seconds.items():
        pairs = [a / b for a, b in zip(times, seconds[reference], strict=True)]
        rows[name] = {
            "median_ms": 1e3 * statistics.median(times),
            "ratio": statistics.median(pairs),
            "ratio_min": min(pairs),
            "ratio_max": max(pairs),
        }
    return rows


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The rows of `ratios` as Markdown."""
    lines = ["| | ms (median) | ratio (median) | min … max |", "|---|---|---|---|"]
    for name, row in rows.items():
        spread = f"{row['ratio_min']:.2f} … {row['ratio_max']:.2f}"
        lines.append(f"| {name} | {row['median_ms']:.2f} | **{row['ratio']:.3f}** | {spread} |")
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    gpus = [
        tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write(path: str | None, content: Mapping[str, Any]) -> None:
    """Writes a result as JSON, if a path is given."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
