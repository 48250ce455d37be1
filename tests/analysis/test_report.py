"""Reports over synthetic run directories whose means and intervals are worked out by hand."""

import csv as csv_format
import io
import json
import math

import numpy as np
import pytest

from tfbio.analysis import learning_curves as learning_curves_module
from tfbio.analysis.learning_curves import learning_curves
from tfbio.analysis.pictures import curve
from tfbio.analysis.report import collect, csv, estimate, markdown, report, summarize
from tfbio.analysis.runs import Run

T_2 = 4.302652729911275  # Student's t for 95 % at 2 degrees of freedom, from a printed table


def write_run(folder, labels=None, seed=0, test_error=None, train_error=0.0, epochs=3, angles=None, **result):
    folder.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        line = {"epoch": epoch, "error": 0.5 / epoch, "test_error": 0.6 / epoch + 0.01 * seed, "loss": 1.0}
        if angles is not None:
            line["angle/total"] = angles + epoch
        lines.append(json.dumps(line))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if test_error is not None:
        final = {"train_loss": 0.1, "train_error": train_error, "test_loss": 0.2, "test_error": test_error}
        content = {"format": 1, "labels": labels, "seed": seed, "final": final, "best": None, "alignment": None}
        content |= {"published": None, "train_seconds": 10.0} | result
        (folder / "result.json").write_text(json.dumps(content))
    return folder


def labels(rule, network="fc"):
    return {"dataset": "digits", "network": network, "rule": rule}


def test_mean_and_interval_over_seeds_by_hand(tmp_path):
    for seed, error in enumerate((0.01, 0.02, 0.03)):
        write_run(tmp_path / "fa" / f"seed{seed}", labels("fa"), seed, error)
    (row,) = summarize(collect(tmp_path))
    figure = row.figures["test_error"]
    # Mean 2 %, standard deviation 1 %, so the half width is t / sqrt(3).
    assert row.seeds == figure.n == 3
    assert figure.mean == pytest.approx(2.0)
    assert figure.half_width == pytest.approx(T_2 / math.sqrt(3))
    assert "| 2.00 ± 2.48 |" in markdown([row])


def test_interval_of_one_number_is_unknown():
    assert estimate([3.0]).half_width is None
    assert estimate([3.0, 3.0]).half_width == 0.0


def test_best_error_is_named_with_what_it_was_selected_on(tmp_path):
    best = {"selected_on": "validation", "epoch": 2, "error": 0.04, "test_error": 0.05}
    write_run(tmp_path / "a", labels("bp"), 0, 0.06, best=best)
    write_run(tmp_path / "b", labels("fa"), 0, 0.07, best=best | {"selected_on": "test", "test_error": 0.03})
    write_run(tmp_path / "c", labels("dfa"), 0, 0.08)
    rows = summarize(collect(tmp_path))
    table = markdown(rows)
    assert "test error of the epoch best on validation data [%]" in table
    assert "test error of the epoch best on test data [%]" in table
    by_rule = {row.labels["rule"]: row for row in rows}
    assert by_rule["bp"].figures["best_test_error/validation"].mean == pytest.approx(5.0)
    assert by_rule["fa"].figures["best_test_error/test"].mean == pytest.approx(3.0)
    assert not any(name.startswith("best") for name in by_rule["dfa"].figures)
    assert "best" not in markdown([by_rule["dfa"]])


def test_csv_agrees_with_rows_and_keeps_every_label(tmp_path):
    published = {"train_error": 0.0, "test_error": 0.0185, "source": "Paper, Table 1"}
    for seed, error in enumerate((0.1, 0.2)):
        write_run(
            tmp_path / f"r{seed}",
            labels("fa"),
            seed,
            error,
            published=published,
            alignment={"angle/total": 40.0 + seed},
        )
    (line,) = csv_format.DictReader(io.StringIO(csv(summarize(collect(tmp_path)))))
    assert (line["dataset"], line["network"], line["rule"], line["seeds"]) == ("digits", "fc", "fa", "2")
    assert float(line["test_error_percent"]) == pytest.approx(15.0)
    # Two numbers d apart: standard error d / 2; t at 1 degree of freedom is tan(0.475 pi).
    assert float(line["test_error_percent_half_width"]) == pytest.approx(5.0 * math.tan(0.475 * math.pi))
    assert float(line["published_test_error_percent"]) == pytest.approx(1.85)
    assert float(line["published_train_error_percent"]) == 0.0
    assert line["published_source"] == "Paper, Table 1"
    assert float(line["angle_degrees"]) == pytest.approx(40.5)
    assert (line["failed"], line["unfinished"]) == ("0", "0")


def test_failed_and_unfinished_runs_are_counted_and_not_averaged(tmp_path):
    cells = []
    for seed in range(4):
        cells.append({"folder": f"fa/seed{seed}", "labels": {"rule": "fa"}, "seed": seed})
    (tmp_path / "study.json").write_text(json.dumps({"format": 1, "cells": cells}))
    write_run(tmp_path / "fa" / "seed0", {"rule": "fa"}, 0, 0.5)
    write_run(tmp_path / "fa" / "seed1")  # killed while it trained
    cut = write_run(tmp_path / "fa" / "seed2", {"rule": "fa"}, 2, 0.1)
    (cut / "result.json").write_text((cut / "result.json").read_text()[:50])
    (tmp_path / "fa" / "seed3").mkdir()
    (tmp_path / "fa" / "seed3" / "failure.txt").write_text("The loss is not finite.\n")
    runs = collect(tmp_path)
    assert [run.seed for run in runs] == [0, 1, 2, 3]
    (row,) = summarize(runs)
    assert (row.seeds, row.failed, row.unfinished) == (1, 1, 2)
    assert row.figures["test_error"].mean == 50.0
    text = report(tmp_path)
    assert "- fa/seed3: The loss is not finite." in text
    assert "| failed | unfinished |" in text


def test_rows_come_in_the_order_of_the_study_else_alphabetically(tmp_path):
    for rule in ("fa", "bp", "dfa"):
        write_run(tmp_path / f"fc-{rule}" / "seed0", labels(rule), 0, 0.1)
    assert [row.labels["rule"] for row in summarize(collect(tmp_path))] == ["bp", "dfa", "fa"]
    cells = [{"folder": f"fc-{rule}/seed0", "labels": labels(rule), "seed": 0} for rule in ("fa", "bp", "dfa")]
    (tmp_path / "study.json").write_text(json.dumps({"cells": cells}))
    assert [row.labels["rule"] for row in summarize(collect(tmp_path))] == ["fa", "bp", "dfa"]


def test_runs_with_the_same_labels_and_seed_are_not_taken_for_seeds(tmp_path):
    write_run(tmp_path / "slow", labels("bp"), 0, 0.1)
    write_run(tmp_path / "fast", labels("bp"), 0, 0.3)
    rows = summarize(collect(tmp_path))
    assert [(row.labels["run"], row.seeds) for row in rows] == [("fast", 1), ("slow", 1)]


def test_regression_shows_losses(tmp_path):
    folder = write_run(tmp_path / "ae", {"rule": "bp"}, 0, 0.5)
    result = json.loads((folder / "result.json").read_text())
    result["final"] = {"train_loss": 0.125, "test_loss": 0.25}
    (folder / "result.json").write_text(json.dumps(result))
    table = markdown(summarize(collect(tmp_path)))
    assert "| train loss | test loss |" in table and "| 0.125 | 0.25 |" in table and "error" not in table


def test_cut_lines_of_metrics_are_ignored(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "err')
    (run,) = collect(tmp_path)
    assert [record["epoch"] for record in run.metrics] == [1, 2, 3]
    assert run.result is None and run.labels == {"run": "run"}


def test_a_single_run_folder_and_deep_nesting(tmp_path):
    folder = write_run(tmp_path / "a" / "b" / "c", labels("bp"), 7, 0.25)
    (alone,) = collect(folder)
    (nested,) = collect(tmp_path)
    assert alone == nested and alone.seed == 7


@pytest.mark.parametrize("name", ["", "missing"])
def test_no_runs_is_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match="expected a folder with run directories"):
        report(tmp_path / name)


def test_report_writes_three_files(tmp_path):
    for rule, angle in (("bp", 0.0), ("fa", 40.0)):
        for seed in range(2):
            write_run(tmp_path / rule / f"seed{seed}", labels(rule), seed, 0.1, epochs=5, angles=angle)
    text = report(tmp_path)
    assert (tmp_path / "report.md").read_text() == text and "![Learning curves](learning_curves.png)" in text
    assert (tmp_path / "report.csv").read_text() == csv(summarize(collect(tmp_path)))
    picture = (tmp_path / "learning_curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 200_000


@pytest.mark.parametrize("rules", [["BP"], [f"AO-SDTP-alternating-{i}" for i in range(9)]])
def test_the_legend_fits_into_the_picture(tmp_path, monkeypatch, rules):
    for rule in rules:
        write_run(tmp_path / rule, labels(rule), 0, 0.1, angles=10.0)
    figures = []
    monkeypatch.setattr(learning_curves_module, "png", lambda figure: figures.append(figure) or b"")
    learning_curves(collect(tmp_path))
    (figure,) = figures
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0


def test_no_picture_before_the_first_epoch(tmp_path):
    folder = write_run(tmp_path / "run", epochs=0)
    assert learning_curves(collect(folder)) is None
    assert "png" not in report(tmp_path)


def test_curve_is_the_mean_and_interval_of_the_latest_lines():
    def run(values):
        records = [{"epoch": epoch, "error": value} for epoch, value in values]
        return Run(path=None, labels={}, seed=0, result=None, metrics=records, failure=None)

    # The first run wrote epoch 2 twice (resumed), the third stopped after epoch 1 with an error that is no number.
    runs = [run([(1, 0.1), (2, 9.9), (2, 0.4)]), run([(1, 0.2), (2, 0.4)]), run([(1, 0.3), (2, math.nan)])]
    epochs, means, low, high = curve(runs, "error", 100.0)
    half = 10 * T_2 / math.sqrt(3)
    assert epochs == [1, 2]
    np.testing.assert_allclose(means, [20, 40])
    np.testing.assert_allclose(low, [20 - half, 40])
    np.testing.assert_allclose(high, [20 + half, 40])


def test_a_single_rule_shows_its_alignment_by_layer(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path / f"seed{seed}", labels("fa"), seed, 0.1)
        figures = {"angle/total": 50.0, "angle/net/dense": 60.0, "feedback_angle/net/dense/kernel": 80.0 + seed}
        lines = [json.dumps({"epoch": epoch, "error": 0.1, **figures}) for epoch in (1, 2)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert "![Alignment curves](alignment_curves.png)" in report(tmp_path)
    picture = (tmp_path / "alignment_curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 200_000
    write_run(tmp_path / "other" / "seed0", labels("bp"), 0, 0.1)  # two rules: one picture a layer would be a tangle
    assert "alignment_curves" not in report(tmp_path)
