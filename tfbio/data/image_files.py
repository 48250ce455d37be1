"""`image_folder:<path>`: pictures in files, one folder a class, below `train/` and `test/` (or `validation/`).

Folders within a class's folder belong to the class. A file with a usual ending is a picture, and so is any other that
begins as one; what is not read is logged, once.
"""

import functools
import logging
import os

import numpy as np
import tensorflow as tf

from tfbio.data import randomness
from tfbio.data.errors import DataNotFoundError
from tfbio.data.shares import Share

__all__ = ["ImageFiles", "read"]

_KINDS = "JPEG, PNG, GIF, BMP or WebP"
_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp")

LeftOut = dict[str, list[str]]  # why something is not read, and what


class ImageFiles:
    """Pictures in files of their own, which can be read in any order.

    Args:
        paths: a path for each example.
        labels: a class for each example, integers in `[0, classes)`.
        class_names: a name for each class.

    Attributes:
        classes: number of classes.
        shape: shape of an image; None for what differs from one to the next.
    """

    shape = (None, None, 3)

    def __init__(self, paths: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]):
        self.class_names = class_names
        self.classes = len(class_names)
        self._names, self._classes = paths, labels
        with tf.device("CPU:0"):
            self._paths, self._labels = tf.constant(paths, tf.string), tf.constant(labels, tf.int32)

    def __len__(self) -> int:
        return len(self._names)

    def take(self, indices: np.ndarray) -> "ImageFiles":
        """The examples at some indices, shape `(count,)`, in their order."""
        return ImageFiles(self._names[indices], self._classes[indices], self.class_names)

    def records(self, key: tf.Tensor | None, first: int | tf.Tensor, share: Share) -> tf.data.Dataset:
        """What is cheap to skip: the indices of a share of an epoch's batches, in order, from the `first`-th batch on.

        Args:
            key: of a random order (`randomness.key`); None for that of the files.
            first: batches to leave out at the beginning.
            share: whose rows.
        """
        order = tf.range(len(self)) if key is None else randomness.permutation(key, len(self))
        return share.select(tf.data.Dataset.from_tensor_slices((order[first * share.batch_size :],)))

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The bytes and the label of a record."""
        return tf.io.read_file(self._paths[index]), self._labels[index]

    def describe(self, index: int) -> str:
        """Where an example is, for messages."""
        return str(self._names[index])


def read(path: str, split: str) -> ImageFiles:
    """One split of a folder of pictures.

    Args:
        path: the folder; it holds `train/` and `test/`, or `validation/` in place of `test/` (one that stands beside it
            is not read), and these a folder for each class. The sorted names of those in `train/` are the classes.
            What else is in these folders is logged.
        split: `"train"` or `"test"`.

    Returns:
        the examples, sorted by class and name.

    Raises:
        DataNotFoundError: there is no such folder.
        ValueError: a folder of a class is empty or can't be read, or one in `test/` is no class of `train/`.
    """
    path = os.path.expanduser(path)
    folder = _split_folder(path, split)
    names = _class_names(os.path.join(path, "train"))
    if unknown := sorted(set(_class_names(folder)) - set(names)):
        raise ValueError(
            f"Invalid value for `name`: expected folders in {folder} to be classes of {path}/train, received "
            f"{_some(unknown)}."
        )
    left_out: LeftOut = {}
    found = [_pictures(os.path.join(folder, name), left_out) for name in names]
    _report(path, folder, left_out)
    # A class need not be in the test data, but a folder that is there and empty is an unfinished copy.
    empty = [n for n, f in zip(names, found, strict=True) if f == [] or (f is None and split == "train")]
    if empty or not any(found):
        raise ValueError(
            f"Invalid value for `name`: expected {_KINDS} pictures in every folder of {folder}, received none in "
            f"{_some(empty or names)}."
        )
    counts = [len(files or ()) for files in found]
    return ImageFiles(
        np.array([file for files in found for file in files or ()]), np.repeat(np.arange(len(names)), counts), names
    )


def _split_folder(path: str, split: str) -> str:
    choices = ("train",) if split == "train" else ("test", "validation")
    for choice in choices:
        if tf.io.gfile.isdir(os.path.join(path, choice)):
            return os.path.join(path, choice)
    raise DataNotFoundError(
        f"Invalid value for `name`: expected a folder {' or '.join(os.path.join(path, c) for c in choices)} with a "
        f"folder of pictures for each class, received {'none' if tf.io.gfile.isdir(path) else 'no such path'}. Name "
        "the folder above train/ and validation/ as image_folder:<path>."
    )


def _entries(folder: str) -> list[str]:
    """The sorted names in a folder."""
    try:
        return sorted(entry.rstrip("/") for entry in tf.io.gfile.listdir(folder))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Invalid value for `name`: expected names in UTF-8, received {error.object!r} in {folder}. Rename it."
        ) from error
    except tf.errors.OpError as error:
        raise ValueError(
            f"Invalid value for `name`: expected folders that can be read, received {folder} ({error.message})."
        ) from error


def _class_names(folder: str) -> tuple[str, ...]:
    if not tf.io.gfile.isdir(folder):
        return ()
    return tuple(e for e in _entries(folder) if not e.startswith(".") and tf.io.gfile.isdir(os.path.join(folder, e)))


def _pictures(folder: str, left_out: LeftOut, above: tuple[str, ...] = ()) -> list[str] | None:
    """The paths of the pictures in a folder and those within it, in order; None if there is no such folder."""
    if not tf.io.gfile.isdir(folder):
        return None
    found, here = [], os.path.realpath(folder)
    for entry in _entries(folder):
        path = os.path.join(folder, entry)
        if entry.startswith("."):
            left_out.setdefault("begin with a dot", []).append(path)
        elif entry.lower().endswith(_ENDINGS):  # no more is asked: there may be a million
            found.append(path)
        elif not tf.io.gfile.isdir(path):
            if (why := _no_picture(path)) is None:
                found.append(path)
            else:
                left_out.setdefault(why, []).append(path)
        elif os.path.realpath(path) in (*above, here):
            left_out.setdefault("lead back to a folder above", []).append(path)
        else:
            found += _pictures(path, left_out, (*above, here))
    return found


def _no_picture(path: str) -> str | None:
    """Why a file is none that can be decoded, by its first bytes; None if it can be."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            begin = file.read(12)
    except tf.errors.OpError:
        return "can't be read"
    if begin.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")):
        return None
    if (begin[:2], begin[6:10]) == (b"BM", bytes(4)) or (begin[:4], begin[8:]) == (b"RIFF", b"WEBP"):
        return None
    return f"are no {_KINDS} pictures"


def _report(path: str, folder: str, left_out: LeftOut) -> None:
    """Logs what is not read of a split's folder."""
    classes = _class_names(folder)
    if beside := [os.path.join(folder, entry) for entry in _entries(folder) if entry not in classes]:
        left_out["are in no class's folder"] = beside
    if os.path.basename(folder) == "test" and tf.io.gfile.isdir(os.path.join(path, "validation")):
        left_out["stand beside test/"] = [os.path.join(path, "validation")]
    if left_out:
        reasons = [
            f"{len(places)} {why} ({_some([os.path.relpath(place, path) for place in places])})"
            for why, places in left_out.items()
        ]
        _warn_once(f"Not read of {path}: {'; '.join(reasons)}.")


@functools.cache
def _warn_once(message: str) -> None:
    logging.getLogger("tfbio").warning(message)


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
