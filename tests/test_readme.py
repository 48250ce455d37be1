"""The README's Python code runs as it stands, in a folder of its own, on little data."""

import itertools
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.experiments import config

_README = Path(__file__).parents[1] / "README.md"
_SNIPPETS = re.findall(r"^```python\n(.*?)^```", _README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def _little(load):
    """`tfbio.data.load` cut down to a few examples; sets that would need a download become random images."""

    def load_little(name="digits", split="train", batch_size=64, **options):
        if name == "digits":
            data, info = load(name, split, batch_size, **options)
            x, y = next(iter(data))
            return tfbio.data.from_arrays(x, y, 16), info
        random = np.random.RandomState(0)
        images, labels = random.randint(256, size=(8, 32, 32, 3)).astype("uint8"), np.arange(8)
        info = tfbio.data.DatasetInfo(
            name, split, ("train", "test"), 10, (32, 32, 3), 8, keras.layers.Rescaling(1 / 255), None
        )
        return tfbio.data.from_arrays(images, labels, 4), info

    return load_little


def _small_resnet(weights, classes, classifier_activation, input_shape):
    """A residual network in ResNet50's place, whose compilation takes a minute."""
    assert weights is None
    inputs = x = keras.Input(input_shape)
    for filters in (4, 8):
        shortcut = keras.layers.Conv2D(filters, 1, strides=4)(x)
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3, strides=4, padding="same")(x))
        x = keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes, activation=classifier_activation)(x))


@pytest.mark.parametrize("number", range(len(_SNIPPETS)))
def test_snippet_runs(number, tmp_path, monkeypatch, two_replicas):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: two_replicas)  # a second one would clash with it
    monkeypatch.setattr(tfbio.data, "load", _little(tfbio.data.load))
    monkeypatch.setattr(keras.applications, "ResNet50", _small_resnet)
    namespace = {"__name__": "readme"}
    exec(compile(_SNIPPETS[number], str(_README), "exec"), namespace)
    for name in re.findall(r'model\.save\("(.+?)"\)', _SNIPPETS[number]):
        loaded = keras.saving.load_model(tmp_path / name)
        x = np.ones((2, *loaded.input_shape[1:]), "float32")
        np.testing.assert_array_equal(loaded(x), namespace["model"](x))


def test_there_are_snippets_and_linked_files_exist():
    assert len(_SNIPPETS) == 3
    text = _README.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (_README.parent / link).exists(), link


def test_gin_files_of_the_configuration_document_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (_README.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    files = re.findall(r"^```\n(# (\S+\.gin)\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [name for _, name in files] == ["mine.gin", "compare.gin"]
    for content, name in files:
        Path(name).write_text(content, encoding="utf-8")

    config.parse(["mine.gin"], ["BATCH=256", "SGD.momentum=0.95"])
    run = config.load_run()
    assert run.batch_size == 256 and run.epochs == 20 and run.optimizer().momentum == 0.95
    assert run.model(input_shape=(8, 8, 1), classes=10).count_params() > 0

    config.parse(["compare.gin"], [])
    study = config.gin.get_bindings("study")
    for values in itertools.product(*(axis.values() for axis in study["axes"].values())):
        additions = [part for value in values for part in ([value] if isinstance(value, str) else value)]
        gin_files = [*study["base"], *(part for part in additions if part.endswith(".gin"))]
        config.parse(gin_files, [study["params"], *(part for part in additions if not part.endswith(".gin"))])
        assert config.load_run().epochs == 30
