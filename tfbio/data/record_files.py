"""Examples in TFRecord files, which are read from front to back: an order that streams can follow.

An epoch puts the files in a random order and cuts it into lanes, sixteen where batch size and files allow it. Each lane
mixes its records in a buffer of its own, and has the same rows of every batch, $B / 16$ neighbours. So a worker, which
has some rows of every batch too, reads some lanes and not the others' files; yet batches are the same for any number of
workers. The files themselves hold random examples each, as TensorFlow Datasets writes them, so that neighbours in an
epoch have nothing in common. An example's index is its place on disk, whatever the order in which it is read.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfbio.data import randomness
from tfbio.data.errors import DataNotFoundError
from tfbio.data.shares import Share

__all__ = ["RecordFiles", "check_present"]

#: Examples that are mixed, in all lanes together, still encoded: about 220 MB of ImageNet.
_BUFFER = 2048

#: Files that are read at a time where order is random, and most lanes.
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
        check_present([paths[file] for file in used])
        with tf.device("CPU:0"):
            self._paths = tf.constant([paths[file] for file in used])
            self._ranges = tf.constant(np.stack([self._bounds[used], firsts[used], counts[used]], axis=1), tf.int64)

    def __len__(self) -> int:
        return self._stop - self._start

    def take(self, indices: np.ndarray) -> "RecordFiles":
        """The examples at indices that follow one another."""
        return RecordFiles(*self._arguments, self._start + int(indices[0]), self._start + int(indices[-1]) + 1)

    def records(self, key: tf.Tensor | None, first: int | tf.Tensor, share: Share) -> tf.data.Dataset:
        """Indices and raw records of a share of an epoch's batches, in order, from the `first`-th batch on.

        What comes before is read and dropped, not decoded.

        Args:
            key: of a random order (`randomness.key`); None for that on disk.
            first: batches to leave out at the beginning.
            share: whose rows.
        """
        files, size = len(self._paths), share.batch_size
        order = tf.range(files) if key is None else randomness.permutation(key, files)
        lanes = 1 if key is None else max(n for n in range(1, min(_FILES, files) + 1) if size % n == 0)
        rows = size // lanes
        batches, rest = divmod(len(self), size)
        lengths = batches * rows + np.clip(rest - np.arange(lanes) * rows, 0, rows)
        bounds = tf.constant(np.concatenate([[0], np.cumsum(lengths)]), tf.int64)
        counts = tf.gather(self._ranges[:, 2], order)
        ends = tf.cumsum(counts)

        def lane(number: tf.Tensor) -> tf.data.Dataset:
            # A lane begins and ends within files: its part of them is a range of the records of all.
            low, high = (tf.clip_by_value(bounds[number + i] - (ends - counts), 0, counts) for i in (0, 1))
            used = tf.where(high > low)[:, 0]
            parts = [tf.gather(values, used) for values in (order, low, high - low)]
            at_a_time = 1 if key is None else _FILES // lanes
            # One file is read by the lane's own thread: another would cost each record a switch between threads.
            threads = at_a_time if at_a_time > 1 else None
            records = tf.data.Dataset.from_tensor_slices(tuple(parts)).interleave(
                self._file, cycle_length=at_a_time, num_parallel_calls=threads
            )
            if key is not None:
                seed = tf.random.experimental.stateless_fold_in(key, number, alg=randomness.ALGORITHM)[0]
                records = _shuffled(records, seed, _BUFFER // lanes)
            return records.skip(tf.cast(first, tf.int64) * rows)

        begin, end = (min(row, size) for row in share.bounds())
        low, high = min(begin // rows, lanes - 1), max(-(-end // rows), 1)
        records = tf.data.Dataset.range(low, high).interleave(
            lane, cycle_length=high - low, block_length=rows, num_parallel_calls=high - low
        )
        return share.select(records, low * rows, (high - low) * rows)

    def read(self, index: tf.Tensor, record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The bytes and the label of a record."""
        del index
        return self._parse(record)

    def describe(self, index: int) -> str:
        """Where an example is, for messages."""
        index += self._start
        file = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return f"record {index - self._bounds[file]} of {self._all_paths[file]}"

    def _file(self, file: tf.Tensor, begin: tf.Tensor, count: tf.Tensor) -> tf.data.Dataset:
        """`count` of a file's records in range, from the `begin`-th on, with their indices."""
        # Not by `tf.unstack`: on an output of an operation with several, TensorFlow 2.21 crashes in `skip` and `take`.
        start, first = (self._ranges[file, column] for column in range(2))
        records = tf.data.TFRecordDataset(self._paths[file]).skip(first + begin).take(count)
        return records.enumerate(start + first + begin - self._start)


def _shuffled(records: tf.data.Dataset, seed: tf.Tensor, buffer: int) -> tf.data.Dataset:
    """The records through a shuffle buffer that the seed alone decides, whatever `tf.random.set_seed` was told."""

    def shuffled(seed: tf.Tensor) -> tf.data.Dataset:
        tf.random.set_seed(1)  # of this function's graph, and of nothing else
        return records.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)

    return tf.data.Dataset.from_tensors(seed).flat_map(shuffled)


def check_present(paths: Sequence[str]) -> None:
    """Raises `DataNotFoundError`, with the names of those that are missing, unless all files are there."""
    folders = {os.path.dirname(path) for path in paths}
    present = {os.path.join(folder, name) for folder in folders for name in tf.io.gfile.listdir(folder)}
    if missing := [path for path in paths if path not in present]:
        raise DataNotFoundError(
            f"{len(missing)} of {len(paths)} files are missing: {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}. Copy them there, or prepare the data set again."
        )
