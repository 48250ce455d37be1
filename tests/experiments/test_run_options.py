"""What a run may be given: callbacks, first weights, metrics, losses with options. The batch of the alignment."""

import json

import keras
import numpy as np
import pytest

import tfbio
from tfbio.experiments import build, config
from tfbio.experiments import run as runs
from tfbio.experiments.run import Run, WorkdirError, train


def small(input_shape, classes):
    return tfbio.models.fully_connected(input_shape, classes, units=(12,))


def settings(**options):
    return Run(**{"model": small, "epochs": 1, "jit_compile": False, "evaluate_on": ("test",), **options})


def held_out(**options):
    return tfbio.data.load("digits", validation=200, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Service:
    """Where a tracker of experiments sends what it sees: a record for each call of `fit`."""

    def __init__(self):
        self.records = []


class Tracker(keras.callbacks.Callback):
    """It opens, fills and closes a record, and knows model, optimizer and epochs."""

    def __init__(self, service):
        super().__init__()
        self.service = service

    def on_train_begin(self, logs=None):
        record = {"parameters": self.model.count_params(), "epochs": self.params["epochs"], "batches": 0}
        self.service.records.append(record)

    def on_train_batch_end(self, batch, logs=None):
        self.service.records[-1]["batches"] += 1

    def on_epoch_end(self, epoch, logs=None):
        logs["tracked/rate"] = float(self.model.optimizer.learning_rate)
        self.service.records[-1][epoch] = dict(logs)

    def on_train_end(self, logs=None):
        self.service.records[-1]["closed"] = True


def test_callbacks_see_all_figures_and_theirs_are_written(tmp_path):
    """Given as an object, or as what makes one."""
    service = Service()
    options = {"rule": "fa", "alignment": True}
    train(str(tmp_path), settings(callbacks=(Tracker(service),), **options), quiet=True)
    train(str(tmp_path), settings(callbacks=(lambda: Tracker(service),), epochs=2, **options), quiet=True)
    first, second = service.records
    assert first["parameters"] == 64 * 12 + 12 + 12 * 10 + 10 and first["epochs"] == 1 and first["batches"] >= 1
    assert {"loss", "error", "test_loss", "angle/total"} <= set(first[0])
    assert first["closed"] and second["closed"] and 0 not in second and 1 in second
    assert [line["tracked/rate"] for line in lines(tmp_path)] == pytest.approx([1e-3, 1e-3])


def test_keras_callbacks_are_known_to_gin(tmp_path):
    """A callback that changes what is trained: nothing gets better by 9, so that the rate falls after every epoch."""
    params = ["train.epochs=3", "train.jit_compile=False", "train.alignment=False"]
    params += ["train.callbacks=(@ReduceLROnPlateau,)", "ReduceLROnPlateau.monitor='loss'"]
    params += ["ReduceLROnPlateau.patience=1", "ReduceLROnPlateau.min_delta=9.0", "ReduceLROnPlateau.factor=0.5"]
    config.run_train(["quickstart.gin"], params, str(tmp_path), quiet=True)
    assert [line["learning_rate"] for line in lines(tmp_path)] == pytest.approx([1e-3, 1e-3, 5e-4])


def test_an_improvement_below_min_delta_is_none(tmp_path):
    options = {"load": held_out, "evaluate_on": ("validation",), "patience": 1, "epochs": 3}
    assert train(str(tmp_path / "a"), settings(**options), quiet=True)["epochs"] == 3
    assert train(str(tmp_path / "b"), settings(min_delta=9.0, **options), quiet=True)["epochs"] == 2


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of a network's weights, and these."""
    folder = tmp_path_factory.mktemp("saved")
    keras.utils.set_random_seed(5)
    keras.layers.Dense(1)  # so that the names are others
    model = small((8, 8, 1), 10)
    model.compile("adam", "mse")
    model.save(folder / "whole.keras")
    model.save_weights(folder / "only.weights.h5")
    deeper = tfbio.models.fully_connected((8, 8, 1), 10, units=(12, 10))
    deeper.save_weights(folder / "deeper.weights.h5")
    tfbio.models.fully_connected((8, 8, 1), 10, units=(13,)).save(folder / "wider.keras")
    (folder / "no.weights.h5").write_text("no such file")
    (folder / "no.keras").write_text("no such file")
    return folder, model.get_weights()


def standing(**options):
    """A run whose learning rate is 0."""
    return settings(optimizer=lambda: keras.optimizers.SGD(0.0), **options)


@pytest.mark.parametrize(("file", "strategy"), [("whole.keras", "one_device"), ("only.weights.h5", "mirrored")])
def test_a_run_starts_with_the_weights_of_a_file(saved, tmp_path, file, strategy):
    folder, expected = saved
    path = tmp_path / file
    path.write_bytes((folder / file).read_bytes())
    rule = {"class_name": "FeedbackAlignment", "config": {"signed_init": True, "last_layer": "same"}}
    run = standing(initial_weights=str(path), rule=rule, strategy=strategy)
    built = build.BuiltRun(run)
    for kernel, feedback in [pair for layer in built.trainer.rule.feedback_layers for pair in layer.pairs]:
        np.testing.assert_array_equal(np.sign(feedback), np.sign(kernel))
    train(str(tmp_path / "run"), run, quiet=True)
    path.unlink()  # what goes on does not need it
    train(str(tmp_path / "run"), standing(**{**vars_of(run), "epochs": 2}), quiet=True)
    for a, b in zip(runs._restored(str(tmp_path / "run"), run).trainer.model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["initial_weights"] == str(path)
    with pytest.raises(WorkdirError, match="other settings .initial_weights."):
        train(str(tmp_path / "run"), standing(rule=rule, strategy=strategy), quiet=True)


def vars_of(run):
    return {name: getattr(run, name) for name in ("initial_weights", "rule", "strategy")}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none.keras", "a file that is there, received"),
        ("model.h5", "ends in .keras or .weights.h5"),
        ("deeper.weights.h5", "layers of 'fully_connected', received.*the file also has layers/dense_2/vars/0"),
        ("wider.keras", r"shape.*\(64, 12\).*\(64, 13\)"),
        ("no.weights.h5", "layers of 'fully_connected', received"),
        ("no.keras", "layers of 'fully_connected', received"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, tmp_path, file, message):
    with pytest.raises(ValueError, match=f"`initial_weights`.*{message}") as caught:
        train(str(tmp_path / "run"), settings(initial_weights=str(saved[0] / file)), quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"min_delta": 0.1}, "0 without `patience`"), ({"min_delta": -1.0, "patience": 3}, "a number from 0")],
)
def test_bad_min_delta(options, message):
    with pytest.raises(ValueError, match=f"`min_delta`: expected {message}"):
        settings(**options)


def test_metrics_by_name_and_by_class(tmp_path):
    metrics = ("accuracy", keras.metrics.SparseTopKCategoricalAccuracy)
    result = train(str(tmp_path), settings(metrics=metrics), quiet=True)
    final, line = result["final"], lines(tmp_path)[-1]
    assert final["test_accuracy"] == pytest.approx(1 - final["test_error"], abs=1e-6)
    assert final["test_accuracy"] < final["test_sparse_top_k_categorical_accuracy"] < 1
    assert line["test_sparse_top_k_categorical_accuracy"] == pytest.approx(
        final["test_sparse_top_k_categorical_accuracy"]
    )


def test_a_data_set_that_says_its_shape_and_classes_alone(tmp_path):
    def load(split, batch_size, seed, shuffle=None):
        x, y = np.random.default_rng(0).normal(size=(20, 3)).astype("float32"), np.arange(20) % 2
        data = tfbio.data.from_arrays(x, y, batch_size, seed=seed, shuffle=bool(shuffle))
        return data, tfbio.data.DatasetInfo(shape=(3,), classes=2)

    result = train(str(tmp_path), settings(load=load, rule="fa", alignment=True), quiet=True)
    assert result["labels"]["dataset"] == "data" and "angle/total" in result["alignment"]
    path, _ = runs.export(str(tmp_path), settings(load=load, rule="fa", alignment=True), preprocessing=True)
    np.testing.assert_allclose(keras.models.load_model(path)(np.ones((1, 3), "float32")).numpy().sum(), 1, rtol=1e-5)


@pytest.fixture
def sorted_pictures(tmp_path, monkeypatch):
    """A folder of pictures, which lie sorted by class: more in a class than in an evaluation's batch."""
    for split in ("train", "test"):
        for label in range(3):
            (tmp_path / "data" / split / str(label)).mkdir(parents=True)
            for number in range(8):
                file = tmp_path / "data" / split / str(label) / f"{number}.png"
                keras.utils.save_img(file, np.full((4, 4, 3), 80 * label + number), scale=False)
    monkeypatch.setattr(build, "_EVALUATION_BATCH", 8)
    return lambda **options: tfbio.data.load(
        f"image_folder:{tmp_path / 'data'}", **{**options, "size": 4, "resizing": "stretch"}
    )


def test_alignment_is_measured_on_a_batch_of_all_classes(sorted_pictures, tmp_path, monkeypatch):
    """The same batch whenever the run is built, under any strategy; another for another seed."""
    seen = []

    class Recorded(runs.Alignment):
        def __init__(self, rule, x, y, *arguments):
            seen.append((np.asarray(x), np.asarray(y)))
            super().__init__(rule, x, y, *arguments)

    monkeypatch.setattr(runs, "Alignment", Recorded)
    options = {"load": sorted_pictures, "alignment": True, "rule": "fa", "evaluate_on": ()}
    train(str(tmp_path / "run"), settings(**options), quiet=True)
    ((x, y),) = seen
    assert len(set(y)) == 3 and len(y) == 8
    for strategy in ("one_device", "mirrored"):
        built = build.BuiltRun(settings(strategy=strategy, **options))
        raw, labels = built.sample()
        np.testing.assert_array_equal(built.trainer.preprocessing(raw), x)
        np.testing.assert_array_equal(labels, y)
    other, _ = build.BuiltRun(settings(seed=1, **options)).sample()
    assert np.abs(other - raw).max() > 0


def loss_of(loss, model=small):
    return build.BuiltRun(settings(loss=loss, model=model)).describe()["loss"]


def two_outputs(input_shape, classes):
    x = keras.layers.Flatten()(inputs := keras.Input(input_shape))
    return keras.Model(inputs, [keras.layers.Dense(classes)(x), keras.layers.Dense(classes)(x)])


def test_losses_are_described_with_their_options():
    smoothed = tfbio.losses.SoftmaxCrossEntropy(label_smoothing=0.1)
    assert loss_of(smoothed) == {"class_name": "SoftmaxCrossEntropy", "label_smoothing": 0.1}
    assert loss_of("softmax_cross_entropy") == {"class_name": "SoftmaxCrossEntropy", "label_smoothing": 0.0}
    weighted = [
        tfbio.losses.PerOutput(["softmax_cross_entropy", "softmax_cross_entropy"], [1.0, weight]) for weight in (1, 2)
    ]
    assert loss_of(weighted[0], two_outputs) != loss_of(weighted[1], two_outputs)
    of_logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert loss_of(of_logits) != loss_of("sparse_categorical_crossentropy")


def test_losses_are_described_alike_whatever_was_made_before():
    """Keras numbers names: of outputs, of layers, of losses."""

    def named():
        return (
            loss_of("softmax_cross_entropy", two_outputs),
            loss_of(keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
            loss_of(lambda y, outputs: keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)),
        )

    first = named()
    two_outputs((3,), 2)
    assert named() == first and "dense" not in str(first)


def test_other_options_of_the_loss_are_another_run_and_old_descriptions_go_on(tmp_path):
    train(str(tmp_path), settings(), quiet=True)
    smoothed = settings(loss=tfbio.losses.SoftmaxCrossEntropy(label_smoothing=0.1), epochs=2)
    with pytest.raises(WorkdirError, match=r"loss\.label_smoothing was 0\.0, is now 0\.1"):
        train(str(tmp_path), smoothed, quiet=True)
    written = json.loads((tmp_path / "run.json").read_text())
    written["loss"] = "SoftmaxCrossEntropy"  # as it was before losses had options
    del written["initial_weights"]
    (tmp_path / "run.json").write_text(json.dumps(written))
    with pytest.raises(WorkdirError, match=r"loss\.label_smoothing"):
        train(str(tmp_path), smoothed, quiet=True)
    assert train(str(tmp_path), settings(epochs=2), quiet=True)["epochs"] == 2
