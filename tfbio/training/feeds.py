"""Feeds: how batches reach the replicas, and where an epoch is entered in its middle.

The order of examples is a function of the epoch alone, so a feed needs no state of its own: `open(epoch, first)` starts
an epoch at any of its batches and returns a handle. Two kinds share one interface:

* `MemoryFeed`, for sets that `tfbio.data` holds in memory: inside the loop's graph each replica gathers its own
  examples by index. No iterator, no copy, nothing to skip.
* `StreamFeed`, for sets that `tfbio.data` streams, any other `tf.data.Dataset`, or a function from the epoch to one.

What a graph does with a handle is the feed's `reader`. `take` is called in cross-replica context, once a step, and
returns the arguments for `strategy.run`; `unpack` turns them, on a replica, into its `Examples`. Feeds whose readers
are equal share a graph. A last batch may leave a replica no example.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfbio.data import InMemory, Streaming, memory_of, stream_of
from tfbio.data.memory import Sampler
from tfbio.data.pipelines import without_tuner
from tfbio.training.batches import Examples, make_examples
from tfbio.training.checks import translate_data_errors

__all__ = ["MemoryFeed", "StreamFeed", "first_batch", "make_feed"]

Source = tf.data.Dataset | Callable[[int], tf.data.Dataset]

#: How many batches data sets have that had to be read to find out.
_COUNTED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class _MemoryReader:
    sampler: Sampler
    replicas: int

    def take(self, handle: Any, epoch: tf.Tensor, index: tf.Tensor) -> tuple:
        return epoch, index

    def unpack(self, handle: Any, epoch: tf.Tensor, index: tf.Tensor) -> Examples:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        x, y, size = self.sampler.batch(*handle, epoch, index, replica, self.replicas)
        return Examples(x, y, tf.ones(tf.shape(y)[:1]), tf.cast(size, tf.float32))


@dataclasses.dataclass(frozen=True)
class _StreamReader:
    def take(self, handle: Any, epoch: tf.Tensor, index: tf.Tensor) -> tuple:
        return (next(handle),)

    def unpack(self, handle: Any, element: Any) -> Examples:
        return make_examples(element)


class MemoryFeed:
    """Feeds a set held in memory (`tfbio.data.InMemory`).

    Args:
        memory: the set.
        strategy: global batches are split over its replicas.
        steps_per_epoch: the first so many batches of every epoch; None for all.

    Raises:
        ValueError: an epoch has fewer.
    """

    def __init__(self, memory: InMemory, strategy: tf.distribute.Strategy, steps_per_epoch: int | None = None):
        self._memory = memory
        self.reader = _MemoryReader(memory.sampler, strategy.num_replicas_in_sync)
        self.steps_per_epoch = _steps(steps_per_epoch, memory.steps_per_epoch)

    def open(self, epoch: int, first: int) -> Any:
        """The handle for the epoch's loop: images, labels, and the order of the examples."""
        del first
        return (*self._memory.arrays, tf.convert_to_tensor(self._memory.order(epoch)))

    def example(self) -> tuple:
        """The first batch, eagerly."""
        return self._memory.batch(self._memory.order(0), 0, 0)[:2]

    def faults(self, epoch: int, first: int, count: int | None) -> list[str]:
        """Where the examples of `count` batches are that can't be read: in memory, none."""
        return []


class StreamFeed:
    """Feeds batches of a `tf.data.Dataset`: `(x, y)` or `(x, y, sample_weight)`.

    Args:
        source: a data set, or a function from the epoch (0, 1, …) to one. Streams of `tfbio.data` are entered at any
            batch at the cost of their indices or raw records, and each worker decodes its own share. A plain data set
            is iterated once an epoch, by every worker in whole; to enter an epoch in its middle it is skipped forward,
            which repeats the same examples only if it yields them in the same order every time. Shuffled streams are
            passed as a function, seeded by the epoch. An endless data set runs on from epoch to epoch; of a function,
            each epoch has its own, from the beginning.
        strategy: global batches are split over its replicas.
        steps_per_epoch: needed for an endless data set, the first so many batches of every epoch of another; None for
            all, which are counted, once, by reading them if they must be.

    Raises:
        ValueError: the data set is empty, endless without `steps_per_epoch`, or known to have fewer batches.
    """

    def __init__(self, source: Source, strategy: tf.distribute.Strategy, steps_per_epoch: int | None = None):
        stream = None if callable(source) else stream_of(source)
        self._source = stream.batches if stream else lambda epoch, first: _from(source, epoch, first)
        self._stream = stream
        self._strategy = strategy
        first = self._source(0, 0)
        if not isinstance(first, tf.data.Dataset):
            raise ValueError(
                "Invalid value for the data: expected a tf.data.Dataset of batches (x, y), or a function of the epoch "
                f"to one, received {type(first).__name__}. Arrays go through tfbio.data.from_arrays(x, y, batch_size)."
            )
        cardinality = int(first.cardinality())
        endless = cardinality == tf.data.INFINITE_CARDINALITY
        if cardinality == tf.data.UNKNOWN_CARDINALITY and steps_per_epoch is None:
            if source not in _COUNTED:
                _COUNTED[source] = int(
                    without_tuner(first).reduce(tf.constant(0, tf.int64), lambda count, _: count + 1)
                )
            cardinality = _COUNTED[source]
        if endless and steps_per_epoch is None:
            raise ValueError("Invalid value for `steps_per_epoch`: an endless data set needs one, received None.")
        if cardinality == 0:
            raise ValueError("Invalid value for the data: expected at least one batch, received an empty data set.")
        self.steps_per_epoch = _steps(steps_per_epoch, cardinality)
        self._runs_on = endless and not callable(source)
        self._first = first
        self._iterator, self._at = None, None
        self.reader = _StreamReader()

    def open(self, epoch: int, first: int) -> Any:
        """The handle for the epoch's loop: an iterator that stands before batch `first`."""
        if self._stream:

            def own(context: tf.distribute.InputContext) -> tf.data.Dataset:
                return self._stream.batches(epoch, first, context)

            return iter(self._strategy.distribute_datasets_from_function(own))
        position = epoch * self.steps_per_epoch + first if self._runs_on else first
        if not (self._runs_on and self._at == position):
            dataset = without_tuner(self._source(epoch, position))
            options = tf.data.Options()
            # Each worker takes its part of every batch, and not batches of its own from a part of the files: order is
            # the user's, and nothing is known of where it comes from.
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
            dataset = dataset.with_options(options)
            self._iterator = iter(self._strategy.experimental_distribute_dataset(dataset))
        self._at = (epoch + 1) * self.steps_per_epoch
        return self._iterator

    def example(self) -> tuple:
        """The first batch, see `first_batch`."""
        return first_batch(self._first, self._stream)

    def faults(self, epoch: int, first: int, count: int | None) -> list[str]:
        """Where the examples of `count` batches (None: of all) are that can't be read, as far as that can be known."""
        return self._stream.faults(epoch, first, count) if self._stream else []


def first_batch(dataset: tf.data.Dataset, stream: Streaming | None = None) -> tuple:
    """The first batch `(x, y)`, eagerly, without examples of weight 0, which may only fill it up.

    Args:
        dataset: batches `(x, y)` or `(x, y, sample_weight)`.
        stream: what the data set is made of, where `stream_of` can't tell.

    Raises:
        ValueError: elements are something else, or a picture can't be decoded; names it.
    """
    stream = stream or stream_of(dataset)
    with translate_data_errors("the first batch", functools.partial(stream.faults, 0, 0, 1) if stream else list):
        element = next(iter(dataset.take(1)))
    if not isinstance(element, (tuple, list)) or len(element) not in (2, 3):
        raise ValueError(
            "Invalid value for the data: expected batches (x, y) or (x, y, sample_weight), received elements of "
            f"structure {dataset.element_spec}."
        )
    examples = make_examples(element)
    kept = examples.sample_weight > 0
    return tf.nest.map_structure(lambda part: tf.boolean_mask(part, kept), (examples.x, examples.y))


def _from(source: Source, epoch: int, first: int) -> tf.data.Dataset:
    """An epoch from a batch on; what comes before is made and dropped."""
    dataset = source(epoch) if callable(source) else source
    return dataset.skip(first) if first else dataset


def _steps(wanted: int | None, held: int) -> int:
    """The batches of an epoch: as many as `wanted` of those that it holds (below 0 where that is not known), or all."""
    if wanted is None:
        return held
    if wanted < 1 or 0 <= held < wanted:
        expected = "a positive integer" if held < 0 else f"from 1 to {held}, the batches of an epoch, or None for all"
        raise ValueError(f"Invalid value for the number of steps: expected {expected}, received {wanted}.")
    return wanted


def make_feed(
    data: Source, strategy: tf.distribute.Strategy, steps_per_epoch: int | None = None
) -> MemoryFeed | StreamFeed:
    """The feed for `data`: the fast path for a set held in memory, the general one for all else."""
    memory = None if callable(data) else memory_of(data)
    if memory is not None:
        return MemoryFeed(memory, strategy, steps_per_epoch)
    return StreamFeed(data, strategy, steps_per_epoch)
