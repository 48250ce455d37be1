"""Studies over a cell function that writes a result and trains nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfbio.experiments.study import StudyFailure, study

RULES = {"bp": "bp.gin", "fa": ["fa.gin", "rule.scale=2"]}


def fake_cell(gin_files, bindings, workdir):
    """Writes a result; what else it does is in the bindings."""
    asked = dict(binding.split("=", 1) for binding in bindings)
    folder = Path(workdir)
    with (folder / "calls.txt").open("a") as file:
        file.write(f"{os.getpid()} {os.environ['TF_NUM_INTRAOP_THREADS']}\n")
    print("said by the cell", flush=True)
    mend = Path(asked.get("mend", "/nowhere"))
    if asked.get("act") == "raise" and not mend.exists():
        raise ValueError("The loss is not finite.\nMore about it.")
    if asked.get("act") == "die":
        os._exit(9)
    if asked.get("act") == "sleep":
        signal.signal(signal.SIGTERM, lambda *_: ((folder / "checkpoint").write_text("saved"), sys.exit(143)))
        (folder / "started").touch()
        time.sleep(120)
    if asked.get("act") == "meet":  # returns only while another cell runs
        (folder / "here").touch()
        until = time.monotonic() + 60
        while len(list(folder.parent.parent.glob("*/*/here"))) < 2:
            if time.monotonic() > until:
                raise RuntimeError("No other cell came.")
            time.sleep(0.02)
    if asked.get("act") != "nothing":
        final = {"train_error": 0.0, "test_error": 0.0222}
        labels = eval(asked["train.labels"])
        (folder / "result.json").write_text(
            json.dumps({"labels": labels, "seed": int(asked["train.seed"]), "final": final, "gin": gin_files})
        )


def run(workdir, axes, **options):
    return study(workdir, axes, run_cell=fake_cell, **options)


def pids(workdir):
    return [path.read_text().split()[0] for path in sorted(workdir.glob("*/*/calls.txt"))]


def test_cells_run_in_one_process_and_are_skipped_afterwards(tmp_path, capfd):
    axes = {"network": {"fc": "fc.gin"}, "rule": RULES}
    text = run(tmp_path, axes, base="base.gin", seeds=(0, 1), params=["train.epochs=3"])
    assert text == (tmp_path / "report.md").read_text() and "| fc | fa | 2 |" in text
    cells = json.loads((tmp_path / "study.json").read_text())["cells"]
    assert [cell["folder"] for cell in cells] == [f"fc-{rule}/seed{seed}" for seed in (0, 1) for rule in ("bp", "fa")]
    assert cells[1] == {
        "folder": "fc-fa/seed0",
        "labels": {"network": "fc", "rule": "fa"},
        "seed": 0,
        "gin_files": ["base.gin", "fc.gin", "fa.gin"],
        "bindings": ["train.epochs=3", "rule.scale=2", "train.seed=0", "train.labels={'network': 'fc', 'rule': 'fa'}"],
    }
    assert json.loads((tmp_path / "fc-fa/seed0/result.json").read_text())["gin"] == cells[1]["gin_files"]
    called = pids(tmp_path)
    assert len(called) == 4 and len(set(called)) == 1 and str(os.getpid()) not in called
    output = capfd.readouterr().out
    assert "[1/4] fc-bp/seed0 test error 2.22 %  " in output and " left)" in output and "said by" not in output
    assert "said by the cell" in (tmp_path / "fc-bp/seed0/log.txt").read_text()

    # A second call starts nothing; one with more seeds would start those alone.
    assert run(tmp_path, axes, base="base.gin", seeds=(0, 1), params=["train.epochs=3"]) == text
    assert pids(tmp_path) == called
    assert "4 of 4 cells are finished already." in capfd.readouterr().out


def test_failures_leave_their_reason_stop_nothing_and_are_tried_again(tmp_path, capfd):
    work, mend = tmp_path / "work", tmp_path / "mend"
    axes = {"rule": {"bad": ["act=raise", f"mend={mend}"], "dead": "act=die", "empty": "act=nothing", "good": "a=1"}}
    with pytest.raises(
        StudyFailure, match=r"3 of 4 cells failed, the first of them bad/seed0: The loss is not finite\."
    ):
        run(work, axes)
    sentences = {path.parent.parent.name: path.read_text().strip() for path in work.glob("*/*/failure.txt")}
    assert set(sentences) == {"bad", "dead", "empty"}
    assert sentences["bad"] == "The loss is not finite."
    assert "More about it" in (work / "bad/seed0/traceback.txt").read_text()
    assert sentences["dead"].startswith("the process ended with exit code 9;")
    assert "without a result.json" in sentences["empty"]
    assert (work / "good/seed0/result.json").exists()
    assert "- dead/seed0: the process ended" in (work / "report.md").read_text()
    assert "failed: The loss is not finite." in capfd.readouterr().out

    mend.touch()
    text = run(work, {"rule": {name: axes["rule"][name] for name in ("bad", "good")}})
    assert "| bad | 1 |" in text and "- empty/seed0: " in text
    assert not (work / "bad/seed0/failure.txt").exists() and not (work / "bad/seed0/traceback.txt").exists()
    assert len((work / "good/seed0/calls.txt").read_text().splitlines()) == 1


def test_two_processes_run_at_the_same_time_with_half_the_cores_each(tmp_path, monkeypatch):
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    run(tmp_path, {"rule": RULES}, params="act=meet", processes=2)
    calls = [path.read_text().split() for path in tmp_path.glob("*/*/calls.txt")]
    assert len({pid for pid, _ in calls}) == 2
    assert {threads for _, threads in calls} == {"3"}
    assert "TF_NUM_INTRAOP_THREADS" not in os.environ


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_study_lets_its_processes_checkpoint(tmp_path, number, code):
    script, here = tmp_path / "main.py", Path(__file__).parent
    script.write_text(
        f"import sys; sys.path[:0] = {[str(here), str(here.parents[1])]!r}\n"
        "from test_study import fake_cell, study\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        f"        study({str(tmp_path)!r}, {{'rule': {{'fa': 'act=sleep'}}}}, run_cell=fake_cell)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    try:
        until = time.monotonic() + 90
        while not (tmp_path / "fa/seed0/started").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to parent and child
        else:
            process.send_signal(number)
        assert process.wait(30) == code
    finally:
        process.kill()
    assert (tmp_path / "fa/seed0/checkpoint").read_text() == "saved"
    child = int((tmp_path / "fa/seed0/calls.txt").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not (tmp_path / "fa/seed0/failure.txt").exists()


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A study whose cells finish without child processes."""

    def run_cells(workdir, cells, total, processes, run_cell):
        for cell in cells:
            (workdir / cell.folder).mkdir(parents=True)
            result = {"labels": cell.labels, "seed": cell.seed, "final": {"test_error": 0.1}}
            (workdir / cell.folder / "result.json").write_text(json.dumps(result))
        return {}

    monkeypatch.setattr(sys.modules[study.__module__], "_run_cells", run_cells)
    run(tmp_path, {"rule": RULES})
    return tmp_path


def test_more_cells_and_seeds_are_welcome_and_earlier_ones_stay(finished):
    run(finished, {"rule": {"dfa": "dfa.gin", "fa": RULES["fa"]}}, seeds=(1,))
    folders = [cell["folder"] for cell in json.loads((finished / "study.json").read_text())["cells"]]
    assert folders == ["dfa/seed1", "fa/seed1", "bp/seed0", "fa/seed0"]


@pytest.mark.parametrize("change", [{"params": "train.epochs=1"}, {"base": "other.gin"}])
def test_other_settings_in_a_cells_place_conflict(finished, change):
    before = (finished / "study.json").read_text()
    with pytest.raises(ValueError, match="whose cell bp/seed0 ran with"):
        run(finished, {"rule": RULES}, **change)
    assert (finished / "study.json").read_text() == before


def test_a_broken_study_file_is_said(finished):
    (finished / "study.json").write_text('{"cells": [')
    with pytest.raises(ValueError, match="study.json can't be read"):
        run(finished, {"rule": RULES})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"axes": {}}, "at least one axis"),
        ({"axes": {"rule": {}}}, "at least one axis"),
        ({"axes": {"rule": {"bp": "bp.yaml"}}}, "received 'bp.yaml'"),
        ({"axes": {"rule": {"a/b": "bp.gin"}}}, "received 'a/b'"),
        ({"axes": {"rule": {"..": "bp.gin"}}}, "name folders"),
        ({"axes": {"a": {"x-y": [], "x": []}, "b": {"z": [], "y-z": []}}}, "both"),
        ({"seeds": (0, 0)}, "different integers"),
        ({"seeds": ()}, "different integers"),
        ({"processes": 0}, "a positive integer"),
        ({"base": "a.b=1"}, "in `base`"),
        ({"params": "a.gin"}, "in `params`"),
    ],
)
def test_malformed_arguments(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        run(tmp_path / "new", **({"axes": {"rule": RULES}} | options))
    assert not (tmp_path / "new").exists()
