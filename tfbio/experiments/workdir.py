"""A work directory: claimed by one run, whose files it holds."""

import json
from typing import Any

import tensorflow as tf
from etils.epath import Path

from tfbio.experiments.description import differences
from tfbio.files import write_json

__all__ = ["WorkdirError", "claim", "read_json"]


class WorkdirError(RuntimeError):
    """The work directory holds another run, or none."""


def claim(folder: Path, description: dict[str, Any], write: bool = True) -> None:
    """Checks that `run.json`, if there is one, says the same; if there is none, and `write`, writes it.

    Raises:
        WorkdirError: it says something else, or nothing can be written there.
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
    if different := list(differences(found, description)):
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
    """The file's content, or None if there is none.

    Raises:
        WorkdirError: it is not JSON.
    """
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise WorkdirError(
            f"{path} was not written by tfbio, or is damaged ({error}). Choose another work directory, or delete it."
        ) from error
