"""Weights from a file of another run, or of Keras's own saving."""

import contextlib
import os
import tempfile
import zipfile

import h5py
import keras
from etils.epath import Path

from tfbio.files import is_remote

__all__ = ["load_initial_weights", "load_weights"]


def load_weights(model: keras.Model, path: str | os.PathLike) -> None:
    """Reads a model's weights from a file, in a bucket too.

    Args:
        model: as Keras's `load_weights` says.
        path: a `.keras` or `.weights.h5` file.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.load_weights(str(_local(path, folder)))


def load_initial_weights(model: keras.Model, path: str | os.PathLike) -> None:
    """Gives a model the weights of a file, all of which have to fit.

    Args:
        model: a built model.
        path: a `.keras` or `.weights.h5` file.

    Raises:
        ValueError: there is no such file, or it is of a model with other layers.
    """
    if not Path(path).exists():
        raise ValueError(f"Invalid value for `initial_weights`: expected a file that is there, received {str(path)!r}.")
    with tempfile.TemporaryDirectory() as folder:
        file = _local(path, folder)
        try:
            # Keras takes no notice of what the file has beyond the model's layers.
            model.save_weights(f"{folder}/own.weights.h5")
            unknown = sorted(_stored(file) - _stored(f"{folder}/own.weights.h5"))
            if unknown:
                raise ValueError(f"the file also has {', '.join(unknown[:3])}{', …' * (len(unknown) > 3)}")
            model.load_weights(str(file))
        except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"Invalid value for `initial_weights`: expected weights of a model with the layers of {model.name!r}, "
                f"received {str(path)!r}: {reason[:300]}{'…' * (len(reason) > 300)}"
            ) from error


def _local(path: str | os.PathLike, folder: str) -> Path:
    """The path of a file as Keras can read it: its copy in `folder` if it is in a bucket."""
    path = Path(path)
    return path.copy(Path(folder) / path.name) if is_remote(path) else path


def _stored(file: str | os.PathLike) -> set[str]:
    """The names of the weights that a file of Keras's holds, without those of an optimizer."""
    names: list[str] = []
    with contextlib.ExitStack() as stack:
        if str(file).endswith(".keras"):
            file = stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open("model.weights.h5"))
        content = stack.enter_context(h5py.File(file))
        content.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return {name for name in names if not name.startswith("optimizer/")}
