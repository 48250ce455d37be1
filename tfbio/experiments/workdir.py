"""The work directory of one run. Its `run.json` says which run that is."""

import json
from typing import Any

import tensorflow as tf
from etils.epath import Path

from tfbio.experiments.description import differences, upgraded
from tfbio.files import write_json

__all__ = ["WorkdirError", "check_same_run", "read_json"]


class WorkdirError(RuntimeError):
    """The work directory holds another run, or none."""


def check_same_run(folder: Path, description: dict[str, Any], write: bool = True) -> None:
    """Checks that a work directory belongs to this run, and writes `run.json` there if it is missing.

    Args:
        folder: the work directory; made if need be.
        description: what makes the run that run (`BuiltRun.describe`).
        write: whether to write a missing `run.json`. One of several workers does.

    Raises:
        WorkdirError: `run.json` describes another run, or nothing can be written there.
    """
    found = read_json(folder / "run.json")
    if found is None:
        if not write:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "run.json", description)
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WorkdirError(
                f"The work directory {folder} can't be written ({reason}). Choose another, or make it writable."
            ) from error
        return
    if different := list(differences(upgraded(found), description)):
        path, before, now = different[0]
        keys = dict.fromkeys(key for (key, *_), _, _ in different)
        raise WorkdirError(
            f"{folder} holds a run with other settings ({', '.join(keys)}): {'.'.join(path)} was {_shown(before)}, is "
            f"now {_shown(now)}. Choose another work directory, or delete this one."
        )


def _shown(value: Any) -> str:
    """A value in a sentence."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the content of a JSON file, or None if there is no such file.

    Raises:
        WorkdirError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise WorkdirError(
            f"{path} was not written by tfbio, or is damaged ({error}). Choose another work directory, or delete it."
        ) from error
