"""`load`: from a data set's name to batches, with all that a network needs to know about it."""

import dataclasses
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.data import digits, image_files, imagenet_records, tfds_sets
from tfbio.data.labelled_images import LabelledImages
from tfbio.data.memory import InMemory
from tfbio.data.record_files import RecordFiles
from tfbio.data.streaming import Streaming

__all__ = ["DatasetInfo", "load"]

_SPLITS = ("train", "validation", "test")
_NORMALIZATIONS = ("unit", "centered", "standardized", "imagenet", None)

#: Mean and standard deviation of ImageNet's channels, from 0 to 1, as everybody uses them.
_IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))

#: Side of images whose sizes vary, in pixels.
_SIZE = 224

Examples = LabelledImages | image_files.ImageFiles | RecordFiles


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What is known about a loaded split.

    All fields have defaults. Most networks ask for `shape` and `classes`.

    Attributes:
        name: the data set's name.
        split: `"train"`, `"validation"` or `"test"`.
        splits: the splits that there are; `"validation"` is one of them if some training data is held out.
        classes: number of classes; of labels that are images, the numbers in one.
        shape: shape of one image, `(height, width, channels)`, or of any other example.
        examples: number of examples in this split, if it is known.
        preprocessing: plain Keras layer from uint8 images to normalised float32 ones, to be called on the device; None
            for examples that networks take as they are.
        class_names: a name for each class, or None.
    """

    name: str = "data"
    split: str = "train"
    splits: tuple[str, ...] = ("train", "test")
    classes: int | None = None
    shape: tuple[int, ...] | None = None
    examples: int | None = None
    preprocessing: keras.layers.Layer | None = None
    class_names: tuple[str, ...] | None = None


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
    size: int | None = None,
    resizing: str | None = None,
    corrupt: str = "raise",
    labels: str = "class",
) -> tuple[tf.data.Dataset, DatasetInfo]:
    """Loads one split of a data set: into memory, or, if its images' sizes vary or are too many, as a stream of files.

    Args:
        name: `"digits"` (comes with scikit-learn), or any set of TensorFlow Datasets with an image and a label:
            `"mnist"`, `"fashion_mnist"`, `"cifar10"`, `"imagenet_resized/32x32"`, …, and, streamed, `"imagenette"`,
            `"imagenet2012"`, …; or, streamed, `"image_folder:<path>"` (`tfbio.data.image_files`) and
            `"imagenet_records:<path>"` (`tfbio.data.imagenet_records`).
        split: `"train"`, `"validation"` or `"test"`.
        batch_size: examples in a global batch, over all replicas.
        normalization: what `info.preprocessing` makes of pixels: `"unit"`: 0…1; `"centered"`: -1…1; `"standardized"`:
            mean 0 and variance 1 in each channel over all training data, held-out examples included, so that the
            constants don't depend on `split` or `validation`; `"imagenet"`: the same with ImageNet's constants; None:
            0…255. Streams take all but `"standardized"`.
        augmentation: None; `"flip"` (left to right, half of the images); of sets in memory `"crop"` (shifts by up to 4
            pixels over zeros) or `"flip_crop"`; of streams `"random_resized_crop"` or `"flip_random_resized_crop"`. The
            training split alone is augmented.
        validation: how much of the training data to hold out as the validation split: a number of examples (int) or a
            fraction (float). The same examples whatever the seed; test data is never touched. (A set that calls its
            labelled test data "validation", as ImageNet does, has them as the split `"test"` here.)
        seed: integer seed of order and augmentation.
        shuffle: whether every epoch has its own random order; None for the training split alone.
        drop_remainder: whether to leave out the last batch of an epoch when it is not full.
        data_dir: folder of sets prepared by TensorFlow Datasets; None for its default.
        size: of streams: height and width of the images, in pixels; None for 224, or their own if all have the same.
        resizing: of streams: what is done where no random crop is. `"crop"`: the shorter side to 8/7 of `size`, and the
            centre of that; `"stretch"`: the whole picture to `size` × `size`; None for `"crop"` where sizes vary.
        corrupt: of streams: `"raise"` an error that names a picture that can't be read or decoded, or `"skip"` it with
            weight 0 and log it.
        labels: `"class"`; or, of sets in memory that are not augmented, `"image"`: what `info.preprocessing` makes of
            the image, for autoencoders.

    Returns:
        a dataset of (uint8 images of shape `(batch, height, width, channels)`, int32 labels of shape `(batch,)`, or
        float32 ones of shape `(batch, height * width * channels)` if they are images), and of streams float32 weights
        (1, or 0 for what only fills a batch), of which each pass is the next epoch; and its `DatasetInfo`.

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
    streamed = not isinstance(examples, LabelledImages)
    options = {"size": size, "resizing": resizing, "corrupt": corrupt, "labels": labels}
    _check_kind(name, streamed, normalization, augmentation, **options)
    if split != "test":
        examples = _hold_out(examples, split, validation)
    common = {
        "seed": seed,
        "shuffle": split == "train" if shuffle is None else shuffle,
        "augmentation": augmentation if split == "train" else None,
        "drop_remainder": drop_remainder,
    }
    classes = examples.classes
    if streamed:
        varying = None in examples.shape
        shape = (size or _SIZE,) * 2 + examples.shape[2:] if size or varying else examples.shape
        preprocessing = _preprocessing(name, normalization, data_dir, shape[-1])
        resizing = resizing or ("crop" if varying else "stretch")
        batches = Streaming(examples, batch_size, shape, resizing=resizing, corrupt=corrupt, **common)
    else:
        shape, y = examples.images.shape[1:], examples.labels
        preprocessing = _preprocessing(name, normalization, data_dir, shape[-1])
        if labels == "image":
            y = np.asarray(preprocessing(examples.images)).reshape(len(examples), -1)
            classes = y.shape[1]
        batches = InMemory(examples.images, y, batch_size, **common)
    info = DatasetInfo(
        name=name,
        split=split,
        splits=_SPLITS if validation else ("train", "test"),
        classes=classes,
        shape=shape,
        examples=batches.examples,
        preprocessing=preprocessing,
        class_names=examples.class_names,
    )
    return batches.dataset(), info


def _read(name: str, split: str, data_dir: str | os.PathLike | None) -> Examples:
    """A whole official split, `"train"` or `"test"`."""
    if name == "digits":
        return digits.read(split)
    if name.startswith("image_folder:"):
        return image_files.read(name.removeprefix("image_folder:"), split)
    if name.startswith("imagenet_records:"):
        return imagenet_records.read(name.removeprefix("imagenet_records:"), split)
    return tfds_sets.read(name, split, data_dir and os.path.expanduser(data_dir))


def _check_kind(name: str, streamed: bool, normalization: str | None, augmentation: str | None, **options: Any) -> None:
    """Refuses options that belong to the other kind of set, or not to each other."""
    if options["labels"] not in ("class", "image"):
        raise ValueError(f"Invalid value for `labels`: expected 'class' or 'image', received {options['labels']!r}.")
    if options["labels"] == "image" and (streamed or augmentation):
        raise ValueError(
            f"Invalid value for `labels`: expected 'class' for {name!r}, whose images are "
            f"{'streamed' if streamed else 'augmented'}, received 'image', which only plain images in memory can be."
        )
    if streamed and normalization == "standardized":
        raise ValueError(
            f"Invalid value for `normalization`: expected 'unit', 'centered', 'imagenet' or None for {name!r}, whose "
            "images are streamed, received 'standardized'."
        )
    size = options["size"]
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"Invalid value for `size`: expected None or a positive integer, received {size!r}.")
    for option, default in (("size", None), ("resizing", None), ("corrupt", "raise")):
        if not streamed and options[option] != default:
            raise ValueError(
                f"Invalid value for `{option}`: expected {default!r} for {name!r}, which is held in memory as it is, "
                f"received {options[option]!r}."
            )


def _hold_out(examples: Examples, split: str, validation: int | float) -> Examples:
    """The `"train"` or the `"validation"` part of the training data."""
    total = len(examples)
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
    if isinstance(examples, RecordFiles):
        shuffled = np.arange(total)  # records are random as they lie, and a range of them is in a few files
    else:
        shuffled = np.random.RandomState(0).permutation(total)
    return examples.take(np.sort(shuffled[:-count] if split == "train" else shuffled[-count:]))


def _preprocessing(
    name: str, normalization: str | None, data_dir: str | os.PathLike | None, channels: int
) -> keras.layers.Layer:
    """The layer from uint8 images to normalised floats."""
    if normalization == "unit":
        scale, offset = 1 / 255, 0.0
    elif normalization == "centered":
        scale, offset = 2 / 255, -1.0
    elif normalization == "standardized":
        mean, deviation = _moments(_read(name, "train", data_dir).images)
        scale, offset = (1 / deviation).tolist(), (-mean / deviation).tolist()
    elif normalization == "imagenet":
        if channels != 3:
            raise ValueError(
                f"Invalid value for `normalization`: expected another than 'imagenet' for images of {channels} "
                "channels, received 'imagenet'."
            )
        mean, deviation = _IMAGENET
        scale, offset = (1 / (255 * deviation)).tolist(), (-mean / deviation).tolist()
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
