"""Arrays, `PyDataset` and `tf.data` are the same data; predictions come in their order."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(22, 5)).astype("float32"), RANDOM.integers(0, 3, 22)
WEIGHTS = RANDOM.uniform(0.5, 2.0, 22).astype("float32")


def trainer(**options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(3)])
    return tfbio.Trainer(model, "fa", keras.optimizers.SGD(0.1), jit_compile=False, **options)


class Batches(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.ends = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        part = slice(8 * index, 8 * index + 8)
        return X[part], Y[part], WEIGHTS[part]

    def on_epoch_end(self):
        self.ends += 1


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y, WEIGHTS)).batch(8)


def test_a_py_dataset_is_its_batches():
    plain, own = trainer(), trainer()
    expected = plain.fit(dataset(), epochs=2, validation_data=dataset(), verbose=False).history
    batches = Batches()
    found = own.fit(batches, epochs=2, validation_data=Batches(), verbose=False).history
    assert found["loss"] == expected["loss"] and found["val_loss"] == expected["val_loss"]
    assert batches.ends == 2
    np.testing.assert_array_equal(own.predict(batches), plain.predict(dataset()))


def test_arrays_are_shuffled_every_epoch_the_same_in_every_run():
    first, second, plain = trainer(), trainer(), trainer()
    losses = [each.fit((X, Y), epochs=2, batch_size=8, verbose=False).history["loss"] for each in (first, second)]
    assert losses[0] == losses[1]
    plain.fit(tfbio.data.from_arrays(X, Y, 8), epochs=2, verbose=False)
    for a, b in zip(first.model.weights, plain.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.evaluate((X, Y)) == pytest.approx(plain.evaluate(tfbio.data.from_arrays(X, Y, 5)))


def test_arrays_have_sample_weights():
    made = trainer()
    expected = made.evaluate(dataset())
    assert made.evaluate((X, Y, WEIGHTS), batch_size=5) == pytest.approx(expected, rel=1e-5)
    kept = WEIGHTS > 1
    masked, left = trainer(), trainer()
    masked.fit((X, Y, kept.astype("float32")), batch_size=22, verbose=False)
    left.fit((X[kept], Y[kept]), batch_size=22, verbose=False)
    for a, b in zip(masked.model.weights, left.model.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, Y[:5]), "arrays of one length.*5, 22"),
        ((X, Y, WEIGHTS[:5]), "arrays of one length.*5, 22"),
        ((X,), r"arrays \(x, y\).*received 1"),
        (dataset().map(lambda x, y, w: (x, y, w[:, tf.newaxis])), r"sample_weight`: expected .* shape \(batch,\)"),
    ],
)
def test_what_does_not_fit(data, message):
    with pytest.raises(ValueError, match=message):
        trainer().fit(data, verbose=False)


def test_batch_size_is_of_arrays():
    with pytest.raises(ValueError, match="`batch_size`.*has batches already"):
        trainer().fit(dataset(), batch_size=8, verbose=False)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_predictions_are_the_outputs_in_order(jit_compile):
    made = trainer()
    expected = made.model(X).numpy()
    unlabelled = tf.data.Dataset.from_tensor_slices(X).batch(8)
    for data in (X, (X, Y), dataset(), unlabelled, tfbio.data.from_arrays(X, Y, 8, shuffle=False)):
        np.testing.assert_allclose(made.predict(data), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.predict(dataset(), steps=2), expected[:16], rtol=1e-5, atol=1e-6)


def test_predictions_are_nested_as_the_outputs():
    x = {"a": keras.Input((5,), name="a"), "b": keras.Input((5,), name="b")}
    outputs = {"sum": keras.layers.Add()([x["a"], x["b"]]), "head": keras.layers.Dense(3)(x["a"])}
    model = keras.Model(x, outputs)
    made = tfbio.Trainer(model, "bp", "sgd", {"head": "softmax_cross_entropy"}, jit_compile=False)
    found = made.predict({"a": X, "b": 2 * X}, batch_size=8)
    assert set(found) == {"sum", "head"}
    np.testing.assert_allclose(found["sum"], 3 * X, rtol=1e-6)
    made.fit(({"a": X, "b": X}, {"head": Y}), batch_size=8, verbose=False)
