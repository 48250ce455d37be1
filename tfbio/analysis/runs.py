"""Run directories read back, and figures averaged over seeds.

A run leaves `metrics.jsonl` (a line per epoch) and, once it finished, `result.json`; a study adds `failure.txt` where
one failed, and lists all its cells in `study.json`. A run can be killed at any byte, so a file that ends in the middle
is an ordinary sight here and not an error.
"""

import json
import math
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from etils.epath import Path

from tfbio.files import read_lines

__all__ = ["Estimate", "Run", "collect", "estimate", "folder_name", "read_result"]

_SEED_FOLDER = re.compile(r"seed(\d+)")


@dataclass(frozen=True)
class Run:
    """What a run directory holds; `result` is None until the run finished, `failure` is the sentence it failed with."""

    path: Path
    labels: dict[str, str]
    seed: int | None
    result: dict | None
    metrics: list[dict]
    failure: str | None

    @property
    def finished(self) -> bool:
        """Whether its figures count: it wrote its result and did not fail."""
        return self.result is not None and self.failure is None


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and the half width of its 95 % interval (None with one seed)."""

    mean: float
    half_width: float | None
    n: int


def read_result(directory: str | os.PathLike) -> dict | None:
    """Reads a run's `result.json`.

    Args:
        directory: the run directory.

    Returns:
        Its content, or None where there is none or it is not a whole JSON object (a run killed while writing it has not
        finished).
    """
    result = _read_json(Path(directory) / "result.json")
    return result if isinstance(result, dict) else None


def collect(directory: str | os.PathLike) -> list[Run]:
    """Reads the runs in a folder: it or any below it that holds `metrics.jsonl`, `result.json` or `failure.txt`.

    Args:
        directory: a run directory, a study's folder, or any folder above them.

    Returns:
        The runs, in the order of the `study.json` files found on the way, the others after them alphabetically.

    Raises:
        ValueError: there is no run in the folder.
    """
    root = Path(directory)
    folders, cells, order = [], {}, {}
    for parent, _, files in sorted(root.walk()):
        if "study.json" in files:
            for cell in _study_cells(parent / "study.json"):
                cells[parent / cell["folder"]] = cell
                order.setdefault(str(cell["labels"]), len(order))
        if {"metrics.jsonl", "result.json", "failure.txt"}.intersection(files):
            folders.append(parent)
    if not folders:
        found = "holds none" if root.is_dir() else "does not exist"
        raise ValueError(
            "Invalid value for `directory`: expected a folder with run directories (metrics.jsonl or result.json) in "
            f"it or below it, received {str(root)!r}, which {found}. Pass the --workdir of a run or of a study."
        )
    runs = [(folder, _read_run(root, folder, cells.get(folder))) for folder in folders]
    runs = _tell_apart(root, runs)

    def place(entry):
        folder, run = entry
        rank = order[str(cells[folder]["labels"])] if folder in cells else len(order)
        return rank, list(run.labels.values()), -1 if run.seed is None else run.seed, str(folder)

    return [run for _, run in sorted(runs, key=place)]


def folder_name(folder: Path) -> str:
    """The last part of a folder's path, of `.` and `..` too."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def estimate(values: Iterable[float]) -> Estimate:
    """The mean of figures over seeds, with its 95 % interval by Student's t.

    Args:
        values: at least one number.

    Returns:
        The estimate; its half width is None for a single number.
    """
    values = [float(value) for value in values]
    if len(values) < 2:
        return Estimate(values[0], None, 1)
    from scipy.special import stdtrit  # 0.2 s to import, and a single run does not need it

    error = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), float(stdtrit(len(values) - 1, 0.975)) * error, len(values))


def _read_run(root: Path, folder: Path, cell: dict | None) -> Run:
    result = read_result(folder)
    found = result or cell or {}
    labels = {str(axis): str(value) for axis, value in (found.get("labels") or {}).items()}
    if not labels:  # a run that nobody named and that did not finish goes by its folder
        labels = {"run": _name(root, folder)}
    named = _SEED_FOLDER.fullmatch(folder.name)
    seed = found.get("seed", int(named[1]) if named else None)
    failure = folder / "failure.txt"
    return Run(
        path=folder,
        labels=labels,
        seed=seed,
        result=result,
        metrics=read_lines(folder / "metrics.jsonl"),
        failure=failure.read_text(encoding="utf-8").strip() if failure.exists() else None,
    )


def _name(root: Path, folder: Path) -> str:
    home = folder.parent if _SEED_FOLDER.fullmatch(folder.name) else folder
    return folder_name(home) if home in (root, root.parent) else home.relative_to(root).as_posix()


def _tell_apart(root: Path, runs: list[tuple[Path, Run]]) -> list[tuple[Path, Run]]:
    """Adds the folder's name to the labels of runs that have the same labels and the same seed.

    Such runs differ in something no label names (a learning rate, say); averaging over them would pass for seeds.
    """
    times = Counter((str(run.labels), run.seed) for _, run in runs)
    twice = {labels for (labels, _), count in times.items() if count > 1}
    return [
        (folder, replace(run, labels=run.labels | {"run": _name(root, folder)}) if str(run.labels) in twice else run)
        for folder, run in runs
    ]


def _study_cells(path: Path) -> list[dict]:
    study = _read_json(path)
    return study.get("cells", []) if isinstance(study, dict) else []


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or cut off by a kill
        return None
