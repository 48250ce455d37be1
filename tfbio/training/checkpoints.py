"""Checkpoints: everything a run is, so that it goes on bit for bit from where it stopped.

A run's state is its variables and its step, and nothing else: weights, the rule's feedback, both optimizers, the
running averages of the current epoch, the random state of the model's own layers. The order of examples is a function
of (seed, epoch), so the step also says which batch comes next.
"""

import contextlib
import logging
import os
import re
import tempfile
import time
from typing import Any

import tensorflow as tf
from etils.epath import Path

from tfbio.files import check_no_pattern
from tfbio.training.workers import Workers

__all__ = ["CheckpointError", "Checkpoints"]

_LOG = logging.getLogger("tfbio")


class CheckpointError(RuntimeError):
    """No checkpoint could be read, or one belongs to another run."""


class Checkpoints:
    """Where and when a trainer saves itself.

    Args:
        directory: a folder of its own for the checkpoint files; made if need be.
        every_steps: save after each so many steps (the loop stops there); None for by time alone.
        every_seconds: save at the end of the first loop, about a second each, at which so many seconds have passed.
        keep: how many to keep; the newest that can be read is used.

    Raises:
        ValueError: an interval or count below 1, or a path that TensorFlow reads as a pattern.
    """

    def __init__(self, directory: str, every_steps: int | None = None, every_seconds: float = 300.0, keep: int = 2):
        for name, value in {"every_steps": every_steps, "every_seconds": every_seconds, "keep": keep}.items():
            if value is not None and value <= 0:
                raise ValueError(f"Invalid value for `{name}`: expected a positive number, received {value}.")
        check_no_pattern("directory", directory)
        self.directory = Path(directory)
        self.every_steps = every_steps
        self.every_seconds = every_seconds
        self.keep = keep
        self._saved_at = time.monotonic()
        self.last: str | None = None

    def due(self, step: int) -> bool:
        """True if the policy asks for a checkpoint now."""
        by_step = self.every_steps is not None and step % self.every_steps == 0
        return by_step or time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, state: tf.train.Checkpoint, step: int, workers: Workers | None = None) -> str:
        """Writes `state`, deletes the oldest beyond `keep`, and returns the checkpoint's path.

        Every one of several workers calls this, for some variables are summed over them as they are read; the chief's
        file is kept, in a directory that all of them see.

        Raises:
            CheckpointError: it can't be written. Those of before are still there.
        """
        chief = workers is None or workers.chief
        path = str(self.directory / f"step-{step}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as elsewhere:
                state.write(path if chief else os.path.join(elsewhere, "unused"))
        except (tf.errors.OpError, OSError) as error:
            self._clean(chief)
            kept = f"the newest that is whole is {self.last}" if self.last else "there is none yet"
            raise CheckpointError(
                f"The checkpoint {path} can't be written ({_first_line(error)}); {kept}. Make room, or make the folder "
                "writable, and give the same command again."
            ) from error
        self.last = path
        self._clean(chief)
        if workers is not None:
            workers.agree(0)  # nobody goes on, or ends, before the chief's file is whole
        self._saved_at = time.monotonic()
        paths = self.paths() if chief else []
        own = paths.index(Path(path)) if chief else 0
        for old in [*paths[: max(0, own + 1 - self.keep)], *paths[own + 1 :]]:  # newer ones could not be read
            for file in old.parent.glob(old.name + ".*"):
                file.unlink()
        return self.last

    def _clean(self, chief: bool) -> None:
        """Removes what writes that failed, or were killed, have left."""
        whole = {path.name for path in self.paths()}
        for part in self.directory.glob("step-*") if chief else ():
            if part.is_dir():
                with contextlib.suppress(OSError, tf.errors.OpError):  # why it can't be written is said already
                    part.rmtree()
            elif part.name.partition(".")[0] not in whole:
                part.unlink()

    def paths(self) -> list[Path]:
        """The checkpoints' paths without suffix, oldest first."""
        steps = []
        for index in self.directory.glob("step-*.index"):
            if match := re.fullmatch(r"step-(\d+)\.index", index.name):
                steps.append(int(match[1]))
        return [self.directory / f"step-{step}" for step in sorted(steps)]

    def restore(self, state: tf.train.Checkpoint) -> str | None:
        """Reads the newest checkpoint that can be read into `state`; says so if that is not the newest.

        Returns:
            Its path; None if there is none.

        Raises:
            CheckpointError: there are some, and none could be read.
        """
        failures: list[tuple[Path, Any]] = []
        for path in reversed(self.paths()):
            try:
                state.read(str(path)).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, IndexError, ValueError, RuntimeError) as error:
                failures.append((path, error))
                continue
            for bad, error in failures:
                _LOG.warning("checkpoint %s can't be read (%s); going on from %s", bad, _first_line(error), path)
            self.last = str(path)
            return self.last
        if failures:
            path, error = failures[0]
            raise CheckpointError(
                f"None of the {len(failures)} checkpoints in {self.directory} could be read. The newest, {path.name}: "
                f"{_first_line(error)} Delete the folder to start anew, or use another work directory."
            )
        return None


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
