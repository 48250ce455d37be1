"""Pictures in folders and in record files, whole and broken."""

import numpy as np
import pytest
import tensorflow as tf

COUNT, CLASSES = 23, ("ant", "bee")


def picture(index, rng):
    """A smooth picture in colour, whose mean red says which it is."""
    height, width = rng.integers(20, 40, 2)
    ramp = np.linspace(0, 60, width, dtype=np.float32)[None, :, None]
    return np.broadcast_to(ramp + np.float32([10.0 * (index % 19), 50, 90]), (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 23 training and 7 test pictures in two classes; one of each split is a PNG that is called JPEG."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("validation", 7)):
        for index in range(count):
            path = root / split / CLASSES[index % 2] / f"{index:02}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode = tf.io.encode_png if index == 3 else tf.io.encode_jpeg
            path.write_bytes(encode(picture(index, rng)).numpy())
    (root / "train" / "ant" / ".DS_Store").write_text("x")
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The same as record files of TensorFlow Datasets, the test split without labels, as ImageNet's."""
    import tensorflow_datasets as tfds

    root = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(encoding_format="jpeg"), "label": tfds.features.ClassLabel(names=CLASSES)}
    )
    parts = {
        split: [(i, {"image": picture(i, rng), "label": i % 2 if split != "test" else -1}) for i in range(count)]
        for split, count in (("train", COUNT), ("validation", 7), ("test", 5))
    }
    config = tfds.download.DownloadConfig(num_shards=4)
    tfds.dataset_builders.store_as_tfds_dataset(
        "photos", "1.0.0", features, parts, data_dir=root, download_config=config
    )
    return root


@pytest.fixture(params=["files", "records"])
def options(request, folder, prepared):
    """Both kinds of streams, as arguments of `load`."""
    if request.param == "files":
        return {"name": f"image_folder:{folder}", "size": 16}
    return {"name": "photos", "data_dir": str(prepared), "size": 16}


@pytest.fixture
def corrupted(tmp_path):
    """A folder of ten pictures of which numbers 3 and 8 can't be decoded."""
    rng = np.random.default_rng(0)
    (tmp_path / "train" / "one").mkdir(parents=True)
    for index in range(10):
        content = tf.io.encode_jpeg(picture(index, rng)).numpy()
        name = tmp_path / "train" / "one" / f"{index}.jpg"
        name.write_bytes(content[: len(content) // 2] if index == 3 else b"" if index == 8 else content)
    return tmp_path
