"""Examples in TFRecord files, which are read from front to back: an order that streams can follow.

An epoch goes through the files in a random order, some of them at a time, and mixes what comes out of them in a buffer.
The files themselves hold random examples each, as TensorFlow Datasets writes them, so that neighbours in an epoch have
nothing in common. An example's index is its place on disk, whatever the order in which it is read.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfbio.data import randomness
from tfbio.data.errors import DataNotFoundError

__all__ = ["RecordFiles"]

#: Examples that are mixed, still encoded: about 220 MB of ImageNet.
_BUFFER = 2048

#: Files that are read at a time where order is random.
_FILES = 16


class RecordFiles:
    """A range of the examples in record files.

    Args:
        paths: the files.
        lengths: the number of examples in each.
        parse: from a record to the picture's bytes and its label, in graph.
        shape: shape of an image; None for what differs from one to the next.
        class_names: a name for each class.
        start: index of the first example of the range.
        stop: index after the last; None for all.

    Attributes:
        classes: number of classes.

    Raises:
        DataNotFoundError: files are missing; names them.
    """

    def __init__(
        self,
        paths: Sequence[str],
        lengths: Sequence[int],
        parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
        shape: tuple[int | None, int | None, int],
        class_names: tuple[str, ...],
        start: int = 0,
        stop: int | None = None,
    ):
        self._arguments = (paths, lengths, parse, shape, class_names)
        self._all_paths, self._parse, self.shape, self.class_names = paths, parse, shape, class_names
        self.classes = len(class_names)
        self._bounds = np.concatenate([[0], np.cumsum(lengths)])
        self._start, self._stop = start, int(self._bounds[-1]) if stop is None else stop
        firsts = np.clip(self._start - self._bounds[:-1], 0, lengths)
        counts = np.clip(self._stop - self._bounds[:-1], 0, lengths) - firsts
        used = np.flatnonzero(counts > 0)
        _check_present([paths[file] for file in used])
        with tf.device("CPU:0"):
            self._paths = tf.constant([paths[file] for file in used])
            self._ranges = tf.constant(np.stack([self._bounds[used], firsts[used], counts[used]], axis=1), tf.int64)

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self, indices: np.ndarray) -> "RecordFiles":
        """The examples at indices that follow one another."""
        return RecordFiles(*self._arguments, self._start + int(indices[0]), self._start + int(indices[-1]) + 1)

    def records(self, key: tf.Tensor | None, first: int | tf.Tensor) -> tf.data.Dataset:
        """Indices and raw records of an epoch's examples, in order, from the `first`-th on.

        What comes before is read and dropped, not decoded.

        Args:
            key: of a random order (`randomness.key`); None for that on disk.
            first: examples to leave out at the beginning.
        """
        files = len(self._paths)
        order = tf.range(files) if key is None else randomness.permutation(key, files)
        records = tf.data.Dataset.from_tensor_slices(order).interleave(
            self._file, cycle_length=1 if key is None else _FILES, num_parallel_calls=tf.data.AUTOTUNE
        )
        return (records if key is None else _shuffled(records, key[0])).skip(tf.cast(first, tf.int64))

    def read(self, index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The bytes and the label of a record."""
        del index
        return self._parse(record)

    def describe(self, index: int) -> str:
        """Where an example is, for messages."""
        index += self._start
        file = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return f"record {index - self._bounds[file]} of {self._all_paths[file]}"

    def _file(self, file: tf.Tensor) -> tf.data.Dataset:
        # Not by `tf.unstack`: on an output of an operation with several, TensorFlow 2.21 crashes in `skip` and `take`.
        start, first, count = (self._ranges[file, column] for column in range(3))
        records = tf.data.TFRecordDataset(self._paths[file]).skip(first).take(count)
        return records.enumerate(start + first - self._start)


def _shuffled(records: tf.data.Dataset, seed: tf.Tensor) -> tf.data.Dataset:
    """The records through a shuffle buffer that the seed alone decides, whatever `tf.random.set_seed` was told."""

    def shuffled(seed: tf.Tensor) -> tf.data.Dataset:
        tf.random.set_seed(1)  # of this function's graph, and of nothing else
        return records.shuffle(_BUFFER, seed=seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.from_tensors(seed).flat_map(shuffled)


def _check_present(paths: list[str]) -> None:
    folders = {os.path.dirname(path) for path in paths}
    present = {os.path.join(folder, name) for folder in folders for name in tf.io.gfile.listdir(folder)}
    if missing := [path for path in paths if path not in present]:
        raise DataNotFoundError(
            f"{len(missing)} of {len(paths)} files are missing: {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}. Copy them there, or prepare the data set again."
        )
