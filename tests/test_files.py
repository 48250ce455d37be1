"""Files that are whole, and lines that are kept."""

import os

import pytest
from etils.epath import Path

from tfbio import files


def test_lines_of_a_file_are_kept_or_dropped(tmp_path):
    path = Path(tmp_path / "lines.jsonl")
    assert files.read_lines(path) == []
    files.keep_lines(path, lambda line: True)
    assert not path.exists()
    for step in range(4):
        files.append_line(path, {"step": step})
    before = os.stat(path)
    files.keep_lines(path, lambda line: line["step"] < 9)
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not touched
    with path.open("a") as file:
        file.write('{"st')
    assert [line["step"] for line in files.read_lines(path)] == [0, 1, 2, 3]
    files.keep_lines(path, lambda line: line["step"] < 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n' and os.listdir(tmp_path) == ["lines.jsonl"]


def test_what_workers_write_nowhere_is_never_replaced(monkeypatch):
    """Every worker but the first measures, and writes to `os.devnull`."""
    monkeypatch.setattr(files, "write_whole", lambda *_: pytest.fail("would have replaced the device"))
    files.keep_lines(Path(os.devnull), lambda line: True)
    files.append_line(Path(os.devnull), {"step": 1})
    assert files.read_lines(Path(os.devnull)) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = Path(tmp_path / "run.json")
    files.write_json(path, {"a": 1})

    def fail(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path(tmp_path).__class__, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_remote_paths():
    assert files.is_remote("gs://bucket/run") and files.is_remote(Path("gs://bucket/run"))
    assert not files.is_remote("runs/gs") and not files.is_remote(Path("/runs"))
