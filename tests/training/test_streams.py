"""Training on streams of pictures: resumed anywhere, it is the run that never stopped; bad files are named."""

import functools
import runpy
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.experiments import run as runs
from tfbio.training import Checkpoints
from tfbio.training.feeds import first_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    runpy.run_path(str(Path(__file__).with_name("pictures.py")))["write_pictures"](root, 22)
    return root


def data(folder, split="train", batch_size=4, **options):
    if split == "train":
        options = {"augmentation": "flip_random_resized_crop", "seed": 3, **options}
    return tfbio.data.load(f"image_folder:{folder}", split, batch_size, size=12, **options)[0]


def make(seed, jit_compile=False, **options):
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3, strides=2, activation="tanh")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)]
    optimizer, preprocessing = keras.optimizers.SGD(1e-2, momentum=0.9), keras.layers.Rescaling(1 / 255)
    return tfbio.Trainer(
        keras.Sequential(layers), "fa", optimizer, preprocessing=preprocessing, jit_compile=jit_compile, **options
    )


@pytest.mark.parametrize(("corrupt", "steps"), [("raise", None), ("skip", None), ("raise", 5)])
def test_resumed_in_the_middle_of_an_epoch(folder, tmp_path, corrupt, steps):
    """22 examples in batches of 4: six steps an epoch, the last of two examples; or the first five."""
    whole, saving = make(1), Checkpoints(str(tmp_path), every_steps=8, keep=9)
    options = {"epochs": 3, "steps_per_epoch": steps, "verbose": False}
    expected = whole.fit(data(folder), checkpoints=saving, **options).history
    assert int(whole.step.numpy()) == 3 * (steps or 6)
    for path in saving.paths()[1:]:
        for file in tmp_path.glob(f"{path.name}.*"):
            file.unlink()
    second = make(99)
    assert second.restore(Checkpoints(str(tmp_path))) == 8
    history = second.fit(data(folder, corrupt=corrupt), **options).history
    states = [trainer.model.variables + trainer.rule.variables for trainer in (whole, second)]
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    assert history["loss"] == expected["loss"][1:]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_evaluation_counts_each_example_once(folder, jit_compile):
    trainer = make(1, jit_compile)
    sizes = (5, 3) if jit_compile else (5, 3, 1, 16)  # XLA compiles each
    figures = [trainer.evaluate(data(folder, "test", size)) for size in sizes]
    for figure in figures[1:]:
        np.testing.assert_allclose(figure["loss"], figures[0]["loss"], rtol=1e-5)
        assert figure["error"] == pytest.approx(figures[0]["error"])


def test_a_skipped_picture_counts_for_nothing(folder, tmp_path):
    """Training on 21 good pictures and a bad one is training on the batches without it."""
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "train" / "a" / "04.jpg").write_bytes(b"\xff\xd8\xff broken")
    stream = tfbio.data.stream_of(data(tmp_path / "copy", corrupt="skip"))
    trainer, reference = make(1), make(1)
    trainer.fit(data(tmp_path / "copy", corrupt="skip"), epochs=1, verbose=False)
    kept = [(x[w > 0], y[w > 0]) for x, y, w in stream.batches(0).as_numpy_iterator()]
    assert sorted(len(x) for x, _ in kept)[:2] in ([2, 3], [1, 4])
    spec = (tf.TensorSpec((None, 12, 12, 3), tf.uint8), tf.TensorSpec((None,), tf.int32))
    reference.fit(tf.data.Dataset.from_generator(lambda: iter(kept), output_signature=spec), epochs=1, verbose=False)
    for a, b in zip(trainer.model.variables, reference.model.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("phase", ["train", "test", "example"])
def test_a_picture_that_cannot_be_decoded_is_named(folder, tmp_path, phase):
    shutil.copytree(folder, tmp_path / "copy")
    bad = tmp_path / "copy" / ("train" if phase == "train" else "test") / "b" / "03.jpg"
    bad.write_bytes(b"\xff\xd8\xff broken")
    trainer = make(1)
    with pytest.raises(ValueError, match=f"{bad}.*corrupt='skip'"):
        if phase == "train":
            trainer.fit(data(tmp_path / "copy"), epochs=1, verbose=False)
        elif phase == "test":
            trainer.evaluate(data(tmp_path / "copy", "test", 2))
        else:
            first_batch(data(tmp_path / "copy", "test", 5))


def test_an_example_leaves_out_what_fills_up(folder):
    x, y = first_batch(data(folder, "test", 8))
    assert len(x) == len(y) == 5


def test_a_run_on_a_folder(folder, tmp_path):
    """A whole run: other augmentation and batch size for evaluation, alignment, the last epoch's figures."""

    def network(input_shape, classes):
        layers = [keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(4, "tanh")]
        return keras.Sequential([*layers, keras.layers.Dense(classes)])

    load = functools.partial(tfbio.data.load, f"image_folder:{folder}", size=12, validation=4, augmentation="flip")
    run = runs.Run(load=load, model=network, rule="fa", epochs=1, batch_size=4, jit_compile=False, alignment=True)
    result = runs.train(str(tmp_path), run, quiet=True)
    assert result["steps"] == 5
    assert {"train_loss", "val_loss", "test_loss"} <= set(result["final"])
