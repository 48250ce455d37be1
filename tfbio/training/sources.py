"""What users bring as data, as what feeds take: arrays and `keras.utils.PyDataset` beside `tf.data`."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.data import from_arrays, randomness
from tfbio.training.checks import check_count

__all__ = ["as_source", "is_arrays"]

#: Keras's.
_BATCH_SIZE = 32


def as_source(data: Any, batch_size: int | None, shuffle: bool) -> Any:
    """What `make_feed` takes for `data`.

    Args:
        data: arrays `(x, y)` or `(x, y, sample_weight)`, each of them nested; a `keras.utils.PyDataset`; or what
            `make_feed` takes.
        batch_size: of arrays: examples in a global batch; None for 32.
        shuffle: of arrays: whether every epoch has a random order of its own, the same in every run.

    Raises:
        ValueError: arrays that differ in length; `batch_size` with what has batches already.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size)
    if is_arrays(data):
        return _arrays(tuple(data), batch_size or _BATCH_SIZE, shuffle)
    if hasattr(data, "__array__") or isinstance(data, Mapping):
        raise ValueError(
            f"Invalid value for the data: expected a tf.data.Dataset of batches, or arrays (x, y) or (x, y, "
            f"sample_weight), received a {type(data).__name__} alone. Pass inputs and labels together: fit((x, y))."
        )
    if batch_size is not None:
        raise ValueError(
            f"Invalid value for `batch_size`: expected None, since a {type(data).__name__} has batches already, "
            f"received {batch_size}."
        )
    return _py_dataset(data) if isinstance(data, keras.utils.PyDataset) else data


def is_arrays(data: Any) -> bool:
    """Whether data are arrays, which have no batches yet."""
    return isinstance(data, (tuple, list))


def _arrays(data: tuple, batch_size: int, shuffle: bool) -> Any:
    if len(data) == 3 and data[2] is None:
        data = data[:2]
    if len(data) not in (2, 3):
        raise ValueError(
            f"Invalid value for the data: expected arrays (x, y) or (x, y, sample_weight), received {len(data)} of "
            "them. Several inputs are nested: ((first, second), y)."
        )
    arrays = tuple(map(_as_arrays, data))
    lengths = {len(array) if array.ndim else 0 for array in tf.nest.flatten(arrays)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "Invalid value for the data: expected arrays of one length, and at least one example, received lengths "
            f"{sorted(lengths)}."
        )
    if len(arrays) == 2 and all(isinstance(array, np.ndarray) for array in arrays):
        return from_arrays(*arrays, batch_size, shuffle=shuffle)
    (examples,) = lengths
    with tf.device("CPU:0"):
        tensors = tf.nest.map_structure(tf.convert_to_tensor, arrays)

    def batches(epoch: int) -> tf.data.Dataset:
        order = randomness.permutation(randomness.key(0, randomness.ORDER, epoch), examples)
        rows = tf.data.Dataset.from_tensor_slices(order if shuffle else tf.range(examples)).batch(batch_size)
        return rows.map(lambda rows: tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors))

    return batches


def _as_arrays(part: Any) -> Any:
    """Arrays, nested as they are; a list of numbers, or of lists of them, is one array."""
    if isinstance(part, list) and part and all(map(np.isscalar, tf.nest.flatten(part))):
        array = np.asarray(part)
        return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array
    if isinstance(part, Mapping):
        return {name: _as_arrays(inner) for name, inner in part.items()}
    return type(part)(map(_as_arrays, part)) if type(part) in (list, tuple) else tf.nest.map_structure(np.asarray, part)


def _py_dataset(data: keras.utils.PyDataset) -> Any:
    def element(index: int) -> Any:
        element = data[index]
        return tf.nest.map_structure(np.asarray, tuple(element) if isinstance(element, list) else element)

    signature = tf.nest.map_structure(lambda a: tf.TensorSpec((None, *a.shape[1:]), a.dtype), element(0))
    count = data.num_batches

    def one_epoch() -> Iterator[Any]:
        for index in itertools.count() if count is None else range(count):
            yield element(index)
        data.on_epoch_end()

    def batches(epoch: int) -> tf.data.Dataset:
        cardinality = tf.data.INFINITE_CARDINALITY if count is None else count
        dataset = tf.data.Dataset.from_generator(one_epoch, output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(cardinality)).prefetch(2)

    return batches
