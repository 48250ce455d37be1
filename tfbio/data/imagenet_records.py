"""`imagenet_records:<folder>`: ImageNet in the TFRecord files that the scripts of tensorflow/models write.

There are 1,024 training and 128 validation files, `train-00000-of-01024`, …, in one folder or in `train/` and
`validation/`. A record is an example with the file as it was, `image/encoded`, and `image/class/label` from 1 to 1,000,
which count the sorted synsets; here labels begin at 0, as those of `imagenet2012` do.

Nothing says how many records a file holds. They are counted the first time that a folder is read, by their headers
alone, and kept there in `lengths.json`, if that can be written.
"""

import contextlib
import json
import logging
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf
from etils.epath import Path

from tfbio.data import tfds_sets
from tfbio.data.errors import DataNotFoundError
from tfbio.data.record_files import RecordFiles, check_present
from tfbio.files import write_json

__all__ = ["read"]

_CLASSES = 1000
_COUNTS = "lengths.json"
_THREADS = 16  # that count: they wait for the disk

#: Records of each file whose labels are looked at before training: with 1,024 files, one of 3,000 sets whose labels
#: begin at 0 goes unnoticed. The others are checked as they are read.
_TRIED = 8


def read(path: str, split: str) -> RecordFiles:
    """One split of ImageNet's record files.

    Args:
        path: the folder of the files, or the one above `train/` and `validation/`.
        split: `"train"`, or `"test"` for the validation files, as nobody else has labels.

    Returns:
        the examples, in the order on disk; their classes are those of `imagenet2012`.

    Raises:
        DataNotFoundError: there are no such files, or some are missing.
        ValueError: a file is cut short, or its labels are not from 1 to 1,000.
    """
    paths = _paths(os.path.expanduser(path), "train" if split == "train" else "validation")
    names = tfds_sets.builder("imagenet2012", None).info.features["label"].names
    return RecordFiles(paths, _lengths(paths), _parse, (None, None, 3), tuple(names))


def _paths(path: str, prefix: str) -> list[str]:
    for folder in (path, os.path.join(path, prefix)):
        found = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
        if totals := {match[1] for name in found if (match := re.fullmatch(rf"{prefix}-\d{{5}}-of-(\d{{5}})", name))}:
            if len(totals) > 1:
                raise ValueError(
                    f"Invalid value for `name`: expected one set of files, received {prefix}-…-of-"
                    f"{' and -of-'.join(sorted(totals))} in {folder}. Take one of them away."
                )
            total = totals.pop()
            paths = [os.path.join(folder, f"{prefix}-{number:05}-of-{total}") for number in range(int(total))]
            check_present(paths)
            return paths
    raise DataNotFoundError(
        f"Invalid value for `name`: expected files {prefix}-00000-of-… in {path} or in {os.path.join(path, prefix)}, "
        f"received {'none there' if tf.io.gfile.isdir(path) else 'no such folder'}. Name their folder as "
        "imagenet_records:<path>."
    )


def _parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/class/label": tf.io.FixedLenFeature([], tf.int64),
    }
    example = tf.io.parse_single_example(record, features)
    label = example["image/class/label"]
    with tf.control_dependencies([tf.Assert((label >= 1) & (label <= _CLASSES), ["no label of ImageNet:", label])]):
        return example["image/encoded"], tf.cast(label - 1, tf.int32)


def _lengths(paths: list[str]) -> list[int]:
    """The number of records in each file, counted or as it was counted before."""
    index = Path(os.path.dirname(paths[0])) / _COUNTS
    kept = _kept(index)
    sizes = {path: Path(path).stat().length for path in paths}
    wanting = [path for path in paths if kept.get(os.path.basename(path), [None])[0] != sizes[path]]
    if wanting:
        with ThreadPoolExecutor(_THREADS) as pool:
            tasks = [pool.submit(_count, path, sizes[path]) for path in wanting]
            try:
                counts = [task.result() for task in tasks]
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, nobody waits for the others
        kept |= {os.path.basename(path): [sizes[path], count] for path, count in zip(wanting, counts, strict=True)}
        try:
            write_json(index, kept)
        except (OSError, tf.errors.OpError):  # several workers may write it at once, too
            if not index.exists():
                message = "%s can't be written: the records will be counted again the next time."
                logging.getLogger("tfbio").warning(message, index)
    return [kept[os.path.basename(path)][1] for path in paths]


def _kept(index: Path) -> dict[str, list[int]]:
    """File names to bytes and records; what can't be read is counted again."""
    with contextlib.suppress(OSError, ValueError, tf.errors.OpError):
        content = json.loads(index.read_text())
        return content if isinstance(content, dict) else {}
    return {}


def _count(path: str, size: int) -> int:
    """The number of records in a file of `size` bytes; looks at the labels of the first ones."""
    count = place = 0
    with Path(path).open("rb") as file:
        while place < size:
            file.seek(place)
            head = file.read(12)  # the record's length, and a checksum of it; behind the record comes another
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            place += 12 + length + 4
            if place <= size and count < _TRIED:
                _check_label(path, count, file.read(length))
            count += 1
    if place != size:
        raise ValueError(
            f"Invalid value for `name`: expected whole TFRecord files, received {path}, which ends within record "
            f"{count - 1}. Copy it again."
        )
    return count


def _check_label(path: str, number: int, record: bytes) -> None:
    try:
        values = list(tf.train.Example.FromString(record).features.feature["image/class/label"].int64_list.value)
    except Exception:  # protobuf's own error, whose place differs between its versions
        values = []
    if len(values) != 1 or not 1 <= values[0] <= _CLASSES:
        raise ValueError(
            f"Invalid value for `name`: expected examples with an image/class/label from 1 to {_CLASSES}, as the "
            f"scripts of tensorflow/models write them, received {values or 'none'} in record {number} of {path}. Pass "
            "the trainer a `tf.data.Dataset` that you build."
        )
