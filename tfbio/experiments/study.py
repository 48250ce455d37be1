"""A study: a grid of runs, trained by several processes of this machine, and one report about all of them.

A cell of the grid is one value of every axis and one seed. It is an ordinary run directory,
`<workdir>/<value>-<value>/seed<k>`, so every command that takes a run directory takes it. `<workdir>/study.json` lists
the cells and is written before the first one starts. Whether a cell is finished is read from its own folder. So the
same call continues a study after any interruption: it skips finished cells and tries failed ones again.

The cells run in child processes (`tfbio.experiments.processes`). This module does not import TensorFlow.
"""

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from etils.epath import Path

from tfbio.experiments.processes import Failure, Task, run_all
from tfbio.files import check_no_pattern, write_json

__all__ = ["StudyFailure", "study"]


class StudyFailure(RuntimeError):
    """Some cells of a study failed. The others are finished, and the report is written."""


@dataclass(frozen=True)
class _Cell:
    folder: str  # relative to the study's folder
    labels: dict[str, str]
    seed: int
    gin_files: list[str]
    bindings: list[str]


@dataclass
class _Progress:
    """Prints a line for every finished cell, and on a terminal a status line that is rewritten."""

    total: int
    done: int  # finished in this call or before
    processes: int
    durations: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def clear(self) -> None:
        if sys.stdout.isatty():
            print("\r\x1b[K", end="", flush=True)

    def finished(self, name: str, outcome: str, seconds: float) -> None:
        self.done += 1
        left = ""
        if self.durations and self.done < self.total:
            mean = sum(self.durations) / len(self.durations)
            left = f"  (about {_duration(mean * (self.total - self.done) / self.processes)} left)"
        width = len(str(self.total))
        self.clear()
        print(f"[{self.done:{width}}/{self.total}] {name} {outcome}  {_duration(seconds)}{left}", flush=True)

    def status(self, running: int) -> None:
        self.clear()
        if sys.stdout.isatty():
            passed = _duration(time.monotonic() - self.started)
            print(f"{self.done} of {self.total} done, {running} running, {passed}", end="", flush=True)


def study(
    workdir: str | os.PathLike,
    axes: Mapping[str, Mapping[str, str | Sequence[str]]],
    base: str | Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    params: str | Sequence[str] = (),
    processes: int = 1,
    *,
    run_cell: Callable[[list[str], list[str], str], object],
) -> str:
    """Runs the unfinished cells of a grid, then reports on all cells.

    Args:
        workdir: the study's folder.
        axes: for each axis its values, and for each value what it adds to a run: a gin file's name, a binding "a.b=c",
            or a list of both; {"rule": {"bp": "rules/bp.gin", "fa": ["rules/fa.gin", "train.epochs=90"]}}.
        base: gin files that every cell includes first.
        seeds: the seeds that every combination of values runs with. Cells run seed by seed, so a first comparison is
            there early.
        params: bindings for every cell. The cell's own bindings come later and win.
        processes: the number of processes that run cells at the same time. They share the machine's cores evenly.
        run_cell: called in a child process with (gin files, bindings, the cell's folder) to run a cell. It must be
            importable from a module. The console command passes `tfbio.experiments.config.train_cell`.

    Returns:
        The report's Markdown (`tfbio.analysis.report`).

    Raises:
        ValueError: an argument is malformed, or `workdir` holds runs of other settings in a cell's place.
        StudyFailure: some cells failed. Each one's folder says why in `failure.txt`.
        KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM. It is raised after the child processes have had time to save
            a checkpoint and have stopped.
    """
    from tfbio.analysis.report import report  # child processes import this module too and write no report

    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"Invalid value for `processes`: expected a positive integer, received {processes!r}.")
    check_no_pattern("workdir", workdir)
    workdir = Path(workdir)
    cells = _cells(axes, base, seeds, params)
    _write_study(workdir, cells)
    pending = [cell for cell in cells if not _finished(workdir / cell.folder)]
    if len(pending) < len(cells):
        print(f"{len(cells) - len(pending)} of {len(cells)} cells are finished already.", flush=True)
    processes = min(processes, len(pending))
    failures = _run_cells(workdir, pending, len(cells), processes, run_cell) if pending else {}
    text = report(workdir)
    print(text, flush=True)
    if failures:
        folder, sentence = next(iter(failures.items()))
        raise StudyFailure(
            f"{len(failures)} of {len(cells)} cells failed, the first of them {folder}: {sentence} "
            f"Their folders in {workdir} say why (failure.txt, log.txt); the same command tries them again and skips "
            "the finished ones."
        )
    return text


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _cells(axes: Mapping, base, seeds, params) -> list[_Cell]:
    if not axes or not all(isinstance(values, Mapping) and values for values in axes.values()):
        raise ValueError(
            "Invalid value for `axes`: expected at least one axis with at least one value, "
            f'as {{"rule": {{"bp": "rules/bp.gin"}}}}, received {axes!r}.'
        )
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if not seeds or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ValueError(f"Invalid value for `seeds`: expected different integers of at least 0, received {seeds!r}.")
    files, bindings = _split("base", base)
    more_files, more_bindings = _split("params", params)
    if bindings or more_files:
        wrong = "base" if bindings else "params"
        raise ValueError(
            f"Invalid value for `{wrong}`: expected gin files in `base` and bindings in `params`, "
            f"received {(bindings or more_files)[0]!r} in `{wrong}`. Move it to the other."
        )
    cells = {}
    for seed in seeds:
        for values in itertools.product(*(axis.items() for axis in axes.values())):
            labels = {axis: str(value) for axis, (value, _) in zip(axes, values, strict=True)}
            own_files, own_bindings = [], []
            for axis, (value, additions) in zip(axes, values, strict=True):
                if not re.fullmatch(r"[\w.+=,][\w.+=,-]*", str(value)) or set(str(value)) == {"."}:
                    raise ValueError(
                        f"Invalid value for `axes`: expected values named by letters, digits and any of _.+=,- (they "
                        f"name folders), received {value!r} for {axis!r}."
                    )
                some_files, some_bindings = _split(f"axes[{axis!r}][{value!r}]", additions)
                own_files += some_files
                own_bindings += some_bindings
            folder = f"{'-'.join(labels.values())}/seed{seed}"
            if folder in cells:
                raise ValueError(
                    f"Invalid value for `axes`: expected values whose names make different folders, received "
                    f"{list(labels.values())} and {list(cells[folder].labels.values())}, which make {folder!r} both."
                )
            last = [f"train.seed={seed}", f"train.labels={labels!r}"]
            cells[folder] = _Cell(folder, labels, seed, files + own_files, more_bindings + own_bindings + last)
    return list(cells.values())


def _split(argument: str, strings: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits strings into gin files and bindings."""
    files, bindings = [], []
    for string in _as_list(strings):
        if isinstance(string, str) and string.endswith(".gin"):
            files.append(string)
        elif isinstance(string, str) and "=" in string:
            bindings.append(string)
        else:
            raise ValueError(
                f"Invalid value for `{argument}`: expected gin files (their names end in .gin) and bindings (a.b=c), "
                f"received {string!r}."
            )
    return files, bindings


def _write_study(workdir: Path, cells: list[_Cell]) -> None:
    """Writes `study.json`. It keeps the cells of earlier calls that have a folder; their settings must be the same."""
    path = workdir / "study.json"
    earlier = []
    if path.exists():
        try:
            earlier = [_Cell(**cell) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Invalid value for `workdir`: expected a study's folder, received {str(workdir)!r}, whose study.json "
                "can't be read. Choose another folder, or delete that file."
            ) from error
    now = {cell.folder: cell for cell in cells}
    kept = []
    for cell in earlier:
        if not (workdir / cell.folder).exists():
            continue
        if cell.folder not in now:
            kept.append(cell)
        elif cell != now[cell.folder]:
            before, after = (one.gin_files + one.bindings for one in (cell, now[cell.folder]))
            raise ValueError(
                f"Invalid value for `workdir`: expected a folder with runs of the same settings, received "
                f"{str(workdir)!r}, whose cell {cell.folder} ran with {before} and would now run with {after}. "
                "Choose another folder, or delete that cell's."
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": 1, "cells": [asdict(cell) for cell in cells + kept]})


def _run_cells(workdir: Path, cells: list[_Cell], total: int, processes: int, run_cell: Callable) -> dict[str, str]:
    """Runs cells and shows the progress. Returns why cells failed: folder → sentence."""
    progress = _Progress(total, total - len(cells), processes)
    failures = {}

    def on_start(task: Task) -> None:
        for name in ("failure.txt", "traceback.txt"):
            (workdir / task.name / name).unlink(missing_ok=True)

    def on_done(task: Task, seconds: float, failure: Failure | None) -> None:
        folder = workdir / task.name
        if failure is None and _result(folder) is None:
            failure = Failure("the run ended without a result.json.", None)
        if failure is None:
            progress.durations.append(seconds)
            outcome = _outcome(_result(folder))
        else:
            failures[task.name] = failure.sentence
            outcome = f"failed: {failure.sentence}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "failure.txt").write_text(failure.sentence + "\n", encoding="utf-8")
            if failure.traceback is not None:
                (folder / "traceback.txt").write_text(failure.traceback, encoding="utf-8")
        progress.finished(task.name, outcome, seconds)

    tasks = []
    for cell in cells:
        folder = workdir / cell.folder
        tasks.append(Task(cell.folder, (cell.gin_files, cell.bindings, str(folder)), folder / "log.txt"))
    try:
        run_all(run_cell, tasks, processes, on_start, on_done, progress.status)
    except (KeyboardInterrupt, SystemExit):
        print("\nStopped. The same command goes on from here.", flush=True)
        raise
    finally:
        progress.clear()
    return failures


def _result(folder: Path) -> dict | None:
    from tfbio.analysis.runs import read_result

    return read_result(folder)


def _finished(folder: Path) -> bool:
    return _result(folder) is not None and not (folder / "failure.txt").exists()


def _outcome(result: dict) -> str:
    final = result.get("final") or {}
    for name, form in (("test_error", ".2%"), ("train_error", ".2%"), ("test_loss", ".4g"), ("train_loss", ".4g")):
        if final.get(name) is not None:
            return f"{name.replace('_', ' ')} {format(final[name], form).replace('%', ' %')}"
    return "finished"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
