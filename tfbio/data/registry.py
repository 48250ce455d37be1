"""`load`: from a data set's name to batches, with all that a network needs to know about it."""

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf

from tfbio.data import digits, tfds_sets
from tfbio.data.labelled_images import LabelledImages
from tfbio.data.memory import InMemory

__all__ = ["DatasetInfo", "load"]

_SPLITS = ("train", "validation", "test")
_NORMALIZATIONS = ("unit", "centered", "standardized", None)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known about a loaded split.

    Attributes:
        name: the data set's name.
        split: `"train"`, `"validation"` or `"test"`.
        splits: the splits that there are; `"validation"` is one of them if some training data is held out.
        classes: number of classes.
        shape: shape of one image, `(height, width, channels)`.
        examples: number of examples in this split.
        preprocessing: plain Keras layer from uint8 images to normalised float32 ones, to be called on the device.
        class_names: a name for each class, or None.
    """

    name: str
    split: str
    splits: tuple[str, ...]
    classes: int
    shape: tuple[int, int, int]
    examples: int
    preprocessing: keras.layers.Layer
    class_names: tuple[str, ...] | None


def load(
    name: str = "digits",
    split: str = "train",
    batch_size: int = 64,
    *,
    normalization: str | None = "unit",
    augmentation: str | None = None,
    validation: int | float = 0,
    seed: int = 0,
    shuffle: bool | None = None,
    drop_remainder: bool = False,
    data_dir: str | os.PathLike | None = None,
) -> tuple[tf.data.Dataset, DatasetInfo]:
    """Loads one split of a data set that fits in memory.

    Args:
        name: `"digits"` (comes with scikit-learn), or any set of TensorFlow Datasets with an image of one size and a
            label: `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"imagenet_resized/32x32"`, …
        split: `"train"`, `"validation"` or `"test"`.
        batch_size: examples in a global batch, over all replicas.
        normalization: what `info.preprocessing` makes of pixels: `"unit"`: 0…1; `"centered"`: -1…1; `"standardized"`:
            mean 0 and variance 1 in each channel over all training data, held-out examples included, so that the
            constants don't depend on `split` or `validation`; None: 0…255.
        augmentation: None, `"flip"` (left to right, half of the images), `"crop"` (shifts by up to 4 pixels over zeros)
            or `"flip_crop"`. The training split alone is augmented.
        validation: how much of the training data to hold out as the validation split: a number of examples (int) or a
            fraction (float). The same examples whatever the seed; test data is never touched.
        seed: integer seed of order and augmentation.
        shuffle: whether every epoch has its own random order; None for the training split alone.
        drop_remainder: whether to leave out the last batch of an epoch when it is not full.
        data_dir: folder of sets prepared by TensorFlow Datasets; None for its default.

    Returns:
        a dataset of (uint8 images of shape `(batch, height, width, channels)`, int32 labels of shape `(batch,)`), of
        which each pass is the next epoch; and its `DatasetInfo`.

    Raises:
        DataNotFoundError: if the data is not on this machine; says how to get it.
        ValueError: if an argument is out of its range, or the set is not of the supported kind.
    """
    if split not in _SPLITS:
        raise ValueError(f"Invalid value for `split`: expected one of {_SPLITS}, received {split!r}.")
    if normalization not in _NORMALIZATIONS:
        raise ValueError(
            f"Invalid value for `normalization`: expected one of {_NORMALIZATIONS}, received {normalization!r}."
        )
    examples = _read(name, "test" if split == "test" else "train", data_dir)
    if split != "test":
        examples = _hold_out(examples, split, validation)
    memory = InMemory(
        examples.images,
        examples.labels,
        batch_size,
        seed=seed,
        shuffle=split == "train" if shuffle is None else shuffle,
        augmentation=augmentation if split == "train" else None,
        drop_remainder=drop_remainder,
    )
    info = DatasetInfo(
        name=name,
        split=split,
        splits=_SPLITS if validation else ("train", "test"),
        classes=examples.classes,
        shape=examples.images.shape[1:],
        examples=memory.examples,
        preprocessing=_preprocessing(name, normalization, data_dir),
        class_names=examples.class_names,
    )
    return memory.dataset(), info


def _read(name: str, split: str, data_dir: str | os.PathLike | None) -> LabelledImages:
    """A whole official split, `"train"` or `"test"`."""
    if name == "digits":
        return digits.read(split)
    return tfds_sets.read(name, split, data_dir and os.path.expanduser(data_dir))


def _hold_out(examples: LabelledImages, split: str, validation: int | float) -> LabelledImages:
    """The `"train"` or the `"validation"` part of the training data."""
    total = len(examples.images)
    count = round(validation * total) if isinstance(validation, float) else validation
    if not 0 <= count < total or (count == 0 and validation != 0):
        raise ValueError(
            f"Invalid value for `validation`: expected from 0 to {total - 1} examples (int), or a fraction below 1 "
            f"(float) that makes as many, received {validation!r}."
        )
    if count == 0:
        if split == "validation":
            raise ValueError(
                "Invalid value for `validation`: expected how much of the training data to hold out for the split "
                "'validation', received 0. Set it to a number of examples or a fraction, and to the same for "
                "the split 'train'."
            )
        return examples
    shuffled = np.random.RandomState(0).permutation(total)
    return examples.take(np.sort(shuffled[:-count] if split == "train" else shuffled[-count:]))


def _preprocessing(name: str, normalization: str | None, data_dir: str | os.PathLike | None) -> keras.layers.Layer:
    """The layer from uint8 images to normalised floats."""
    if normalization == "unit":
        scale, offset = 1 / 255, 0.0
    elif normalization == "centered":
        scale, offset = 2 / 255, -1.0
    elif normalization == "standardized":
        mean, deviation = _moments(_read(name, "train", data_dir).images)
        scale, offset = (1 / deviation).tolist(), (-mean / deviation).tolist()
    else:
        scale, offset = 1.0, 0.0
    # float32 whatever the policy: a bfloat16 model casts its input itself, and rounding here too would blur the pixels.
    return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of uint8 images, exact and without a float copy of them."""
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in np.moveaxis(images, -1, 0)])
    values = np.arange(256)
    mean = counts @ values / counts.sum(axis=1)
    variance = (counts * (values - mean[:, np.newaxis]) ** 2).sum(axis=1) / counts.sum(axis=1)
    return mean, np.sqrt(np.where(variance > 0, variance, 1.0))  # A constant channel is only shifted, to 0.
