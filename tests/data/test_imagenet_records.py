"""ImageNet's record files of tensorflow/models, against the same examples as TensorFlow Datasets has them."""

import json
import logging
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import DataNotFoundError, imagenet_records, load, stream_of, tfds_sets
from tfbio.training.feeds import first_batch

SHARDS = 4


def example(encoded, label):
    features = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))}
    if label is not None:
        features["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write(path, examples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in examples:
            writer.write(example(*one))


@pytest.fixture(scope="module")
def records(prepared, tmp_path_factory):
    """What `prepared` holds, file by file; labels from 1 on. The training files are in a folder of their own."""
    root = tmp_path_factory.mktemp("records")
    for split, folder in (("train", root / "train"), ("validation", root)):
        info = tfds_sets.builder("photos", str(prepared)).info.splits[split]
        for number, path in enumerate(info.filepaths):
            examples = []
            for record in tf.data.TFRecordDataset(str(path)):
                found = tf.train.Example.FromString(record.numpy()).features.feature
                examples.append((found["image"].bytes_list.value[0], found["label"].int64_list.value[0] + 1))
            write(folder / f"{split}-{number:05}-of-{len(info.filepaths):05}", examples)
    return root


OPTIONS = {"size": 16, "seed": 3, "augmentation": "flip_random_resized_crop"}


def streams(records, prepared, split="train", batch_size=4, **options):
    ours = load(f"imagenet_records:{records}", split, batch_size, **OPTIONS, **options)
    theirs = load("photos", split, batch_size, data_dir=str(prepared), **OPTIONS, **options)
    return ours, theirs


def same(ours, theirs):
    ours, theirs = (list(batches.as_numpy_iterator()) for batches in (ours, theirs))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_batches_are_those_of_tensorflow_datasets(records, prepared, split):
    """In order, in the middle of an epoch, and of each of two workers; labels begin at 0."""
    (data, info), (other, expected) = streams(records, prepared, split, validation=5)
    assert info.examples == expected.examples
    same(data, other)
    streamed = [stream_of(each) for each in (data, other)]
    same(*(each.batches(2, 1) for each in streamed))
    for worker in range(2):
        context = tf.distribute.InputContext(2, worker, 2)
        same(*(each.batches(1, 0, context) for each in streamed))


def test_classes_are_those_of_imagenet2012(records):
    _, info = load(f"imagenet_records:{records}", size=16)
    assert info.classes == 1000 and info.shape == (16, 16, 3)
    assert info.class_names[:2] == ("n01440764", "n01443537")  # the tench and the goldfish, labels 1 and 2 there


def test_records_are_counted_once(records, tmp_path, monkeypatch, caplog):
    name = f"imagenet_records:{shutil.copytree(records, tmp_path / 'copy')}"
    lengths = tmp_path / "copy" / "train" / "lengths.json"
    lengths.unlink(missing_ok=True)
    assert load(name)[1].examples == 23
    kept = json.loads(lengths.read_text())
    assert sum(count for _, count in kept.values()) == 23 and len(kept) == SHARDS
    with monkeypatch.context() as patch:
        patch.setattr(imagenet_records, "_count", lambda *_: pytest.fail("counts what was counted"))
        assert load(name)[1].examples == 23
    write(tmp_path / "copy" / "train" / "train-00001-of-00004", [(b"", 1)])  # another file: it alone is counted again
    fewer = 23 - kept["train-00001-of-00004"][1] + 1
    assert load(name)[1].examples == fewer
    lengths.write_text("[")  # as a kill leaves it
    assert load(name)[1].examples == fewer and not caplog.records

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    lengths.unlink()
    monkeypatch.setattr(imagenet_records, "write_json", refuse)
    with caplog.at_level(logging.WARNING, "tfbio"):
        assert load(name)[1].examples == fewer
    assert caplog.messages == [f"{lengths} can't be written: the records will be counted again the next time."]


def encoded(red=10):
    return tf.io.encode_jpeg(np.full((20, 20, 3), red, np.uint8)).numpy()


@pytest.mark.parametrize("label", [0, 1001, None])
def test_labels_that_are_not_imagenets_are_refused(tmp_path, label):
    write(tmp_path / "train-00000-of-00001", [(encoded(), 1000), (encoded(), label)])
    with pytest.raises(ValueError, match=r"from 1 to 1000, .* received .* in record 1 of .*train-00000-of-00001"):
        load(f"imagenet_records:{tmp_path}")
    assert not (tmp_path / "lengths.json").exists()


def test_later_labels_are_checked_too(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    write(path, [(encoded(), 1)] * 9 + [(encoded(), 0)])
    dataset, _ = load(f"imagenet_records:{tmp_path}", batch_size=10, size=8)
    with pytest.raises(ValueError, match=f"received record 9 of {path}"):
        first_batch(dataset)


def test_files_that_are_missing_cut_short_or_not_there(tmp_path):
    name = f"imagenet_records:{tmp_path / 'set'}"
    with pytest.raises(DataNotFoundError, match="expected files train-00000-of-… in .*set/train, received no such"):
        load(name)
    for number in range(2):
        write(tmp_path / "set" / f"train-{number:05}-of-00002", [(encoded(), 1), (encoded(), 2)])
    with pytest.raises(DataNotFoundError, match="expected files validation-00000.* received none there"):
        load(name, "test")
    path = tmp_path / "set" / "train-00001-of-00002"
    content = path.read_bytes()
    for rest in (len(content) - 1, len(content) // 2 + 5, 7):
        path.write_bytes(content[:rest])
        with pytest.raises(ValueError, match=f"received {path}, which ends within record [01]. Copy it again"):
            load(name)
    path.rename(path.with_name("train-00000-of-00003"))
    with pytest.raises(ValueError, match="train-…-of-00002 and -of-00003 in .* Take one of them away"):
        load(name)
    path.with_name("train-00000-of-00003").unlink()
    with pytest.raises(DataNotFoundError, match=f"1 of 2 files are missing: {path}"):
        load(name)


def test_data_folders_that_tensorflow_datasets_reads_as_patterns_are_named(tmp_path, prepared):
    shutil.copytree(prepared, tmp_path / "[1]")
    with pytest.raises(ValueError, match=r"`data_dir`: expected a path without .*\[1\]"):
        load("photos", data_dir=str(tmp_path / "[1]"))
