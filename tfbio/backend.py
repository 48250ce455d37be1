"""Keras's backend: tfbio computes with TensorFlow itself, so that Keras must, too."""

import json
import os
import sys
from pathlib import Path

__all__ = ["check_backend"]


def check_backend() -> None:
    """Refuses another backend of Keras, before Keras is imported where that is possible; imports nothing.

    Raises:
        ImportError: Keras uses another backend, or is about to.
    """
    backend, said_by = _backend()
    if backend != "tensorflow":
        raise ImportError(
            f"tfbio needs Keras's backend 'tensorflow', received {backend!r} ({said_by}). Set the environment variable "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )


def _backend() -> tuple[str, str]:
    """The backend that Keras uses, or will use by its own rules, and what says so."""
    keras = sys.modules.get("keras")
    if hasattr(keras, "backend"):  # not one that is still being imported
        return keras.backend.backend(), "Keras is imported already"
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "the environment variable KERAS_BACKEND"
    file = Path(os.environ.get("KERAS_HOME", os.path.expanduser("~/.keras"))) / "keras.json"
    try:
        return json.loads(file.read_text()).get("backend", "tensorflow"), str(file)
    except (OSError, ValueError, AttributeError):  # none, or one that Keras does not read either
        return "tensorflow", "Keras's default"
