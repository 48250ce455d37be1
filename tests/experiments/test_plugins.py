"""A user's own module, outside of the package: the example of docs/plugins.md, and what can go wrong with it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tfbio
from tfbio.experiments import config

DOCUMENT = (Path(tfbio.__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")

# Commands in one process, which takes seconds to start. -P keeps the current folder from Python's path: the installed
# command begins so.
CONSOLE = """
import json, sys
from tfbio import cli
if __name__ == "__main__":
    for line in sys.argv[1:]:
        code = cli.main(json.loads(line))
        assert code == 0, (line, code)
"""


def tfbio_in(folder, *commands):
    """What some commands print, given in `folder`, all of which must end well."""
    arguments = [json.dumps(command.split()[1:]) for command in commands]
    process = subprocess.run(
        [sys.executable, "-P", "-c", CONSOLE, *arguments], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process.stdout


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The document's files, and what its commands print."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "mine.py").write_text(*blocks("python"))
    run, study, _ = blocks("gin")
    (folder / "rings.gin").write_text(run)
    (folder / "base.gin").write_text(run.replace("import mine\n", ""))  # the study's file alone imports it
    (folder / "compare.gin").write_text(study.replace("rings.gin", "base.gin"))
    (commands,) = blocks("bash")
    return folder, tfbio_in(folder, *commands.splitlines(), "tfbio evaluate --workdir=runs/compare/coarse/seed0")


def test_the_documents_commands_run(example):
    folder, output = example
    result = json.loads((folder / "runs/rings/result.json").read_text())
    assert result["labels"] == {"dataset": "rings", "network": "two_layers", "rule": "CoarseFeedback"}
    assert result["final"]["test_error"] < 0.05  # two thirds for guesses
    assert f"test_error {result['final']['test_error']:.6g}" in output
    exported = keras.models.load_model(folder / "runs/rings/export/model.keras")
    np.testing.assert_allclose(exported(np.ones((1, 2), "float32")).numpy().sum(), 1, rtol=1e-5)
    for value in ("exact", "coarse"):
        assert re.search(rf"\| {value} +\| 1 \|", output), value
    optimizer = json.loads((folder / "runs/rings/run.json").read_text())["optimizer"]
    assert optimizer["learning_rate"]["config"]["steps_per_epoch"] == -(-600 // 64)


def test_runs_of_a_study_import_what_its_file_imports(example):
    folder, _ = example
    cell = folder / "runs/compare/coarse/seed0"
    assert json.loads((cell / "run.json").read_text())["rule"]["class_name"] == "CoarseFeedback"
    assert (cell / "config.gin").read_text().startswith("import mine\n")


def test_a_study_says_what_its_runs_would_not_get(tmp_path):
    (tmp_path / "s.gin").write_text("study.axes = {'rule': {'bp': 'rules/bp.gin'}}\ntrain.epochs = 3\nN = 1\n")
    with pytest.raises(config.ConfigError, match=r"received train\.epochs, which no run would get.*study\.params"):
        config.run_study([str(tmp_path / "s.gin")], [], str(tmp_path / "s"), None)
    assert not (tmp_path / "s").exists()


def test_a_module_that_is_not_there(tmp_path):
    with pytest.raises(config.ConfigError, match="'no_such_module'.*current folder.*run tfbio in the folder"):
        config.run_train(["quickstart.gin"], ["import no_such_module"], str(tmp_path / "w"), quiet=True)


def module_of(folder, monkeypatch, name, text):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    (folder / f"{name}.py").write_text(text)


REGISTERED = """
import keras, tfbio

@tfbio.register
class Scaled(keras.layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor
    def call(self, x):
        return self.factor * x
    def get_config(self):
        return {**super().get_config(), "factor": self.factor}

@tfbio.register
def scaled(input_shape, classes, layer=None):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), layer, keras.layers.Dense(classes)])

@tfbio.register
class NoConfig:
    def __init__(self, value=0):
        self.value = value
"""


def test_registered_classes_are_known_to_gin_and_keras_and_stay_what_they_are(tmp_path, monkeypatch):
    """Layers too, which gin's own decorator breaks."""
    module_of(tmp_path, monkeypatch, "own_layers", REGISTERED)
    params = ["import own_layers", "train.model=@scaled", "scaled.layer=@Scaled()", "Scaled.factor=3.0"]
    config.parse(["quickstart.gin"], params)
    import own_layers

    model = config.load_run().model(input_shape=(2, 2), classes=3)
    assert type(model.layers[1]) is own_layers.Scaled and model.layers[1].factor == 3.0
    assert own_layers.Scaled().factor == 1.0  # a direct call is not gin's
    assert keras.saving.get_registered_name(own_layers.Scaled) == "own_layers>Scaled"
    model.save(tmp_path / "model.keras")
    assert type(keras.models.load_model(tmp_path / "model.keras").layers[1]) is own_layers.Scaled
    config.parse(["quickstart.gin"], ["import own_layers", "train.labels={'a': @NoConfig()}", "NoConfig.value=5"])
    assert config.load_run().labels["a"].value == 5


def test_a_module_that_runs_again_registers_again(tmp_path, monkeypatch):
    """As a notebook's cell, or a reloaded module; a configuration that is in use is no obstacle."""
    for number in (1, 2):
        text = f"import tfbio\n@tfbio.register\ndef own_number():\n    return {number}\n"
        module_of(tmp_path, monkeypatch, "own_numbers", text)
        config.parse(["quickstart.gin"], ["import own_numbers", "train.labels={'a': @own_number()}"])
        assert config.load_run().labels == {"a": number}
