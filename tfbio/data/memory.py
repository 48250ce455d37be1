"""Sets that fit in memory, in an order that is a pure function of (seed, epoch).

`InMemory` answers two questions: in which order does epoch e go through the examples (`order`), and what is batch i of
that order (`batch`). Both are plain functions of their arguments that also work on tensors inside a `tf.function`, so a
training loop can index the images without leaving its graph, start at any step, and split a batch over replicas:

    order = memory.order(epoch)
    for index in tf.range(memory.steps_per_epoch):
        x, y, weights = memory.batch(order, epoch, index)

`InMemory.dataset` is the same sequence as a `tf.data.Dataset`, for everything else that reads one, Keras's `fit`
included.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from tfbio.data import augmentation as augmentations
from tfbio.data import randomness
from tfbio.data.pipelines import without_tuner
from tfbio.machine import cores

__all__ = ["InMemory", "from_arrays", "memory_of"]

# Examples live on the host, and so do the operations on them: TensorFlow has no uint8 gather for GPUs (it would move
# the whole set back and forth), and every local replica can read the host. Only batches, still uint8, go to a device.
_HOST = "CPU:0"

_ATTRIBUTE = "_tfbio_memory"


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Takes batches from arrays: what sets of equal settings have in common, so that they can share a graph.

    Attributes:
        batch_size: examples in a global batch, over all replicas.
        seed: of augmentation.
        augmentation: as for `InMemory`.
        all_full: whether every batch has `batch_size` examples.
    """

    batch_size: int
    seed: int
    augmentation: str | None
    all_full: bool

    def batch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        order: tf.Tensor,
        epoch: int | tf.Tensor,
        index: int | tf.Tensor,
        replica: int | tf.Tensor = 0,
        replicas: int = 1,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One replica's part of a global batch: images, labels, and the number of examples in the global batch.

        Args:
            images: of all examples.
            labels: of all examples.
            order, epoch, index, replica, replicas: as for `InMemory.batch`.
        """
        with tf.device(_HOST):
            start = index * self.batch_size
            size = tf.minimum(self.batch_size, tf.shape(order)[0] - start)
            positions = tf.range(size)[replica::replicas]
            if self.all_full and self.batch_size % replicas == 0:
                positions = tf.ensure_shape(positions, [self.batch_size // replicas])
            rows = tf.gather(order, start + positions)
            images, labels = tf.gather(images, rows), tf.gather(labels, rows)
            if self.augmentation:
                flips, corners = augmentations.draw(self.augmentation, self.batch_size, self.seed, epoch, index)
                images = augmentations.apply(images, tf.gather(flips, positions), tf.gather(corners, positions))
            return images, labels, size


class InMemory:
    """Examples held in memory, with their order and augmentation.

    Args:
        images: array of shape `(examples, …)`, numbers; `(examples, height, width, channels)` to be augmented.
        labels: array of shape `(examples, …)`, numbers; False and True are the classes 0 and 1.
        batch_size: examples in a global batch, over all replicas.
        seed: integer seed of order and augmentation.
        shuffle: whether every epoch has its own random order; without it every epoch goes as the arrays do.
        augmentation: None, `"flip"` (left to right, half of the images), `"crop"` (shifts by up to 4 pixels over zeros)
            or `"flip_crop"`.
        drop_remainder: whether to leave out the last batch of an epoch when it is not full.

    Attributes:
        examples: number of examples.
        batch_size: examples in a global batch.
        steps_per_epoch: number of global batches in an epoch.
        arrays: images and labels, as tensors on the host.
        sampler: how a batch is taken from them.

    Raises:
        ValueError: if there are no examples, they are no numbers, lengths differ, or an argument is out of its range.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        augmentation: str | None = None,
        drop_remainder: bool = False,
    ):
        images, labels = np.asarray(images), np.asarray(labels)
        if labels.dtype == bool:
            labels = labels.astype(np.int32)
        _check_arrays(images, labels, augmentation)
        self.examples = len(images)
        if batch_size < 1:
            raise ValueError(f"Invalid value for `batch_size`: expected a positive integer, received {batch_size}.")
        if drop_remainder and batch_size > self.examples:
            raise ValueError(
                f"Invalid value for `batch_size`: expected at most {self.examples}, the number of examples, received "
                f"{batch_size}. With `drop_remainder=True` no batch would be left: lower it, or keep the remainder."
            )
        self.batch_size = batch_size
        self.steps_per_epoch = self.examples // batch_size if drop_remainder else -(-self.examples // batch_size)
        self._seed = seed
        self._shuffle = shuffle
        self._augmentation = augmentation
        self.sampler = Sampler(batch_size, seed, augmentation, drop_remainder or self.examples % batch_size == 0)
        with tf.device(_HOST):
            self.arrays = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides which images a batch holds beside seed and sizes, by the names of the arguments."""
        return {"shuffle": self._shuffle, "augmentation": self._augmentation}

    def order(self, epoch: int | tf.Tensor) -> tf.Tensor:
        """The order in which an epoch goes through the examples.

        Args:
            epoch: the epoch, from 0; an integer or an integer scalar tensor.

        Returns:
            a permutation of the examples' indices, shape `(examples,)`, int32.
        """
        with tf.device(_HOST):
            if not self._shuffle:
                return tf.range(self.examples)
            return randomness.permutation(randomness.key(self._seed, randomness.ORDER, epoch), self.examples)

    def batch(
        self,
        order: tf.Tensor,
        epoch: int | tf.Tensor,
        index: int | tf.Tensor,
        replica: int | tf.Tensor = 0,
        replicas: int = 1,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One replica's part of a global batch.

        Args:
            order: what `order(epoch)` returned.
            epoch: the epoch, from 0.
            index: the batch's index in the epoch, in `[0, steps_per_epoch)`.
            replica: which part, in `[0, replicas)`; it has every `replicas`-th example of the batch.
            replicas: number of parts.

        Returns:
            images of shape `(part, …)`; labels of shape `(part, …)`; and each example's weight, shape `(part,)`,
            float32: one over the number of examples in the **global** batch, so that weighted sums over all replicas
            are the batch's mean. The last batch of an epoch may be shorter and leave a replica fewer examples than
            others, or none.
        """
        images, labels, size = self.sampler.batch(*self.arrays, order, epoch, index, replica, replicas)
        with tf.device(_HOST):
            return images, labels, tf.fill(tf.shape(labels)[:1], 1.0 / tf.cast(size, tf.float32))

    @tf.autograph.experimental.do_not_convert  # there is nothing in it to be rewritten, which takes its time
    def batches(self, epoch: int | tf.Tensor) -> tf.data.Dataset:
        """The batches of an epoch: a dataset of (images, labels)."""
        order = self.order(epoch)
        indices = tf.data.Dataset.range(self.steps_per_epoch, output_type=tf.int32)
        return indices.map(lambda index: self.batch(order, epoch, index)[:2], num_parallel_calls=cores())

    def dataset(self) -> tf.data.Dataset:
        """The same batches as a `tf.data.Dataset`, of which each pass is the next epoch.

        Returns:
            a dataset of (images, labels) with a known cardinality, for which `memory_of` gives this object.
        """

        # The count of passes is a Python one: a variable made under a strategy would be out of reach for tf.data.
        passes = itertools.count()
        epochs = tf.data.Dataset.from_generator(
            lambda: [next(passes)], output_signature=tf.TensorSpec(shape=(), dtype=tf.int64)
        )
        dataset = epochs.flat_map(self.batches).apply(tf.data.experimental.assert_cardinality(self.steps_per_epoch))
        dataset = without_tuner(dataset.prefetch(2))
        setattr(dataset, _ATTRIBUTE, self)
        return dataset


def _check_arrays(images: np.ndarray, labels: np.ndarray, augmentation: str | None) -> None:
    """Raises unless the arrays can be one set of examples, augmented as asked."""
    if images.ndim == 0 or labels.ndim == 0 or len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            "Invalid value for `images` and `labels`: expected as many labels as images, and at least one, received "
            f"shapes {images.shape} and {labels.shape}."
        )
    for name, array in (("images", images), ("labels", labels)):
        if array.dtype.kind in "USOMm":
            raise ValueError(
                f"Invalid value for `{name}`: expected numbers, received {type(array.flat[0]).__name__} in an array of "
                f"{array.dtype}. Classes are numbered from 0: names, labels = np.unique(labels, return_inverse=True)."
            )
    if augmentation is None:
        return
    if augmentation not in augmentations.AUGMENTATIONS:
        raise ValueError(
            f"Invalid value for `augmentation`: expected None or one of {augmentations.AUGMENTATIONS}, received "
            f"{augmentation!r}."
        )
    if images.ndim != 4:
        raise ValueError(
            "Invalid value for `augmentation`: expected None for examples that are not images of shape (height, width, "
            f"channels), received {augmentation!r} for examples of shape {images.shape[1:]}."
        )


def from_arrays(
    images: Any,
    labels: Any,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    augmentation: str | None = None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Your own arrays as a dataset with reproducible order and augmentation.

    Args:
        images: array of shape `(examples, …)`, numbers; `(examples, height, width, channels)` to be augmented.
        labels: array of shape `(examples, …)`, numbers: classes, or the targets of a regression or an autoencoder.
            False and True are the classes 0 and 1.
        batch_size: examples in a global batch, over all replicas.
        seed: integer seed of order and augmentation.
        shuffle: whether every epoch has its own random order.
        augmentation: None, `"flip"`, `"crop"` or `"flip_crop"`; it changes the images only, never the labels.
        drop_remainder: whether to leave out the last batch of an epoch when it is not full.

    Returns:
        a dataset of (images, labels), of which each pass is the next epoch.

    Raises:
        ValueError: if there are no examples, they are no numbers, lengths differ, or an argument is out of its range.
    """
    memory = InMemory(
        images,
        labels,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        augmentation=augmentation,
        drop_remainder=drop_remainder,
    )
    return memory.dataset()


def memory_of(dataset: Any) -> InMemory | None:
    """The examples behind a dataset.

    Args:
        dataset: any object.

    Returns:
        the `InMemory` if `dataset` is what `load`, `from_arrays` or `InMemory.dataset` returned; None for everything
        else, and for a dataset derived from one (by `map`, `take`, …), whose elements are no longer these.
    """
    return getattr(dataset, _ATTRIBUTE, None)
