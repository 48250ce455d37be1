"""The environment that the launchers make, with a program in Python's place that only notes how it was called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCHERS = Path(__file__).parents[1] / "launchers"
PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
    "-c "*) ;;
    "-m venv") mkdir -p "$4/bin" && rm -f "$4"/.[!.]* && cp "$0" "$4/bin/python" && echo venv >>"$RECORD" ;;
    "-m pip") echo "pip ${!#}" >>"$RECORD" && [ -z "${FAIL:-}" ] ;;
    *) echo "Python 3.12.0" ;;
esac
"""


@pytest.fixture
def prepare(tmp_path):
    """A function that prepares an environment with an extra and returns whether it could, and what was done for it."""
    (tmp_path / "launchers").mkdir()
    shutil.copy(LAUNCHERS / "_environment.sh", tmp_path / "launchers")
    for name, text in {"setup.py": "", "pyproject.toml": "", "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "RECORD": str(tmp_path / "record")}

    def call(extra="", **more):
        (tmp_path / "record").write_text("")
        command = ["bash", "-ec", f"source launchers/_environment.sh; prepare_environment {extra}"]
        done = subprocess.run(command, cwd=tmp_path, env={**environment, **more}, capture_output=True, timeout=60)
        return done.returncode == 0, (tmp_path / "record").read_text().replace(str(tmp_path), ".").splitlines()

    return call


def test_it_is_made_once(prepare):
    assert prepare() == (True, ["venv", "pip ."])
    assert prepare() == (True, [])


def test_an_extra_is_added_and_serves_without_it_too(prepare):
    prepare()
    assert prepare("dev") == (True, ["pip .[dev]"])
    assert prepare("dev") == prepare() == (True, [])


def test_a_folder_whose_name_pip_would_take_for_an_extra(tmp_path_factory, monkeypatch):
    """pip reads `-e 'path [1]'` as an extra called 1."""
    folder = tmp_path_factory.mktemp("clone") / "tfbio [1]"
    (folder / "launchers").mkdir(parents=True)
    shutil.copy(LAUNCHERS / "_environment.sh", folder / "launchers")
    for name, text in {"setup.py": "", "pyproject.toml": "", "python": PYTHON}.items():
        (folder / name).write_text(text)
    (folder / "python").chmod(0o755)
    environment = {**os.environ, "PYTHON": str(folder / "python"), "RECORD": str(folder / "record")}
    command = ["bash", "-ec", "source launchers/_environment.sh; prepare_environment dev"]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=60, check=True)
    assert (folder / "record").read_text().splitlines()[-1] == "pip .[dev]"


def test_a_changed_setup_is_installed(prepare, tmp_path):
    prepare()
    (tmp_path / "setup.py").write_text("# more")
    assert prepare() == (True, ["pip ."])


def test_an_installation_cut_short_is_begun_anew(prepare):
    assert prepare(FAIL="yes") == (False, ["venv", "pip ."])
    assert prepare() == (True, ["venv", "pip ."])
    assert prepare() == (True, [])
