"""Nothing is lost where nothing can be written: a full disk, a folder that is none, files that are not ours."""

import json
import resource
import signal

import keras
import numpy as np
import pytest

import tfbio
from tfbio.experiments.run import Run, WorkdirError, train
from tfbio.training import CheckpointError, Checkpoints, JsonLines


@pytest.fixture
def full():
    """A function after which no file can grow beyond 100 kB, as on a full disk; and one that makes room again."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python turns the signal into an error
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(on):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if on else soft, hard))

    yield limit
    limit(False)


def make(seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(500), keras.layers.Dense(3)]
    return tfbio.Trainer(keras.Sequential(layers), "fa", keras.optimizers.Adam(1e-3), jit_compile=False)


def data():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(20, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 20)
    return tfbio.data.from_arrays(images, labels, 8)


def test_a_full_disk(tmp_path, full):
    """The error names the checkpoint that is left; with room again, the run goes on from it bit for bit."""
    whole = make(1)
    whole.fit(data(), epochs=3, verbose=False)
    first, folder = make(1), tmp_path / "checkpoints"
    first.fit(data(), epochs=1, checkpoints=Checkpoints(str(folder)), verbose=False)
    before = sorted(path.name for path in folder.iterdir())
    full(True)
    try:
        checkpoints = Checkpoints(str(folder), every_steps=1)
        first.restore(checkpoints)
        with pytest.raises(CheckpointError, match="step-4 can't be written.*newest that is whole is .*step-3"):
            first.fit(data(), epochs=3, checkpoints=checkpoints, verbose=False)
    finally:
        full(False)
    assert sorted(path.name for path in folder.iterdir()) == before  # nothing half written is left
    second = make(9)
    assert second.restore(Checkpoints(str(folder))) == 3
    second.fit(data(), epochs=3, checkpoints=Checkpoints(str(folder)), verbose=False)
    for a, b in zip(whole.model.variables, second.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    (tmp_path / "step-2_temp").mkdir()
    (tmp_path / "step-2_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "step-1.data-00000-of-00001").write_bytes(b"no index yet")
    make(1).fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path)), verbose=False)
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"step-3"}


def test_a_file_that_is_no_checkpoint_is_passed_over(tmp_path):
    make(1).fit(data(), epochs=1, checkpoints=Checkpoints(str(tmp_path)), verbose=False)
    (tmp_path / "step-99.index").write_bytes(b"not ours")
    trainer, checkpoints = make(2), Checkpoints(str(tmp_path), keep=1)
    assert trainer.restore(checkpoints) == 3
    trainer.fit(data(), epochs=2, checkpoints=checkpoints, verbose=False)
    assert [path.name for path in checkpoints.paths()] == ["step-6"]  # and it does not count as one that is kept


@pytest.mark.parametrize("kind", ["file", "foreign", "cut"])
def test_work_directories_that_can_not_be_used(tmp_path, kind):
    """Said before the first step, and nothing is touched."""
    folder, path = tmp_path / "run", tmp_path / "run" / "run.json"
    if kind == "file":
        path = folder
    else:
        folder.mkdir()
    path.write_text({"file": "a file", "foreign": "name: another program's", "cut": '{"dataset": '}[kind])
    before = path.read_text()
    run = Run(model=lambda input_shape, classes: tfbio.models.fully_connected(input_shape, classes, units=(4,)))
    with pytest.raises(WorkdirError, match="can't be written|damaged") as caught:
        train(str(folder), run, quiet=True)
    assert "\n" not in str(caught.value) and path.read_text() == before


def test_lines_cut_short_are_replaced(tmp_path):
    """Killed at any place of a line, its line break included."""
    path = tmp_path / "metrics.jsonl"
    expected = [{"epoch": 1, "step": 3, "loss": 0.1}, {"epoch": 2, "step": 6, "loss": 0.2}]
    text = "".join(json.dumps(line) + "\n" for line in expected)
    for cut in (len(text), len(text) - 1, len(text) - 5):
        path.write_text(text[:cut])
        JsonLines(str(path)).on_epoch_end(1, {"step": 6, "loss": 0.2})
        assert path.read_text() == text
