"""Flips and crops against a NumPy loop over images."""

import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import augmentation
from tfbio.data.memory import InMemory


def numpy_augment(images, flips, corners):
    """Pads, crops and flips one image after the other."""
    count, height, width, _ = images.shape
    margin = augmentation.MARGIN
    results = []
    for image, flip, (top, left) in zip(images, flips, corners, strict=True):
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
        crop = padded[top : top + height, left : left + width]
        results.append(crop[:, ::-1] if flip else crop)
    return np.stack(results).reshape(count, height, width, -1)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", augmentation.AUGMENTATIONS)
def test_against_numpy(kind, jit_compile):
    images = np.random.default_rng(0).integers(1, 256, size=(64, 9, 7, 3), dtype=np.uint8)
    flips, corners = augmentation.draw(kind, 64, seed=1, epoch=2, index=3)
    results = tf.function(augmentation.apply, jit_compile=jit_compile)(tf.constant(images), flips, corners)
    assert results.dtype == tf.uint8
    assert results.shape == images.shape
    np.testing.assert_array_equal(results, numpy_augment(images, flips.numpy(), corners.numpy()))


def test_draws_cover_their_range_evenly():
    flips, corners = (tensor.numpy() for tensor in augmentation.draw("flip_crop", 9000, seed=0, epoch=0, index=0))
    assert abs(flips.mean() - 0.5) < 0.03
    for axis in (0, 1):
        counts = np.bincount(corners[:, axis])
        assert len(counts) == 2 * augmentation.MARGIN + 1
        assert np.all(np.abs(counts - 1000) < 150)
    assert abs(np.corrcoef(flips, corners[:, 1])[0, 1]) < 0.05
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.05


def test_kinds_do_only_what_they_say():
    flips, corners = augmentation.draw("flip", 32, seed=0, epoch=0, index=0)
    assert 0 < np.sum(flips) < 32
    np.testing.assert_array_equal(corners, augmentation.MARGIN)
    flips, corners = augmentation.draw("crop", 32, seed=0, epoch=0, index=0)
    assert not np.any(flips)
    assert np.ptp(corners) > 0


def test_draws_depend_on_seed_epoch_and_batch_only():
    def corners(**changes):
        place = {"seed": 1, "epoch": 2, "index": 3, **changes}
        return augmentation.draw("crop", 16, **place)[1].numpy()

    np.testing.assert_array_equal(corners(), corners(epoch=tf.constant(2), index=tf.constant(3, tf.int64)))
    for change in ({"seed": 2}, {"epoch": 3}, {"index": 2}, {"epoch": 3, "index": 2}):
        assert np.any(corners() != corners(**change))


def test_memory_augments_by_place_in_the_batch():
    images = np.random.default_rng(0).integers(256, size=(10, 8, 8, 1), dtype=np.uint8)
    memory = InMemory(images, np.arange(10), batch_size=4, seed=7, augmentation="flip_crop")
    order = memory.order(1).numpy()
    for index, size in enumerate((4, 4, 2)):
        flips, corners = augmentation.draw("flip_crop", 4, seed=7, epoch=1, index=index)
        originals = images[order[4 * index : 4 * index + size]]
        expected = numpy_augment(originals, flips.numpy()[:size], corners.numpy()[:size])
        np.testing.assert_array_equal(memory.batch(order, 1, index)[0], expected)
