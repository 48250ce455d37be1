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

import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from tfbio.data import augmentation as augmentations
from tfbio.data import randomness
from tfbio.data.pipelines import untuned
from tfbio.machine import cores

__all__ = ["InMemory", "from_arrays", "memory_of"]

# Examples live on the host, and so do the operations on them: TensorFlow has no uint8 gather for GPUs (it would move
# the whole set back and forth), and every local replica can read the host. Only batches, still uint8, go to a device.
_HOST = "CPU:0"

_ATTRIBUTE = "_tfbio_memory"


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
        self._all_full = drop_remainder or self.examples % batch_size == 0
        with tf.device(_HOST):
            self._images, self._labels = tf.convert_to_tensor(images), tf.convert_to_tensor(labels)

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
        with tf.device(_HOST):
            start = index * self.batch_size
            stop = tf.minimum(start + self.batch_size, self.examples)
            positions = tf.range(stop - start)[replica::replicas]
            if self._all_full and self.batch_size % replicas == 0:
                positions = tf.ensure_shape(positions, [self.batch_size // replicas])
            rows = tf.gather(order, start + positions)
            images, labels = tf.gather(self._images, rows), tf.gather(self._labels, rows)
            if self._augmentation:
                flips, corners = augmentations.draw(self._augmentation, self.batch_size, self._seed, epoch, index)
                images = augmentations.apply(images, tf.gather(flips, positions), tf.gather(corners, positions))
            weights = tf.fill(tf.shape(positions), 1.0 / tf.cast(stop - start, tf.float32))
            return images, labels, weights

    def dataset(self) -> tf.data.Dataset:
        """The same batches as a `tf.data.Dataset`, of which each pass is the next epoch.

        Returns:
            a dataset of (images, labels) with a known cardinality, for which `memory_of` gives this object.
        """

        @tf.autograph.experimental.do_not_convert  # there is nothing in it to be rewritten, which takes its time
        def batches(epoch: tf.Tensor) -> tf.data.Dataset:
            order = self.order(epoch)
            indices = tf.data.Dataset.range(self.steps_per_epoch, output_type=tf.int32)
            return indices.map(lambda index: self.batch(order, epoch, index)[:2], num_parallel_calls=cores())

        # The count of passes is a Python one: a variable made under a strategy would be out of reach for tf.data.
        passes = itertools.count()
        epochs = tf.data.Dataset.from_generator(
            lambda: [next(passes)], output_signature=tf.TensorSpec(shape=(), dtype=tf.int64)
        )
        dataset = epochs.flat_map(batches).apply(tf.data.experimental.assert_cardinality(self.steps_per_epoch))
        dataset = untuned(dataset.prefetch(2))
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
