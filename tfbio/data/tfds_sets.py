"""Image classification sets prepared by TensorFlow Datasets, read whole.

This module only reads what is on disk: it never downloads, since a download in the middle of a job on a machine without
a network ends minutes later in an error about something else. A set that is not there is an error at once, with the
command that prepares it.
"""

import difflib
import functools
import os
from typing import Any

import numpy as np

from tfbio.data.labelled_images import LabelledImages

__all__ = ["DataNotFoundError", "read"]

#: Largest split, in bytes as uint8, that is read into memory.
LIMIT_BYTES = 4 * 2**30


class DataNotFoundError(FileNotFoundError):
    """A known data set is not prepared on this machine."""


@functools.cache
def read(name: str, split: str, data_dir: str | None = None) -> LabelledImages:
    """One split of a TensorFlow Datasets set, read once in a process.

    Args:
        name: the set's name there, such as `"mnist"` or `"imagenet_resized/32x32"`.
        split: `"train"` or `"test"`; a set without a labelled test split is tested on its validation split, as usual.
        data_dir: folder of prepared sets; None for `TFDS_DATA_DIR` or the default of TensorFlow Datasets.

    Returns:
        the examples, in the order on disk.

    Raises:
        DataNotFoundError: if the set is not prepared in that folder; says how to.
        ValueError: if there is no such set or split, or it is not one of uint8 images of one size with a class each, or
            it does not fit in memory.
    """
    import tensorflow_datasets as tfds  # Here, because it is slow to import and other sets do without it.

    builder = _builder(name, data_dir)
    label = _checked_label(name, builder)  # First: a set that can't be read whole is not worth preparing.
    if not builder.is_prepared():
        raise DataNotFoundError(_how_to_prepare(name, builder, data_dir))
    split = _split(name, split, builder)
    size = builder.info.splits[split].num_examples * int(np.prod(builder.info.features["image"].shape))
    if size > LIMIT_BYTES:
        raise ValueError(
            f"Data set {name!r} has {size / 2**30:.1f} GiB of images in its split {split!r}, and only sets up to "
            f"{LIMIT_BYTES / 2**30:.0f} GiB are read into memory. Larger ones need a streaming pipeline of their own: "
            "pass the trainer a `tf.data.Dataset` that you build."
        )
    arrays = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
    return LabelledImages(arrays["image"], arrays["label"], label.num_classes, tuple(label.names))


def _builder(name: str, data_dir: str | None) -> Any:
    """The builder of a set, found without the network."""
    import tensorflow_datasets as tfds

    visibility = tfds.core.visibility
    # A name with a namespace ("huggingface:…") belongs to a community set, whose very description is on the network.
    if not tfds.core.naming.parse_builder_name_kwargs(name)[0].namespace:
        try:
            with visibility.set_availables_tmp([visibility.DatasetType.TFDS_PUBLIC]):
                return tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError:
            pass
    known = ["digits", *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name.split("/")[0].lower(), known)
    raise ValueError(
        f"Invalid value for `name`: expected 'digits' or the name of a TensorFlow Datasets set, received {name!r}. "
        + (f"Did you mean {' or '.join(map(repr, near))}?" if near else "`tfds.list_builders()` lists them.")
    )


def _how_to_prepare(name: str, builder: Any, data_dir: str | None) -> str:
    """What to do about a known set that is not on disk."""
    import tensorflow_datasets as tfds

    folder = f", data_dir={data_dir!r}" if data_dir else ""
    parts = [
        f"Data set {name!r} is not prepared: {builder.data_dir} does not hold it. If it is prepared elsewhere, name "
        "the folder by `data_dir` or the environment variable TFDS_DATA_DIR. Otherwise prepare it once, where there is "
        "a network, by",
        f'  python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{folder}).download_and_prepare()"',
    ]
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = os.path.join(data_dir or tfds.core.constants.DATA_DIR, "downloads", "manual")
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        parts.append(f"Part of it must be placed by hand in {manual} before: {instructions}")
    return "\n".join(parts)


def _checked_label(name: str, builder: Any) -> Any:
    """The label feature of a set that can be read whole."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"Data set {name!r} is not one for image classification: expected the features image and label, received "
            f"{', '.join(features)}."
        )
    if image.np_dtype != np.uint8 or None in image.shape:
        raise ValueError(
            f"Data set {name!r} can't be read into memory: expected uint8 images of one size, received "
            f"{np.dtype(image.np_dtype)} images of shape {image.shape} (None: varies). Pass the trainer a "
            "`tf.data.Dataset` that you build, which resizes them."
        )
    return label


def _split(name: str, split: str, builder: Any) -> str:
    """The set's own name for a split."""
    splits = builder.info.splits
    if split == "test" and "test" not in splits:
        split = "validation"
    if split not in splits:
        raise ValueError(f"Data set {name!r} has no split {split!r}: it has {', '.join(splits)}.")
    return split
