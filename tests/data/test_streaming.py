"""Streams of pictures: order, augmentation, resume, evaluation, and what is wrong with files."""

import logging
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import DataNotFoundError, load, stream_of, tfds_sets

COUNT, CLASSES = 23, ("ant", "bee")  # as conftest.py writes them


def stream(batch_size=4, split="train", **options):
    return stream_of(load(split=split, batch_size=batch_size, **options)[0])


def whole(batches):
    """All of an epoch as arrays."""
    return [np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True)]


def rows(images):
    return sorted(image.tobytes() for image in images)


RANDOM = {"augmentation": "flip_random_resized_crop"}


def test_info_and_shapes(options):
    train, info = load(split="train", batch_size=5, **options)
    assert (info.classes, info.class_names, info.shape, info.examples) == (2, CLASSES, (16, 16, 3), COUNT)
    assert train.cardinality() == 5
    x, y, weights = next(iter(train))
    assert (x.shape, x.dtype, y.dtype, weights.dtype) == ((5, 16, 16, 3), tf.uint8, tf.int32, tf.float32)
    assert load(split="test", **options)[1].examples == 7


def test_an_epoch_has_each_example_once_and_an_order_of_its_own(options):
    one = stream(seed=1, **options)
    images, labels, weights = whole(one.batches(0))
    assert len(images) == COUNT and np.all(weights == 1)
    plain = whole(stream(shuffle=False, drop_remainder=False, **options).batches(0))
    kept = plain[2] == 1
    assert rows(images) == rows(plain[0][kept])
    assert rows(labels) == rows(plain[1][kept])
    assert np.any(labels != whole(one.batches(1))[1])
    assert np.any(labels != whole(stream(seed=2, **options).batches(0))[1])


def test_an_epoch_is_a_function_of_seed_and_epoch_alone(options):
    first = whole(stream(seed=1, **RANDOM, **options).batches(2))
    tf.random.set_seed(77)
    again = stream(seed=1, **RANDOM, **options)
    again.batches(0)
    second = whole(again.batches(tf.constant(2, tf.int64)))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    # A dataset's passes are the epochs.
    passes = again.dataset()
    whole(passes), whole(passes)
    np.testing.assert_array_equal(whole(passes)[0], first[0])


@pytest.mark.parametrize("corrupt", ["raise", "skip"])
def test_an_epoch_entered_in_its_middle(options, corrupt):
    both = {"seed": 1, "corrupt": corrupt, **RANDOM, **options}
    uninterrupted, again = whole(stream(**both).batches(1)), stream(**both)
    for first in (1, 5):
        for a, b in zip(uninterrupted, whole(again.batches(1, first)), strict=True):
            np.testing.assert_array_equal(a[4 * first :], b)


def test_augmentation_depends_on_the_example_not_on_its_batch(options):
    streaming = stream(4, seed=1, **RANDOM, **options)
    by_four = whole(streaming.batches(1))
    by_nine = whole(stream(9, seed=1, **RANDOM, **options).batches(1))
    assert rows(by_four[0]) == rows(by_nine[0])
    in_order = whole(stream(4, seed=1, shuffle=False, **RANDOM, **options).batches(1))
    assert rows(by_four[0]) == rows(in_order[0][in_order[2] == 1])
    assert rows(by_four[0]) != rows(whole(streaming.batches(2))[0])
    assert rows(by_four[0]) != rows(whole(stream(4, seed=2, **RANDOM, **options).batches(1))[0])


def test_half_of_the_pictures_are_flipped(options):
    plain = whole(stream(shuffle=False, resizing="stretch", **options).batches(0))[0][:COUNT]
    flips, streaming = [], stream(shuffle=False, resizing="stretch", augmentation="flip", **options)
    for epoch in range(4):
        flipped = whole(streaming.batches(epoch))[0]
        for image, other in zip(plain, flipped[:COUNT], strict=True):
            assert np.array_equal(image, other) or np.array_equal(image[:, ::-1], other)
            flips.append(not np.array_equal(image, other))
    assert abs(np.mean(flips) - 0.5) < 0.2


def test_evaluation_is_in_order_and_counts_each_example_once(options):
    data, info = load(split="test", batch_size=4, **options, **RANDOM)
    batches = list(data.as_numpy_iterator())
    assert [x.shape for x, _, _ in batches] == [(4, 16, 16, 3)] * 2  # one shape for one compilation
    weights = np.concatenate([w for _, _, w in batches])
    np.testing.assert_array_equal(weights, [1] * 7 + [0])
    assert data.element_spec[0].shape == (4, 16, 16, 3)
    if "data_dir" not in options:
        assert [*np.concatenate([y for _, y, _ in batches])[:7]] == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("held_out", [6, 0.25])
def test_validation_is_held_out_of_training(options, held_out):
    everything = whole(stream(1, shuffle=False, **options).batches(0))[0]
    kept = whole(stream(1, validation=held_out, seed=3, **options).batches(0))[0]
    validation = whole(stream(1, "validation", validation=held_out, **options).batches(0))[0]
    assert len(validation) == 6
    assert rows(everything) == rows(np.concatenate([kept, validation]))


@pytest.mark.parametrize("resizing", ["crop", "stretch"])
def test_resizing_against_numpy(folder, resizing):
    """Evaluation's crop is the middle 7/8 of the shorter side, square; stretching takes the whole picture."""
    x, _, _ = next(iter(load(f"image_folder:{folder}", "test", 1, size=16, resizing=resizing)[0]))
    pixels = tf.io.decode_jpeg((folder / "validation" / "ant" / "00.JPEG").read_bytes(), channels=3).numpy()
    if resizing == "crop":
        side = round(min(pixels.shape[:2]) * 7 / 8)
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        pixels = pixels[top : top + side, left : left + side]

    def axis(length):  # half-pixel centres, two neighbours
        place = np.clip((np.arange(16) + 0.5) * length / 16 - 0.5, 0, length - 1)
        low = np.floor(place).astype(int)
        weights = np.zeros((16, length))
        weights[np.arange(16), np.minimum(low + 1, length - 1)] = place - low
        weights[np.arange(16), low] += 1 - (place - low)
        return weights

    expected = np.einsum("ah,bw,hwc->abc", axis(pixels.shape[0]), axis(pixels.shape[1]), pixels.astype(np.float64))
    assert np.max(np.abs(x[0].numpy() - expected)) <= 0.51


def test_grey_and_cmyk_pictures_become_rgb(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "train" / "one").mkdir(parents=True)
    for mode, colour in (("L", 100), ("CMYK", (0, 255, 255, 0))):
        image.new(mode, (20, 20), colour).save(tmp_path / "train" / "one" / f"{mode}.jpg")
    x, _, _ = next(iter(load(f"image_folder:{tmp_path}", shuffle=False, batch_size=2, size=8)[0]))
    np.testing.assert_allclose(x[0, 4, 4], [255, 0, 0], atol=3)  # full magenta and yellow: red
    np.testing.assert_allclose(x[1, 4, 4], [100] * 3, atol=1)


def test_corrupt_pictures_are_skipped_and_reported(corrupted, caplog):
    name = f"image_folder:{corrupted}"
    with caplog.at_level(logging.WARNING, "tfbio"):
        skipping = stream(4, name=name, corrupt="skip", size=8)
        batches = list(skipping.batches(0).as_numpy_iterator())
        list(skipping.batches(1))
    assert [x.shape[0] for x, _, _ in batches] == [4, 4, 2]
    assert sum(w.sum() for _, _, w in batches) == 8
    assert sorted(skipping.skipped) == [str(corrupted / "train" / "one" / f"{bad}.jpg") for bad in (3, 8)]
    assert len(caplog.records) == 2  # each is named once
    for x, _, w in batches:
        assert np.all(x[w == 0] == 0) and np.all(x[w == 1].max(axis=(1, 2, 3)) > 0)
    assert skipping.faults(0, 0, None)[0] in skipping.skipped


def test_corrupt_pictures_are_fatal_by_default(corrupted):
    failing = stream(4, name=f"image_folder:{corrupted}", size=8)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(failing.batches(0))
    assert len(failing.faults(0)) == 2


def test_folders_that_do_not_fit(folder, tmp_path):
    def message(path, split="train"):
        with pytest.raises((ValueError, DataNotFoundError)) as error:
            load(f"image_folder:{path}", split)
        return str(error.value)

    assert f"expected a folder {tmp_path}/none/train" in message(tmp_path / "none")
    for name in ("full", "empty"):
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train" / "full" / "a.jpg").write_bytes(b"")
    assert "none in empty" in message(tmp_path)
    (tmp_path / "train" / "empty").rmdir()
    assert f"{tmp_path}/test or {tmp_path}/validation" in message(tmp_path, "test")
    (tmp_path / "test" / "stranger").mkdir(parents=True)
    assert "received stranger" in message(tmp_path, "test")


def test_missing_record_files_are_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    tfds_sets.read.cache_clear()
    lost = sorted((tmp_path / "copy" / "photos" / "1.0.0").glob("*train*"))[2]
    lost.unlink()
    with pytest.raises(DataNotFoundError, match=f"1 of 4 files are missing: {lost}"):
        load("photos", data_dir=str(tmp_path / "copy"))


def test_sets_too_large_for_memory_are_streamed_at_their_size(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(6, 5, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    images = np.random.default_rng(0).integers(256, size=(9, 6, 5, 1), dtype=np.uint8)
    parts = {"train": [(i, {"image": image, "label": i % 2}) for i, image in enumerate(images)]}
    tfds.dataset_builders.store_as_tfds_dataset("small", "1.0.0", features, parts, data_dir=tmp_path)
    monkeypatch.setattr(tfds_sets, "LIMIT_BYTES", 1)
    data, info = load("small", batch_size=3, data_dir=str(tmp_path))
    assert info.shape == (6, 5, 1)
    assert rows(whole(data)[0]) == rows(images)  # PNG is lossless, and nothing is resized
    tfds_sets.read.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 0}, "`size`: expected None or a positive"),
        ({"resizing": "squeeze"}, "`resizing`"),
        ({"augmentation": "crop"}, "`augmentation`.*random_resized_crop"),
        ({"corrupt": "ignore"}, "`corrupt`"),
        ({"normalization": "standardized"}, "`normalization`: expected 'unit'.*streamed"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 24, "drop_remainder": True}, "`batch_size`.*up to 23"),
        ({"validation": 23}, "from 0 to 22"),
    ],
)
def test_bad_arguments_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        load(f"image_folder:{folder}", **changes)


@pytest.mark.parametrize("option", [{"size": 8}, {"resizing": "crop"}, {"corrupt": "skip"}])
def test_options_of_streams_are_refused_for_sets_in_memory(option):
    with pytest.raises(
        ValueError, match=f"Invalid value for `{next(iter(option))}`.*'digits', which is held in memory"
    ):
        load("digits", **option)


def test_normalization_by_imagenet(folder):
    preprocessing = load(f"image_folder:{folder}", normalization="imagenet")[1].preprocessing
    floats = preprocessing(np.full((1, 1, 1, 3), 255, np.uint8)).numpy().ravel()
    np.testing.assert_allclose(floats, (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-5)
