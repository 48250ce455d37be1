"""One table and one picture from the run directories below a folder.

Every run, whether started alone or as a cell of a study, leaves the same few files: `metrics.jsonl` (a line per epoch),
`result.json` (only once it finished) and, where a study saw it fail, `failure.txt`. This module reads them in four
steps that can be used one by one:

    runs = collect("runs/digits")     # what is there: finished, unfinished and failed runs
    rows = summarize(runs)            # the runs that differ in their seed alone become one row
    print(markdown(rows))             # or csv(rows)
    report("runs/digits")             # all of it, written beside the runs, with learning curves

A figure is a mean over seeds with the half width of its 95 % interval (Student's t: with three seeds the factor is
4.30, not 1.96). The best epoch's test error is never shown without saying on which data that epoch was chosen: chosen
on the test data it is an optimistic figure.
"""

import csv as csv_format
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from etils.epath import Path

from tfbio.analysis.alignment_curves import alignment_curves
from tfbio.analysis.learning_curves import learning_curves
from tfbio.analysis.runs import Estimate, Run, collect, estimate, folder_name

__all__ = ["Estimate", "Row", "Run", "collect", "csv", "estimate", "markdown", "report", "summarize"]


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    `figures` maps a figure's name to its estimate over the `seeds` finished runs; errors are in per cent, angles in
    degrees. `published` holds `train_error`, `test_error` (per cent) and `source` where the literature gives them.
    `failed` and `unfinished` count the other runs.
    """

    labels: dict[str, str]
    seeds: int
    figures: dict[str, Estimate]
    published: dict
    failed: int
    unfinished: int


# A figure's name: its heading in Markdown, its name in CSV, its number format. The best epoch's figures are added by
# `_columns`.
_FIGURES = {
    "train_error": ("train error [%]", "train_error_percent", ".2f"),
    "test_error": ("test error [%]", "test_error_percent", ".2f"),
    "train_loss": ("train loss", "train_loss", ".4g"),
    "test_loss": ("test loss", "test_loss", ".4g"),
    "angle": ("angle to backpropagation [°]", "angle_degrees", ".1f"),
    "train_seconds": ("training [s]", "train_seconds", ".1f"),
}


def summarize(runs: Iterable[Run]) -> list[Row]:
    """Groups runs over seeds: one row for each set of labels, in the order of first appearance.

    Args:
        runs: what `collect` returned.

    Returns:
        The rows; a figure that only some of a row's seeds have is averaged over those (its `n` says how many).
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.labels.items()), []).append(run)
    rows = []
    for labels, group in groups.items():
        results = [run.result for run in group if run.finished]
        values: dict[str, list[float]] = {}
        for result in results:
            for name, value in _figures(result).items():
                values.setdefault(name, []).append(value)
        failed = sum(run.failure is not None for run in group)
        rows.append(
            Row(
                labels=dict(labels),
                seeds=len(results),
                figures={name: estimate(numbers) for name, numbers in values.items()},
                published=next((_published(result) for result in results if result.get("published")), {}),
                failed=failed,
                unfinished=len(group) - len(results) - failed,
            )
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table.

    Args:
        rows: what `summarize` returned.

    Returns:
        The table; figures no row has make no column, nor do counts of failed and unfinished runs that are all zero.
    """
    columns = [column for column in _columns(rows) if column[1] not in ("failed", "unfinished") or any(column[3])]
    lines = [[_cell(heading, None) for heading, *_ in columns]]
    lines += [["---" if form is None else "---:" for _, _, form, _ in columns]]
    lines += [[_cell(values[i], form) for _, _, form, values in columns] for i in range(len(rows))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values with full precision, a header first.

    Args:
        rows: what `summarize` returned.

    Returns:
        The text; a figure `x` has the columns `x` (its mean), `x_half_width` and, in every row, empty fields for what
        is not known.
    """
    columns = _columns(rows)
    header = []
    for _, name, _, values in columns:
        header += [name, f"{name}_half_width"] if _is_figure(values) else [name]
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(header)
    for i in range(len(rows)):
        fields = []
        for _, _, _, values in columns:
            value = values[i]
            if _is_figure(values):
                fields += [None, None] if value is None else [value.mean, value.half_width]
            else:
                fields.append(value)
        writer.writerow(fields)
    return text.getvalue()


def report(directory: str | os.PathLike) -> str:
    """Writes `report.md`, `report.csv` and, once there are epochs to draw, `learning_curves.png` into a folder of runs.

    Where all runs differ in their seed alone and measured their alignment, `alignment_curves.png` shows it by layer.

    Args:
        directory: as for `collect`.

    Returns:
        The text of `report.md`: the table and the list of failed runs.

    Raises:
        ValueError: there is no run in the folder.
    """
    directory = Path(directory)
    runs = collect(directory)
    rows = summarize(runs)
    parts = [f"# {folder_name(directory)}\n", markdown(rows)]
    if any(figure.half_width is not None for row in rows for figure in row.figures.values()):
        parts.append("Means over seeds ± half width of the 95 % interval (Student's t).\n")
    failed = [
        f"- {run.path.relative_to(directory).as_posix()}: {run.failure}\n" for run in runs if run.failure is not None
    ]
    if failed:
        parts.append("Failed runs:\n\n" + "".join(failed))
    pictures = {"Learning curves": learning_curves(runs)}
    if len(rows) == 1:
        pictures["Alignment curves"] = alignment_curves(runs)
    for title, picture in pictures.items():
        if picture is not None:
            name = title.lower().replace(" ", "_") + ".png"
            (directory / name).write_bytes(picture)
            parts.append(f"![{title}]({name})\n")
    text = "\n".join(parts)
    (directory / "report.md").write_text(text, encoding="utf-8")
    (directory / "report.csv").write_text(csv(rows), encoding="utf-8")
    return text


def _figures(result: dict) -> dict[str, float]:
    """A finished run's figures by name: errors where it has them, losses where it has none (regression)."""
    final = result.get("final") or {}
    figures = {name: 100 * final[name] for name in ("train_error", "test_error") if final.get(name) is not None}
    if not figures:
        figures = {name: final[name] for name in ("train_loss", "test_loss") if final.get(name) is not None}
    best = result.get("best") or {}
    if best.get("test_error") is not None:
        figures[f"best_test_error/{best['selected_on']}"] = 100 * best["test_error"]
    angle = (result.get("alignment") or {}).get("angle/total")
    if angle is not None:
        figures["angle"] = angle
    if result.get("train_seconds") is not None:
        figures["train_seconds"] = result["train_seconds"]
    return figures


def _published(result: dict) -> dict:
    published = result["published"]
    errors = {name: 100 * published[name] for name in ("train_error", "test_error") if published.get(name) is not None}
    return errors | ({"source": published["source"]} if published.get("source") else {})


def _columns(rows: Sequence[Row]) -> list[tuple[str, str, str | None, list]]:
    """(heading, CSV name, number format or None for text, a value per row), in the order of the table."""
    columns = []
    for label in dict.fromkeys(label for row in rows for label in row.labels):
        columns.append((label, label, None, [row.labels.get(label) for row in rows]))
    columns.append(("seeds", "seeds", "d", [row.seeds for row in rows]))
    chosen_on = sorted(
        {name.split("/")[1] for row in rows for name in row.figures if name.startswith("best_test_error/")}
    )
    for figure, described in _FIGURES.items():
        names = {figure: described}
        if figure == "test_error":
            for data in chosen_on:
                heading = f"test error of the epoch best on {data} data [%]"
                names[f"best_test_error/{data}"] = (heading, f"best_test_error_selected_on_{data}_percent", ".2f")
        for name, (heading, key, form) in names.items():
            if any(name in row.figures for row in rows):
                columns.append((heading, key, form, [row.figures.get(name) for row in rows]))
            if name == figure and any(name in row.published for row in rows):
                published = [row.published.get(name) for row in rows]
                columns.append((f"published {heading}", f"published_{key}", form, published))
    if any(row.published for row in rows):
        columns.append(("source", "published_source", None, [row.published.get("source") for row in rows]))
    columns.append(("failed", "failed", "d", [row.failed for row in rows]))
    columns.append(("unfinished", "unfinished", "d", [row.unfinished for row in rows]))
    return columns


def _is_figure(values: list) -> bool:
    return any(isinstance(value, Estimate) for value in values)


def _cell(value, form: str | None) -> str:
    if value is None:
        return ""
    if form is None:
        return " ".join(str(value).split()).replace("|", "\\|")  # a table has a line for each row
    if isinstance(value, Estimate):
        mean = format(value.mean, form)
        return mean if value.half_width is None else f"{mean} ± {format(value.half_width, form)}"
    return format(value, form)
