"""What takes seconds to import (TensorFlow, Keras) is imported when it is needed, and no earlier."""

import json
import subprocess
import sys

import keras
import pytest

import tfbio

SLOW = {"gin", "keras", "matplotlib", "scipy", "sklearn", "tensorflow", "tensorflow_datasets"}


def printed(code, *arguments):
    """What a program prints, which starts with nothing imported."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def imported(code):
    """The slow modules that a program imports."""
    output = printed(f"{code}\nimport sys; print('imported:', *sys.modules)")
    return SLOW.intersection(output.partition("imported:")[2].split())


@pytest.mark.parametrize(
    "code",
    [
        "import tfbio; assert tfbio.__version__ and set(tfbio.__all__) < set(dir(tfbio))",
        "import tfbio.files, tfbio.analysis.runs, tfbio.experiments.study",
        "from tfbio import cli; assert cli.main(['--help']) == 0",
        "from tfbio import cli; assert cli.main(['train', '--help']) == 0",
        "from tfbio import cli; assert cli.main(['evaluate', '--gin_file=quickstart.gin', '--workdir=runs/q']) == 2",
        "from tfbio import cli; assert cli.main(['train']) == cli.main(['evaluate']) == cli.main(['study']) == 2",
    ],
)
def test_nothing_slow_is_imported(code):
    assert imported(code) == set()


def test_a_report_imports_what_draws_and_no_tensorflow(tmp_path):
    report = f"from tfbio import cli; assert cli.main(['report', {str(tmp_path)!r}]) == 0"
    (tmp_path / "result.json").write_text(json.dumps({"labels": {"rule": "fa"}, "seed": 0, "final": {}}))
    assert imported(report) == set()  # there are no epochs to draw
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"epoch": {i}, "error": 0.1, "angle/a": 9}}\n' for i in (1, 2)))
    assert imported(report) == {"matplotlib"}
    assert (tmp_path / "learning_curves.png").exists() and (tmp_path / "alignment_curves.png").exists()


def test_the_first_use_of_a_name_imports_it():
    code = """
import tfbio
assert tfbio.Trainer.__name__ == "Trainer" and tfbio.rules.get("fa") and tfbio.training.Checkpoints
from tfbio import *
assert all(globals()[name] is getattr(tfbio, name) for name in tfbio.__all__)
assert stages is tfbio.network.stages and inverse is tfbio.network.inverse
assert not hasattr(tfbio, "no_such_name")
"""
    assert {"tensorflow", "keras"} <= imported(code)


LOAD = """
import pickle, sys
{imports}
model = keras.saving.load_model(sys.argv[1])
assert keras.saving.deserialize_keras_object({rule!r}).__class__.__name__ == "FeedbackAlignment"
print(pickle.loads(pickle.dumps(model)).layers[0].__class__.__module__)
"""


@pytest.mark.parametrize("imports", ["import keras, tfbio", "import tfbio.layers, tfbio.rules\nimport keras"])
def test_keras_loads_saved_objects(imports, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), tfbio.layers.LocallyConnected2D(2, 3), keras.layers.Flatten()])
    model.save(tmp_path / "model.keras")
    rule = keras.saving.serialize_keras_object(tfbio.rules.FeedbackAlignment())
    output = printed(LOAD.format(imports=imports, rule=rule), tmp_path / "model.keras")
    assert output.strip() == "tfbio.layers.locally_connected"
