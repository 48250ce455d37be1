"""Image classification sets prepared by TensorFlow Datasets: small ones read whole, others found for streaming.

This module only reads what is on disk: it never downloads, since a download in the middle of a job on a machine without
a network ends minutes later in an error about something else. A set that is not there is an error at once, with the
command that prepares it.
"""

import difflib
import functools
import os
from typing import Any

import numpy as np
import tensorflow as tf

from tfbio.data.errors import DataNotFoundError
from tfbio.data.labelled_images import LabelledImages
from tfbio.data.record_files import RecordFiles
from tfbio.data.shares import Share
from tfbio.files import check_no_pattern

__all__ = ["builder", "read"]

#: Largest split, in bytes as uint8, that is read into memory; larger ones are streamed.
LIMIT_BYTES = 4 * 2**30


@functools.cache
def read(name: str, split: str, data_dir: str | None = None) -> LabelledImages | RecordFiles:
    """One split of a TensorFlow Datasets set, read once in a process.

    Args:
        name: the set's name there, such as `"mnist"` or `"imagenet_resized/32x32"`.
        split: `"train"` or `"test"`; a set without a labelled test split is tested on its validation split, as usual.
        data_dir: folder of prepared sets; None for `TFDS_DATA_DIR` or the default of TensorFlow Datasets.

    Returns:
        the examples, in the order on disk: as arrays; or as files, if their sizes vary or memory is too small for them.

    Raises:
        DataNotFoundError: if the set is not prepared in that folder; says how to; or if some of its files are missing.
        ValueError: if there is no such set or split, or it is not one of uint8 images with a class each.
    """
    import tensorflow_datasets as tfds  # Here, because it is slow to import and other sets do without it.

    found = builder(name, data_dir)
    label = _checked_label(name, found)  # First: a set that can't be used is not worth preparing.
    if not found.is_prepared():
        check_no_pattern("data_dir", found.data_dir)  # TensorFlow Datasets does not see what is there then
        raise DataNotFoundError(_how_to_prepare(name, found, data_dir))
    split = _split(name, split, found)
    shape = found.info.features["image"].shape
    if None in shape or found.info.splits["train"].num_examples * int(np.prod(shape)) > LIMIT_BYTES:
        return _record_files(name, split, found, label)
    arrays = tfds.as_numpy(found.as_dataset(split=split, batch_size=-1))
    return LabelledImages(arrays["image"], arrays["label"], label.num_classes, tuple(label.names))


def builder(name: str, data_dir: str | None) -> Any:
    """The builder of a set, found without the network.

    Args:
        name: as for `read`.
        data_dir: as for `read`.

    Raises:
        ValueError: if there is no such set; says which are near.
    """
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
    """The label feature of a set that can be used."""
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(
            f"Data set {name!r} is not one for image classification: expected the features image and label, received "
            f"{', '.join(features)}."
        )
    if image.np_dtype != np.uint8:
        raise ValueError(
            f"Data set {name!r} can't be used: expected uint8 images, received {np.dtype(image.np_dtype)} images. Pass "
            "the trainer a `tf.data.Dataset` that you build."
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


def _record_files(name: str, split: str, builder: Any, label: Any) -> RecordFiles:
    """The files of a split, with what is in them."""
    import tensorflow_datasets as tfds

    info, features = builder.info.splits[split], builder.info.features
    if builder.info.file_format != tfds.core.file_adapters.FileFormat.TFRECORD:
        raise ValueError(
            f"Data set {name!r} can't be streamed: expected it prepared as TFRecord files, received "
            f"{builder.info.file_format.value}. Prepare it again with TensorFlow Datasets' default format."
        )
    decoders = {"image": tfds.decode.SkipDecoding()}

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        example = features.deserialize_example(record, decoders=decoders)
        return example["image"], tf.cast(example["label"], tf.int32)

    paths = [str(path) for path in info.filepaths]
    files = RecordFiles(paths, info.shard_lengths, parse, features["image"].shape, tuple(label.names))
    first = next(iter(files.records(None, 0, Share(1)).take(1)))
    if files.read(*first)[1] < 0:  # ImageNet's test data, say: the labels were never published
        if split == "test" and "validation" in builder.info.splits:
            return _record_files(name, "validation", builder, label)
        raise ValueError(f"Data set {name!r} has no labels in its split {split!r}: choose another.")
    return files
