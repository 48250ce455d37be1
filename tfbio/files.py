"""Files of runs: written whole or not at all, or line by line; in a folder or, by `etils.epath`, in a bucket."""

import json
import os
from collections.abc import Callable
from typing import Any

from etils.epath import Path

__all__ = ["append_line", "check_no_pattern", "is_remote", "keep_lines", "read_lines", "write_json", "write_whole"]


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path names a file system (`gs://…`): there is no folder that it is relative to."""
    return "://" in os.fspath(path)


#: TensorFlow reads these in a checkpoint's path as a pattern of names, or as what takes a pattern's meaning away.
_PATTERN = "[]*?\\"


def check_no_pattern(argument: str, path: str | os.PathLike) -> None:
    """Refuses a folder whose checkpoints TensorFlow can't read, or takes for those of another folder.

    Args:
        argument: what the folder is called, for the error.
        path: the folder; a relative one is one of the current folder.

    Raises:
        ValueError: there is one of `[ ] * ?` or a backslash in the absolute path.
    """
    whole = os.fspath(path) if is_remote(path) else os.path.abspath(path)
    if set(whole) & (set(_PATTERN) - {os.sep}):
        raise ValueError(
            f"Invalid value for `{argument}`: expected a path without {' '.join(_PATTERN)}, which TensorFlow reads as "
            f"a pattern of names, received {whole!r}. Choose another folder, or rename this one."
        )


def write_whole(path: Path, text: str) -> None:
    """Writes whole files only: a kill, or a full disk, in the middle leaves the old one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, whole."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def read_lines(path: Path) -> list[dict]:
    """All whole lines of a file of JSON objects, none if there is no file; a line cut short by a kill is left out."""
    lines = []
    for text in path.read_bytes().decode("utf-8", "replace").split("\n") if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds a JSON object to a file of lines."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def keep_lines(path: Path, keep: Callable[[dict], bool]) -> None:
    """Drops the other lines, and a last one that was cut short. A file that needs no change is not touched.

    That is what makes `os.devnull` a file like any other here: it must never be replaced.
    """
    kept = "".join(json.dumps(line) + "\n" for line in read_lines(path) if keep(line))
    if path.exists() and path.read_text() != kept:
        write_whole(path, kept)
