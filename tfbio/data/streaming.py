"""Pictures that are read and decoded while training goes on, in an order that is a pure function of (seed, epoch).

`Streaming.batches(epoch, first)` is an epoch from any of its batches on. What comes before is left out where it costs
least: among indices for pictures in files of their own, among raw records otherwise; never after decoding. What happens
to a picture is a function of (seed, epoch, index of the example), so a run that is resumed, or whose batch size or
number of replicas is another, sees the same pictures.

A batch is `(images, labels, weights)`. Weights are 1, and 0 for the black images that stand in: for pictures that can't
be decoded, where these are to be skipped, and for what a last batch lacks in evaluation. So each example counts once,
batches keep one shape, and a compiled step is compiled once.
"""

import itertools
import logging
from typing import Any

import tensorflow as tf

from tfbio.data import decoding, randomness
from tfbio.data.pipelines import without_tuner
from tfbio.data.shares import Share
from tfbio.machine import cores

__all__ = ["Streaming", "stream_of"]

_ATTRIBUTE = "_tfbio_stream"


class Streaming:
    """Examples read from files, with their order and augmentation.

    Args:
        source: where records come from: `ImageFiles` or `RecordFiles`.
        batch_size: examples in a global batch, over all replicas.
        shape: height, width and channels to decode to.
        seed: integer seed of order and augmentation.
        shuffle: whether every epoch has its own random order. Without it, a last batch that is not full is filled up
            with images of weight 0.
        resizing: `"crop"` or `"stretch"`, see `decoding`.
        augmentation: None or one of `decoding.AUGMENTATIONS`.
        drop_remainder: whether to leave out the last batch of an epoch when it is not full.
        corrupt: `"raise"` or `"skip"` what can't be read or decoded; the latter is logged, and listed in `skipped`.

    Attributes:
        examples: number of examples.
        batch_size: examples in a global batch.
        steps_per_epoch: number of global batches in an epoch.
        skipped: where the pictures are that were skipped so far.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int,
        shape: tuple[int, int, int],
        *,
        seed: int = 0,
        shuffle: bool = True,
        resizing: str = "crop",
        augmentation: str | None = None,
        drop_remainder: bool = False,
        corrupt: str = "raise",
    ):
        for name, value, choices in (
            ("resizing", resizing, decoding.RESIZINGS),
            ("augmentation", augmentation, (None, *decoding.AUGMENTATIONS)),
            ("corrupt", corrupt, ("raise", "skip")),
        ):
            if value not in choices:
                raise ValueError(f"Invalid value for `{name}`: expected one of {choices}, received {value!r}.")
        self.examples = len(source)
        most = self.examples if drop_remainder else batch_size
        if not 1 <= batch_size <= most:
            raise ValueError(
                f"Invalid value for `batch_size`: expected a positive integer{f' up to {most}' * drop_remainder}, "
                f"received {batch_size}."
            )
        self.batch_size = batch_size
        self.steps_per_epoch = self.examples // batch_size if drop_remainder else -(-self.examples // batch_size)
        self.skipped: list[str] = []
        self._source, self._seed, self._shuffle = source, seed, shuffle
        self._decoding = (shape, resizing, augmentation)
        self._corrupt = corrupt
        self._filling = 0 if shuffle or drop_remainder else -self.examples % batch_size
        over = 0 if drop_remainder else (self.examples + self._filling) % batch_size
        self._last = over or batch_size  # rows of an epoch's last batch

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which pictures a batch holds beside seed and sizes, by the names of the arguments."""
        _, resizing, augmentation = self._decoding
        return {"shuffle": self._shuffle, "augmentation": augmentation, "resizing": resizing}

    @tf.autograph.experimental.do_not_convert  # there is nothing in it to be rewritten, which takes its time
    def batches(
        self,
        epoch: int | tf.Tensor,
        first: int | tf.Tensor = 0,
        context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        """The batches of an epoch from the `first`-th on, or one worker's share of them.

        Args:
            epoch: the epoch, from 0; an integer or an integer scalar tensor.
            first: batches to leave out at the beginning.
            context: which worker asks, as `tf.distribute.Strategy.distribute_datasets_from_function` says it. Of a
                batch it then gets a part for each of its replicas, one after the other, and decodes nothing else.

        Returns:
            a dataset of (uint8 images of shape `(batch, height, width, channels)`, int32 labels, float32 weights).
        """
        share = Share.of(context, self.batch_size) if context else Share(self.batch_size)
        count = self.steps_per_epoch - first
        examples = self._examples(epoch, first, share)
        if self._filling:
            lacking = share.count(self.batch_size) - share.count(self.batch_size - self._filling)
            examples = examples.concatenate(self._blank().repeat(lacking))
        batches = share.batches(examples, count, self._last)
        if self._corrupt == "skip":
            batches = batches.enumerate(tf.cast(first, tf.int64) * share.parts).map(
                lambda index, batch: self._reported(epoch, share, index, *batch)
            )
        batches = batches.apply(tf.data.experimental.assert_cardinality(count * share.parts))
        return batches.prefetch(2 * share.parts).with_options(_options())

    def faults(self, epoch: int, first: int = 0, count: int | None = None) -> list[str]:
        """Where the pictures are that can't be read or decoded; decodes them all to find out.

        Args:
            epoch: the epoch, from 0.
            first: batches to leave out at the beginning.
            count: number of batches to look at; None for all that follow.
        """
        records = self._records(epoch, first, Share(self.batch_size))
        records = records.take(-1 if count is None else count * self.batch_size)
        decode = self._decoder(epoch)

        def tried(index: tf.Tensor, *payload: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return index, tf.reduce_max(decode(index, *payload)[0])

        sound = records.map(tried, num_parallel_calls=cores()).ignore_errors()
        kept = {int(index) for index, _ in without_tuner(sound).as_numpy_iterator()}
        every = [int(index) for index in without_tuner(records.map(lambda index, *_: index)).as_numpy_iterator()]
        return [self._source.describe(index) for index in every if index not in kept]

    def dataset(self) -> tf.data.Dataset:
        """The same batches as a `tf.data.Dataset`, of which each pass is the next epoch.

        Returns:
            a dataset of (images, labels, weights) with a known cardinality, for which `stream_of` gives this object.
        """
        passes = itertools.count()  # a Python one: a variable made under a strategy would be out of reach for tf.data
        epochs = tf.data.Dataset.from_generator(
            lambda: [next(passes)], output_signature=tf.TensorSpec(shape=(), dtype=tf.int64)
        )
        dataset = epochs.flat_map(self.batches).apply(tf.data.experimental.assert_cardinality(self.steps_per_epoch))
        dataset = dataset.prefetch(2).with_options(_options())
        setattr(dataset, _ATTRIBUTE, self)
        return dataset

    def _records(self, epoch: int | tf.Tensor, first: int | tf.Tensor, share: Share) -> tf.data.Dataset:
        key = randomness.key(self._seed, randomness.ORDER, epoch) if self._shuffle else None
        return self._source.records(key, first, share)

    def _decoder(self, epoch: int | tf.Tensor) -> Any:
        """The function from a record to an example."""
        # All draws of an epoch at once, 16 bytes an example: a key of its own for each costs a tenth of its decoding.
        draws = tf.random.stateless_uniform(
            [self.examples, 2],
            randomness.key(self._seed, randomness.AUGMENTATION, epoch),
            minval=None,
            maxval=None,
            dtype=tf.int64,
            alg=randomness.ALGORITHM,
        )

        def decode(index: tf.Tensor, *payload: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            encoded, label = self._source.read(index, *payload)
            return decoding.decode(encoded, *self._decoding, tf.gather(draws, index)), label, tf.ones([])

        return decode

    def _examples(self, epoch: int | tf.Tensor, first: int | tf.Tensor, share: Share) -> tf.data.Dataset:
        """The share's examples of an epoch's batches, those that can't be read replaced at their batch's end."""
        with tf.device("CPU:0"):
            records, decode = self._records(epoch, first, share), self._decoder(epoch)
        rows = share.count(self.batch_size)
        records = records.take((self.steps_per_epoch - first) * rows)  # nothing of a last batch that is left out
        workers = cores()
        if self._corrupt == "raise":
            return records.map(decode, num_parallel_calls=workers, deterministic=True)

        def sound(*batch: tf.Tensor) -> tf.data.Dataset:
            examples = tf.data.Dataset.from_tensor_slices(batch).map(decode, num_parallel_calls=workers)
            return examples.ignore_errors().concatenate(self._blank().repeat()).take(tf.shape(batch[0], tf.int64)[0])

        # Two batches under way, one after the other: while the first ends the second begins.
        return records.batch(max(rows, 1)).interleave(
            sound, cycle_length=2, block_length=max(rows, 1), num_parallel_calls=2, deterministic=True
        )

    def _blank(self) -> tf.data.Dataset:
        """A black image that counts for nothing."""
        shape = self._decoding[0]
        return tf.data.Dataset.from_tensors((tf.zeros(shape, tf.uint8), tf.zeros([], tf.int32), tf.zeros([])))

    def _reported(
        self, epoch: Any, share: Share, index: tf.Tensor, images: Any, labels: Any, weights: tf.Tensor
    ) -> tuple:
        """The part of a batch, after word of what it lacks."""
        batch = index // share.parts
        begin, end = share.bounds(index % share.parts, 1)
        examples = tf.minimum(self.examples - batch * self.batch_size, self.batch_size)
        expected = tf.maximum(tf.minimum(examples, end) - begin, 0)
        complete = tf.reduce_sum(weights) >= tf.cast(expected, tf.float32)
        arguments = [tf.cast(epoch, tf.int64), batch]
        said = tf.cond(complete, lambda: True, lambda: tf.numpy_function(self._report, arguments, tf.bool))
        with tf.control_dependencies([said]):
            return tf.identity(images), labels, weights

    def _report(self, epoch: int, index: int) -> bool:
        for place in self.faults(int(epoch), int(index), 1):
            if place not in self.skipped:
                self.skipped.append(place)
                logging.getLogger("tfbio").warning("Skipped, because it can't be read or decoded: %s", place)
        return True


def _options() -> tf.data.Options:
    """Threads of their own, one for each core, that don't split an operation on one picture; no tuner."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = cores()
    options.threading.max_intra_op_parallelism = 1
    return options


def stream_of(dataset: Any) -> Streaming | None:
    """The `Streaming` behind what `load` returned; None for everything else, and for a dataset derived from one."""
    return getattr(dataset, _ATTRIBUTE, None)
