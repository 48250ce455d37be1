"""`load` on the bundled digits and on small sets written to disk by TensorFlow Datasets itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfbio.data import DataNotFoundError, load, memory_of, tfds_sets


def arrays(*args, **options):
    """All images and labels of a loaded split."""
    dataset, _ = load(*args, **options)
    return tuple(np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True))


def rows(images):
    """Images as a set of byte strings."""
    return {image.tobytes() for image in images}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder with small prepared sets of random images."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)

    def examples(count, shape, first_label):
        for index in range(count):
            image = rng.integers(256, size=[side or 4 + index for side in shape], dtype=np.uint8)
            yield index, {"image": image, "label": first_label + index % 2}

    def store(name, splits, shape=(4, 5, 3), label=None, first_label=0):
        label = label or tfds.features.ClassLabel(names=["cat", "dog", "owl"])
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape), "label": label})
        parts = {split: list(examples(count, shape, first_label)) for split, count in splits.items()}
        tfds.dataset_builders.store_as_tfds_dataset(name, "1.0.0", features, parts, data_dir=folder)

    store("animals", {"train": 12, "test": 5})
    store("no_test", {"train": 4, "validation": 3})
    store("no_train", {"test": 4})
    store("unlabelled", {"train": 4, "test": 4}, first_label=-1)
    store("varying", {"train": 4}, shape=(None, None, 3))
    store("regression", {"train": 4}, label=tfds.features.Scalar(np.int64))
    return str(folder)


def test_digits():
    train, info = load()
    assert (info.name, info.split, info.classes, info.shape) == ("digits", "train", 10, (8, 8, 1))
    assert (info.examples, memory_of(train).steps_per_epoch) == (1437, 23)
    assert info.class_names == tuple("0123456789")
    x, y = next(iter(train))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 8, 8, 1), tf.uint8, (64,), tf.int32)


def test_digits_are_all_there_once():
    from sklearn.datasets import load_digits

    images, labels = (np.concatenate(parts) for parts in zip(arrays(), arrays(split="test"), strict=True))
    digits = load_digits()

    def table(pixels, classes):
        return sorted((tuple(image), label) for image, label in zip(pixels.tolist(), classes.tolist(), strict=True))

    scaled = np.rint(images.reshape(1797, 64) * (16 / 255)).astype(int)
    assert table(scaled, labels) == table(digits.data.astype(int), digits.target)
    assert images.max() == 255


def test_only_training_is_shuffled_unless_asked():
    assert np.any(arrays(seed=0)[1] != arrays(seed=1)[1])
    np.testing.assert_array_equal(arrays(split="test", seed=0)[0], arrays(split="test", seed=1)[0])
    assert np.any(arrays(split="test", shuffle=True, seed=0)[1] != arrays(split="test", shuffle=True, seed=1)[1])
    np.testing.assert_array_equal(arrays(shuffle=False, seed=0)[0], arrays(shuffle=False, seed=1)[0])


@pytest.mark.parametrize(("validation", "count"), [(137, 137), (0.1, 144)])
def test_validation_is_held_out_of_training(validation, count):
    everything, _ = arrays(shuffle=False)
    held_out, _ = arrays(split="validation", validation=validation)
    for seed in (0, 1):
        kept, _ = arrays(validation=validation, seed=seed)
        assert (len(kept), len(held_out)) == (1437 - count, count)
        table = sorted(image.tobytes() for image in np.concatenate([kept, held_out]))
        assert table == sorted(image.tobytes() for image in everything)
    np.testing.assert_array_equal(held_out, arrays(split="validation", validation=validation, seed=5)[0])
    np.testing.assert_array_equal(arrays(split="test")[0], arrays(split="test", validation=validation)[0])


def test_augmentation_is_for_training_only():
    plain, augmented = arrays(), arrays(augmentation="flip_crop")
    np.testing.assert_array_equal(plain[1], augmented[1])
    assert np.mean(plain[0] != augmented[0]) > 0.3
    for split in ("validation", "test"):
        options = {"split": split, "validation": 100}
        np.testing.assert_array_equal(arrays(**options)[0], arrays(augmentation="flip_crop", **options)[0])


@pytest.mark.parametrize(
    ("normalization", "expected"), [("unit", [0, 0.2, 1]), ("centered", [-1, -0.6, 1]), (None, [0, 51, 255])]
)
def test_normalization(normalization, expected):
    preprocessing = load(normalization=normalization)[1].preprocessing
    floats = preprocessing(np.array([0, 51, 255], np.uint8).reshape(1, 3, 1, 1))
    assert floats.dtype == tf.float32
    np.testing.assert_allclose(np.ravel(floats), expected, rtol=1e-6)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_standardized_by_the_training_data(split, data_dir):
    preprocessing = load("animals", split, normalization="standardized", validation=2, data_dir=data_dir)[
        1
    ].preprocessing
    floats = preprocessing(arrays("animals", data_dir=data_dir)[0]).numpy()
    np.testing.assert_allclose(floats.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(floats.std(axis=(0, 1, 2)), 1, rtol=1e-6)


def test_labels_may_be_the_images_themselves():
    _, info = load(normalization="standardized", labels="image", batch_size=100)
    assert info.classes == 64
    images, labels = arrays(normalization="standardized", labels="image", split="train")
    assert labels.shape == (1437, 64) and labels.dtype == np.float32
    np.testing.assert_array_equal(labels, np.reshape(info.preprocessing(images), (-1, 64)))
    assert arrays(labels="image", split="validation", validation=37)[1].shape == (37, 64)


def test_preprocessing_is_float32_under_any_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert load()[1].preprocessing(np.zeros((1, 8, 8, 1), np.uint8)).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_keras_fits_a_loaded_set():
    train, info = load(batch_size=128)
    test, _ = load(split="test", batch_size=360)
    model = keras.Sequential(
        [keras.Input(info.shape), info.preprocessing, keras.layers.Flatten(), keras.layers.Dense(info.classes)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(train, epochs=8, verbose=0)
    assert model.evaluate(test, verbose=0)[1] > 0.85


def test_a_prepared_set(data_dir):
    dataset, info = load("animals", "test", 2, data_dir=data_dir)
    assert (info.classes, info.shape, info.examples) == (3, (4, 5, 3), 5)
    assert info.class_names == ("cat", "dog", "owl")
    assert dataset.cardinality() == 3
    test, train = arrays("animals", "test", data_dir=data_dir), arrays("animals", data_dir=data_dir)
    assert (len(test[0]), len(train[0])) == (5, 12)
    assert not rows(test[0]) & rows(train[0])
    assert sorted(train[1]) == [0] * 6 + [1] * 6


def test_a_prepared_set_is_read_once(data_dir):
    assert tfds_sets.read("animals", "test", data_dir) is tfds_sets.read("animals", "test", data_dir)


def test_a_set_without_test_split_is_tested_on_validation(data_dir):
    assert load("no_test", "test", data_dir=data_dir)[1].examples == 3


def test_known_sets_that_are_not_prepared_say_how_to_get_them(tmp_path):
    with pytest.raises(DataNotFoundError) as error:
        load("mnist", data_dir=tmp_path)
    message = str(error.value)
    assert f"tfds.builder('mnist', data_dir='{tmp_path}').download_and_prepare()" in message
    assert "TFDS_DATA_DIR" in message
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataNotFoundError, match="(?s)manual_dir.*ILSVRC2012_img_train.tar") as error:
        load("imagenet2012", data_dir=tmp_path)  # One of the sets that no program may download.
    assert str(tmp_path / "downloads" / "manual") in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "Did you mean 'mnist'"),
        ("digit", "Did you mean 'digits'"),
        ("xqzxqz", "list_builders"),
        ("huggingface:mnist", "expected 'digits' or the name of"),
        ("unlabelled", r"expected classes in \[0, 3\)"),
        ("regression", "expected the features image and label"),
        ("no_train", "no split 'train': it has test"),
    ],
)
def test_sets_that_cannot_be_loaded(name, message, data_dir):
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=data_dir)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "`split`"),
        ({"normalization": "zscore"}, "`normalization`"),
        ({"augmentation": "cutout"}, "`augmentation`"),
        ({"split": "validation"}, "hold out for the split 'validation'"),
        ({"labels": "pixels"}, "`labels`.*'class' or 'image'"),
        ({"labels": "image", "augmentation": "flip"}, "`labels`.*augmented"),
        ({"validation": 1437}, "from 0 to 1436"),
        ({"validation": 1.0}, "from 0 to 1436"),
        ({"validation": -1}, "from 0 to 1436"),
        ({"validation": 1e-9}, "from 0 to 1436"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)
