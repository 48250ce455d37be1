"""Every gin file parses and builds, each rule takes a step as a run does; bad files are refused."""

import gc
import itertools
import json
import re
from pathlib import Path

import gin
import keras
import numpy as np
import pytest

import tfbio
from tfbio.experiments import config
from tfbio.experiments.build import BuiltRun
from tfbio.training import strategies

TREE = Path(tfbio.__file__).parent.parent / "gin"
FILES = sorted(str(path.relative_to(TREE)) for path in TREE.rglob("*.gin"))
RULES = {
    "bp": "Backpropagation",
    "fa": "FeedbackAlignment",
    "dfa": "DirectFeedbackAlignment",
    "kp": "KolenPollack",
    "wm": "WeightMirror",
    "fa_signed": "FeedbackAlignment",
    **dict.fromkeys(("usf", "brsf", "frsf", "usf_sn", "brsf_sn", "frsf_sn", "usf_init"), "SignSymmetry"),
    "tp": "TargetPropagation",
    "dtp": "DifferenceTargetPropagation",
    "sdtp": "SimplifiedDifferenceTargetPropagation",
    "ao_sdtp": "AuxiliaryOutputSDTP",
    "ldrl": "LocalDifferenceTargetPropagation",
    "ddtp": "DirectDifferenceTargetPropagation",
}


def rule_of(file):
    """The rule that a run's file is called after, or None."""
    return RULES.get(re.sub("_(parallel|alternating)$", "", Path(file).stem))


COMPLETE = [file for file in FILES if file == "quickstart.gin" or (file[:5] == "runs/" and rule_of(file))]
PHOTOGRAPHS = ("imagenet2012", "imagenette")
LARGE = [file for file in COMPLETE if any(name in file for name in (*PHOTOGRAPHS, "cifar10/lc"))]


SMALL = sorted(set(COMPLETE) - set(LARGE), key=lambda file: ("mnist/fc" not in file, file))
#: A file for each class of rules, and for rules whose variables take turns; tests/stress/test_gin_files.py has all.
TRAINED = {RULES["fa"]: "quickstart.gin"}
TRAINED |= {rule_of(file): file for file in reversed(SMALL) if file != "quickstart.gin"}
TRAINED["alternating"] = next(file for file in SMALL if "alternating" in file)
SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
TESTS = itertools.count(1)


@pytest.fixture(autouse=True)
def _little_is_kept():
    """Networks hold themselves in cycles; a hundred of them would fill the memory before Python looks for these."""
    yield
    if next(TESTS) % 10 == 0:  # half a second each time
        gc.collect()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder with two small photographs of each split."""
    root = tmp_path_factory.mktemp("photographs")
    for split, label in itertools.product(("train", "test"), "ab"):
        (root / split / label).mkdir(parents=True)
        keras.utils.save_img(root / split / label / "1.png", np.full((40, 50, 3), ord(label)), scale=False)
    return root


@pytest.fixture
def tiny_data(monkeypatch, photographs):
    """Replaces what is read from disk by six images of the same shape, photographs by two."""

    def load(name, split, data_dir):
        if name in PHOTOGRAPHS:
            return image_files.read(str(photographs), split)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (6, *SHAPES[name]), np.uint8)
        return original(images, np.arange(6, dtype=np.int32), 10, None)

    from tfbio.data import image_files, registry
    from tfbio.data.labelled_images import LabelledImages as original

    monkeypatch.setattr(registry, "_read", load)


def test_the_tree_is_found():
    assert len(FILES) > 150 and len(COMPLETE) > 110 and len(LARGE) > 40


@pytest.mark.parametrize("file", FILES)
def test_every_file_parses_and_says_what_is_overridden(file):
    parts = ("load=@load", "model=@fully_connected", "rule=@Backpropagation", "optimizer=@Adam")
    config.parse([file], [f"train.{part}" for part in parts])  # what a file may leave to those that include it
    header = (TREE / file).read_text()
    assert header.startswith("# ")
    if file.startswith(("runs/", "studies/")) or file == "quickstart.gin":
        assert "Commonly overridden" in header or "share" in header.splitlines()[0]


def is_as_called(file, description):
    """Whether a run's parts are what the name of its file says."""
    schedule = re.search("_(parallel|alternating)$", Path(file).stem)
    assert description["rule"]["class_name"] == (rule_of(file) or "FeedbackAlignment")
    assert schedule is None or description["rule"]["schedule"] == schedule[1]
    if "inverse" in description["rule"]:  # inverses have an optimizer with settings of their own
        own, other = description["feedback_optimizer"], description["optimizer"]
        assert own["class_name"] == ("SGD" if "ernoult" in file else other["class_name"])
        assert own["learning_rate"] != other["learning_rate"]


def takes_a_step(file, folder, params=()):
    steps = ["train.epochs=1", "train.jit_compile=False", "train.alignment=False", "train.batch_size=6"]
    result = config.run_train([file], [*steps, *params], str(folder), quiet=True)
    assert result["steps"] == 1 and np.isfinite(result["final"]["train_loss"])
    assert result["labels"]["rule"] == (rule_of(file) or "FeedbackAlignment")
    # What was asked for, in full, can be parsed again and is the same run.
    config.parse([str(folder / "config.gin")], [])
    described = BuiltRun(config.load_run()).describe()
    is_as_called(file, described)
    assert described == json.loads((folder / "run.json").read_text())
    assert "train.epochs = 1" in (folder / "operative_config.gin").read_text()


@pytest.mark.parametrize("file", TRAINED.values(), ids=TRAINED)
def test_runs_take_a_step(file, tiny_data, tmp_path):
    """On a network of four stages, which all these rules take."""
    takes_a_step(file, tmp_path, ["train.model=@fully_connected", "fully_connected.units=(6, 5, 4)"])


KEPT = {}


def kept(name, function):
    """The function, called again only if its configuration or its arguments are others than those of the last call."""

    def call(**arguments):
        key = (gin.get_bindings(name), arguments, keras.config.dtype_policy().name, dict(SHAPES))
        if name not in KEPT or KEPT[name][0] != key:
            KEPT[name] = key, function(**arguments)
        return KEPT[name][1]

    return call


@pytest.mark.parametrize("file", COMPLETE)
def test_every_run_is_built(file, tiny_data, monkeypatch):
    """The large ones for smaller images: the networks have a fraction of their weights then."""
    if file in LARGE:
        monkeypatch.setitem(SHAPES, "cifar10", (12, 12, 3))
    params = [
        "train.jit_compile=False",
        "train.batch_size=2",
        *["SIZE = 64"] * any(name in file for name in PHOTOGRAPHS),
    ]
    config.parse([file], params)
    run = config.load_run()
    trained = file.endswith(("cifar10/lc/dtp_parallel.gin", "cifar10/lc/ao_sdtp_alternating.gin"))
    if not trained:
        run.load, run.model = kept("load", run.load), kept(run.model.__name__, run.model)
    built = BuiltRun(run)
    is_as_called(file, built.describe())
    if trained:
        variables = [*built.trainer.model.trainable_variables, *built.trainer.rule.feedback_variables]
        before = [variable.numpy() for variable in variables]
        built.trainer.fit(built.train_data, epochs=2, steps_per_epoch=1, verbose=False)  # an epoch for each turn
        for value, variable in zip(before, variables, strict=True):
            assert np.isfinite(variable.numpy()).all() and np.abs(value - variable.numpy()).max() > 0, variable.path


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("studies/")])
def test_every_study_names_files_that_exist(file):
    config.parse([file], [])
    bindings = gin.get_bindings("study")
    for values in bindings["axes"].values():
        for files in values.values():
            for name in [files] if isinstance(files, str) else files:
                assert "=" in name or (TREE / name).is_file(), name  # or a binding


@pytest.mark.parametrize(
    ("files", "params", "message"),
    [
        (["quikstart.gin"], [], "no file 'quikstart.gin'.*quickstart.gin"),
        (["quickstart.gin"], ["train.epoch=3"], "epoch"),
        (["quickstart.gin"], ["trian.epochs=3"], "trian"),
        (["quickstart.gin"], ["train.rule=@FeedbackAlignement"], "FeedbackAlignement"),
        (["quickstart.gin"], ["train.epochs"], "train.epochs"),
        (["runs/base.gin"], [], "train.load set to.*REQUIRED.*Include a file"),
        (["quickstart.gin"], ["train.epochs=0"], "epochs"),
        (["quickstart.gin"], ["train.select_on='train'"], "select_on"),
        (["quickstart.gin"], ['train.evaluate_on=("test",'], 'bracket.*never closed .reading.*"test"'),
        (["quickstart.gin"], ["import no_such_module"], "no_such_module"),
    ],
)
def test_bad_configurations(files, params, message, tmp_path):
    with pytest.raises(config.ConfigError, match=message):
        config.run_train(files, params, str(tmp_path / "w"), quiet=True)
    assert not (tmp_path / "w").exists()


def test_a_study_without_one(tmp_path):
    with pytest.raises(config.ConfigError, match=r"study\.axes`, received quickstart\.gin\. .*tfbio train"):
        config.run_study(["quickstart.gin"], [], str(tmp_path / "s"), None)
    assert not (tmp_path / "s").exists()


def test_the_configuration_of_a_run_is_that_of_its_last_training(tmp_path):
    """A second call that trains nothing leaves it alone."""
    first = ["train.epochs=1", "train.alignment=False", "train.jit_compile=False"]
    config.run_train(["quickstart.gin"], first, str(tmp_path), quiet=True)
    before = (tmp_path / "config.gin").read_text()
    config.run_train(["quickstart.gin"], [*first, "train.evaluate_on=()"], str(tmp_path), quiet=True)
    assert (tmp_path / "config.gin").read_text() == before
    config.run_train(["quickstart.gin"], [*first, "train.epochs=2", "train.evaluate_on=()"], str(tmp_path), quiet=True)
    assert "train.epochs = 2" in (tmp_path / "config.gin").read_text()


@pytest.mark.parametrize(("strategy", "where"), [("multi_worker", "TF_CONFIG"), ("tpu", "TPU_NAME")])
def test_what_a_cluster_or_a_tpu_trained_is_evaluated_and_exported_without(strategy, where, tmp_path, monkeypatch):
    for variable in (where, "SLURM_PROCID"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "config.gin").write_text(f'include "quickstart.gin"\ntrain.strategy = {strategy!r}\n')
    assert config._recorded_run(str(tmp_path), ["load.validation=0"]).strategy == "one_device"
    for named in ("mirrored", strategy):
        params = [f"train.strategy = {named!r}"]
        assert config._recorded_run(str(tmp_path), params).strategy == named
    monkeypatch.setattr(strategies, "_tpu", lambda address: None)
    cluster = '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'
    monkeypatch.setenv(where, cluster if where == "TF_CONFIG" else "there is one")
    assert config._recorded_run(str(tmp_path), []).strategy == strategy


def test_a_folder_of_runs_does_not_hide_the_gin_tree(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m tfbio` does
    config.parse(["runs/digits.gin", "rules/fa.gin"], [])
    assert config.load_run().epochs == 60


def test_nothing_is_left_of_an_earlier_configuration():
    config.parse(["quickstart.gin"], ["train.epochs=7"])
    config.parse(["quickstart.gin"], [])
    assert config.load_run().epochs == 60


def test_classes_are_not_changed_by_gin():
    rule = tfbio.rules.FeedbackAlignment()
    config.parse(["quickstart.gin"], ["FeedbackAlignment.scale=3.0"])
    assert type(config.load_run().rule()) is type(rule)
    assert tfbio.rules.FeedbackAlignment().get_config()["scale"] == 1.0  # a direct call is not injected
