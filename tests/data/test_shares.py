"""Workers' shares of a stream: together they are its batches, and nobody decodes what is another's."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import load, stream_of, tfds_sets
from tfbio.data.shares import Share


def stream(batch_size, **options):
    return stream_of(load(batch_size=batch_size, split="train", **options)[0])


def parts(streaming, workers, replicas, epoch=1, first=0):
    """For every batch the parts of all replicas, each `(images, labels, weights)`."""
    held = replicas // workers
    shares = []
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, replicas)
        elements = list(streaming.batches(epoch, first, context).as_numpy_iterator())
        assert len(elements) == (streaming.steps_per_epoch - first) * held
        shares.append([elements[at : at + held] for at in range(0, len(elements), held)])
    return [[part for share in shares for part in share[index]] for index in range(len(shares[0]))]


@pytest.mark.parametrize(
    ("batch_size", "workers", "replicas", "kind"),
    [
        (8, 2, 4, {}),  # 23 examples: the last of four replicas has one less in the end
        (8, 2, 4, {"shuffle": False}),  # filled up
        (8, 2, 2, {"drop_remainder": True}),
        (7, 1, 1, {}),
        (5, 3, 3, {"shuffle": False}),  # parts of 1, 2 and 2
        (6, 2, 2, {}),  # parts of 3, where records come by 2
        (6, 2, 4, {"corrupt": "skip"}),  # parts of 1, 2, 1 and 2
        (7, 2, 2, {"corrupt": "skip", "shuffle": False}),
        (1, 4, 4, {}),  # three workers in vain
    ],
)
def test_shares_make_up_the_batches(options, batch_size, workers, replicas, kind):
    streaming = stream(batch_size, seed=2, augmentation="flip_random_resized_crop", **kind, **options)
    expected = list(streaming.batches(1, 1).as_numpy_iterator())
    found = parts(streaming, workers, replicas, first=1)
    assert len(found) == len(expected)
    ends = np.arange(replicas + 1) * batch_size // replicas  # no part has two rows more than another
    for batch, pieces in zip(expected, found, strict=True):
        count = len(batch[0])
        bounds = np.minimum(ends, count)
        assert [len(piece[0]) for piece in pieces] == list(np.diff(bounds))  # as many as are there, in order
        for column, whole in enumerate(batch):
            np.testing.assert_array_equal(np.concatenate([piece[column] for piece in pieces]), whole)


def test_shapes_are_static_where_parts_are_even(options):
    context = tf.distribute.InputContext(2, 1, 4)
    for batch_size, shape in ((8, 2), (6, None)):
        batches = stream(batch_size, shuffle=False, **options).batches(0, 0, context)
        assert batches.element_spec[0].shape[0] == shape


def test_a_worker_decodes_nothing_else(corrupted):
    """In order: the fourth and the ninth of ten pictures are broken, one for each of two workers."""
    streaming = stream(2, name=f"image_folder:{corrupted}", size=8, shuffle=False)
    first, second = (streaming.batches(0, 0, tf.distribute.InputContext(2, worker, 2)) for worker in (0, 1))
    assert len(list(second.take(1))) == 1
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(second)
    ninth = first.skip(4)
    assert len(list(first.take(4))) == 4
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(ninth)


def test_a_worker_reads_no_other_record_files(prepared, tmp_path):
    """Four files, and batches of four: each of two workers has two of four rows, and so of four lanes."""
    root = tmp_path / "copy"
    shutil.copytree(prepared, root)
    streaming = stream(4, name="photos", data_dir=str(root), size=16, seed=3)
    shares = [Share.of(tf.distribute.InputContext(2, worker, 2), 4) for worker in (0, 1)]
    files = []
    for share in shares:
        records = streaming._records(0, 0, share).as_numpy_iterator()
        files.append({streaming._source.describe(index).rpartition(" of ")[2] for index, *_ in records})
    assert len(files[0] | files[1]) == 4 and len(files[0] & files[1]) <= 1
    other = min(files[1] - files[0])
    with open(other, "r+b") as file:
        file.truncate(20)
    assert sum(1 for _ in streaming._records(0, 0, shares[0])) == 12  # of 23: three rows of the last batch
    with pytest.raises(tf.errors.DataLossError):
        list(streaming._records(0, 0, shares[1]))
    tfds_sets.read.cache_clear()


def test_what_is_skipped_counts_once(corrupted):
    streaming = stream(4, name=f"image_folder:{corrupted}", corrupt="skip", size=8, seed=1)
    weights = [np.concatenate([piece[2] for piece in pieces]) for pieces in parts(streaming, 2, 4, epoch=0)]
    alone = [batch[2] for batch in streaming.batches(0).as_numpy_iterator()]
    assert [w.sum() for w in weights] == [w.sum() for w in alone] and sum(map(np.sum, weights)) == 8
    assert sorted(streaming.skipped) == [str(corrupted / "train" / "one" / f"{bad}.jpg") for bad in (3, 8)]
