"""Pictures streamed to two replicas, as to one; and last batches that leave the second replica no example."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from training.pictures import write_pictures

import tfbio

ONE = tf.distribute.get_strategy()


def streamed(folder, strategy, **options):
    def data(split, **more):
        return tfbio.data.load(f"image_folder:{folder}", split, 4, size=12, corrupt="skip", **more)[0]

    keras.utils.set_random_seed(1)
    layers = [keras.Input((12, 12, 3)), keras.layers.Conv2D(4, 3, strides=2, activation="tanh")]
    layers += [keras.layers.Flatten(), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)]
    with strategy.scope():
        model = keras.Sequential(layers)
        optimizer = keras.optimizers.SGD(1e-2, momentum=0.9)
    scaling = keras.layers.Rescaling(1 / 255)
    trainer = tfbio.Trainer(
        model, "kp", optimizer, strategy=strategy, preprocessing=scaling, jit_compile=False, **options
    )
    training = data("train", seed=3, augmentation="flip_random_resized_crop")
    history = trainer.fit(training, epochs=2, validation_data=data("test"), verbose=False).history
    return [variable.numpy() for variable in (*model.variables, *trainer.rule.variables)], history


def test_two_replicas_of_streamed_pictures_equal_one(tmp_path, two_replicas):
    """21 pictures in batches of 4 are five batches and one picture, of which the second replica gets none."""
    write_pictures(tmp_path, 21)
    (tmp_path / "train" / "b" / "13.jpg").write_bytes(b"\xff\xd8\xff broken")
    expected, figures = streamed(tmp_path, ONE)
    for options in ({}, {"accumulation_steps": 2}):
        found, history = streamed(tmp_path, two_replicas, **options)
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name, values in figures.items():
            if name != "seconds":
                np.testing.assert_allclose(history[name], values, rtol=1e-5, err_msg=name)


def arrays():
    """Nine examples: in batches of four, two batches and one example."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (9, 4, 4, 3), np.uint8), rng.integers(0, 2, 9).astype(np.int32)


def in_memory(folder):
    return tfbio.data.from_arrays(*arrays(), 4)


def plain(folder):
    return tf.data.Dataset.from_tensor_slices(arrays()).batch(4)


def pictures(folder):
    write_pictures(folder, 9)
    return tfbio.data.load(f"image_folder:{folder}", "train", 4, size=4)[0]


def train(strategy, data, rule="bp", synchronized=None, **options):
    """A trainer after an epoch; `synchronized` is None for a network without batch normalisation."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        normalization = keras.layers.BatchNormalization(synchronized=bool(synchronized))
        layers = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(5)]
        layers += [*([] if synchronized is None else [normalization]), keras.layers.Activation("tanh")]
        model = keras.Sequential([*layers, keras.layers.Dense(4, "tanh"), keras.layers.Dense(2)])
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    scaling = keras.layers.Rescaling(1 / 255)
    trainer = tfbio.Trainer(
        model, rule, optimizer, strategy=strategy, preprocessing=scaling, jit_compile=False, **options
    )
    history = trainer.fit(data, epochs=1, verbose=False).history
    return trainer, [history["loss"], *trainer.evaluate(data).values()]


@pytest.mark.parametrize(("source", "options"), [(in_memory, {"accumulation_steps": 2}), (plain, {}), (pictures, {})])
def test_statistics_stay_finite_where_a_replica_has_no_example(source, options, tmp_path, two_replicas):
    trainer, figures = train(two_replicas, source(tmp_path), synchronized=False, **options)
    assert np.all(np.isfinite(figures[0]))
    for variable in trainer.model.variables:
        for value in two_replicas.experimental_local_results(variable.value):
            assert np.all(np.isfinite(value)), variable.path


@pytest.mark.parametrize("options", [{"rule": "dfa"}, {"synchronized": True}], ids=["dfa", "synchronized"])
def test_what_stands_in_for_no_example_counts_for_nothing(options, two_replicas):
    """Nor does synchronised batch normalisation see it."""
    (one, expected), (two, found) = (train(strategy, in_memory(None), **options) for strategy in (ONE, two_replicas))
    for a, b in zip(one.model.variables, two.model.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6, err_msg=a.path)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
