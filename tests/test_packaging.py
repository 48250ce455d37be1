"""What a wheel holds, read from setuptools without building one."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools

import tfbio

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distribution():
    asked = {}
    before, setup = os.getcwd(), setuptools.setup
    os.chdir(_ROOT)
    setuptools.setup = lambda **keywords: asked.update(keywords)
    try:
        runpy.run_path("setup.py")
        distribution = setuptools.Distribution(asked)
        command = distribution.get_command_obj("build_py")
        command.ensure_finalized()
        assert command.data_files  # found on first use, relative to the current folder
        return distribution
    finally:
        setuptools.setup = setup
        os.chdir(before)


def test_wheel_carries_every_gin_file_below_the_package(distribution):
    installed = {
        Path(package.replace(".", "/")) / name
        for package, _, _, names in distribution.get_command_obj("build_py").data_files
        for name in names
    }
    expected = {Path("tfbio/gin") / path.relative_to(_ROOT / "gin") for path in (_ROOT / "gin").rglob("*.gin")}
    assert installed == expected and len(expected) > 10


def test_wheel_carries_every_package(distribution):
    folders = {path.parent.relative_to(_ROOT) for path in (_ROOT / "tfbio").rglob("*.py")}
    assert {Path(p.replace(".", "/")) for p in distribution.packages} == folders | {Path("tfbio/gin")}


def test_version_is_the_library_s(distribution):
    assert distribution.get_version() == tfbio.__version__


def test_the_lowest_versions_are_those_of_setup(distribution, tmp_path):
    for name in ("setup.py", "pyproject.toml", "launchers/_environment.sh", ".ci/lowest"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(_ROOT / name, tmp_path / name)
    environment = {**os.environ, "dry_run": "1"}
    done = subprocess.run(
        [".ci/lowest", "tests/rules"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith("tests/rules "), done.stderr
    expected = [re.sub(r"\[.*\]", "", requirement).replace(">=", "==") for requirement in distribution.install_requires]
    assert (tmp_path / ".venv-lowest.txt").read_text().split() == expected and len(expected) > 8
