"""Locally connected layers from and to convolutions, Keras 2's layers, and stock layers."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from processes import output_of

from tfbio import models
from tfbio.export import export, with_preprocessing
from tfbio.layers import (
    LocallyConnected1D,
    LocallyConnected2D,
    LocallyConnected2DTranspose,
    from_convolution,
    from_keras2,
    plain,
    to_keras2,
)
from tfbio.losses import SoftmaxCrossEntropy


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built(layer, shape):
    """A copy of the layer, with weights."""
    layer = type(layer).from_config(layer.get_config())
    layer.build(shape)
    layer.set_weights([normal(v.shape, 10 + number) for number, v in enumerate(layer.weights)])
    return layer


CASES = {
    "1d": (LocallyConnected1D(4, 3, 2, activation="tanh"), (2, 9, 3)),
    "1d channels first": (LocallyConnected1D(4, 3, data_format="channels_first"), (2, 3, 9)),
    "2d": (LocallyConnected2D(4, (2, 3), (2, 1), activation="relu"), (2, 6, 7, 3)),
    "2d without bias": (LocallyConnected2D(4, 2, use_bias=False), (2, 4, 5, 3)),
    "2d channels first": (LocallyConnected2D(4, (2, 3), (2, 1), data_format="channels_first"), (2, 3, 6, 7)),
}
ALL = pytest.mark.parametrize("layer, shape", CASES.values(), ids=CASES)


def keras2(x, kernel, bias, layer):
    """Keras 2's layer with implementation=1, spelled out as its documentation has it."""
    channels_first, rank = layer.data_format == "channels_first", layer.rank
    outputs = []
    for position in np.ndindex(*layer.windows.positions):
        window = tuple(
            slice(p * s, p * s + k) for p, s, k in zip(position, layer.strides, layer.kernel_size, strict=True)
        )
        outputs.append(x[(slice(None), slice(None), *window) if channels_first else (slice(None), *window)])
    y = np.stack([o.reshape(len(x), -1) @ k for o, k in zip(outputs, kernel, strict=True)], axis=1)
    y = y.reshape(len(x), *layer.windows.positions, -1)
    if channels_first:
        return np.moveaxis(y, rank + 1, 1) + bias.reshape(y.shape[-1], *y.shape[1:-1])
    return y + bias


@ALL
def test_weights_of_keras_2(layer, shape):
    layer, x = built(layer, shape), normal(shape)
    kernel, *bias = weights = to_keras2(layer)
    bias = bias[0] if bias else np.zeros((*layer.windows.positions, 4), "float32")
    expected = layer.activation(keras2(x, kernel, bias, layer))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-4)
    before = layer.get_weights()
    layer.set_weights([0 * v for v in before])
    from_keras2(layer, weights)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@ALL
def test_against_keras_2_itself(layer, shape):
    tf_keras = pytest.importorskip("tf_keras")
    layer, x = built(layer, shape), normal(shape)
    options = ("filters", "kernel_size", "strides", "data_format", "use_bias", "activation")
    config = layer.get_config()
    other = getattr(tf_keras.layers, type(layer).__name__)(**{name: config[name] for name in options})
    other.build(shape)
    other.set_weights(to_keras2(layer))
    np.testing.assert_allclose(layer(x), other(x), rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_are_refused():
    layer = built(LocallyConnected2D(4, 2), (2, 4, 5, 3))
    with pytest.raises(ValueError, match=r"`weights`: expected shapes \[\(12, 12, 4\), \(3, 4, 4\)\].*received"):
        from_keras2(layer, layer.get_weights())


@pytest.mark.parametrize("use_bias", [True, False])
def test_from_a_convolution(use_bias):
    convolution = built(L.Conv2D(4, 3, 2, "same", activation="tanh", use_bias=use_bias, name="c"), (2, 7, 6, 3))
    layer, x = from_convolution(convolution, (None, 7, 6, 3)), normal((2, 7, 6, 3))
    assert layer.name == "c" and layer.kernel.shape == (4, 3, 27, 4)
    np.testing.assert_allclose(layer(x), convolution(x), rtol=1e-5, atol=1e-5)
    for other in (
        built(L.Conv2D(4, 3, groups=2), (2, 7, 6, 2)),
        built(L.Conv1D(4, 3, padding="causal"), (2, 7, 2)),
        built(L.Conv3D(4, 3), (2, 7, 6, 5, 2)),
        L.Conv2D(4, 3),
        L.Dense(3),
    ):
        with pytest.raises(ValueError, match=f"`convolution`: expected a built Conv1D or Conv2D.*{other.name}"):
            from_convolution(other, (None, 7, 6, 2))


PLAIN = {
    **CASES,
    "2d same strides and dilation": (
        LocallyConnected2D(4, 3, 2, "same", dilation_rate=2, activation="softmax"),
        (2, 6, 7, 3),
    ),
    "2d same channels first": (
        LocallyConnected2D(4, 3, padding="same", data_format="channels_first", activation="softmax"),
        (2, 3, 6, 7),
    ),
}


@pytest.mark.parametrize("layer, shape", PLAIN.values(), ids=PLAIN)
def test_stock_layers_compute_the_same(layer, shape):
    model = keras.Sequential([keras.Input(shape[1:]), built(layer, shape)])
    stock = plain(model)
    assert {type(inner).__module__.split(".")[0] for inner in stock._flatten_layers()} == {"keras"}
    assert stock.count_params() == model.count_params() and stock.output_shape == model.output_shape
    np.testing.assert_allclose(stock(normal(shape)), model(normal(shape)), rtol=1e-5, atol=1e-5)


def test_only_models_that_need_it_are_rewritten():
    model = models.convolutional((6, 6, 1), 3, filters=((3, 2, 2),), units=())
    assert plain(model) is model
    inputs = keras.Input((6, 6, 1))
    nested = keras.Sequential([inputs, LocallyConnected2D(2, 3, name="a"), L.Dropout(0.5)])
    model = keras.Model(inputs, L.Dense(3, name="b")(L.Flatten()(nested(inputs))))
    stock, x = plain(model), normal((2, 6, 6, 1))
    np.testing.assert_allclose(stock(x), model(x), rtol=1e-5, atol=1e-5)
    assert stock.get_layer("b") is model.get_layer("b")
    stock.layers[1].layers[0].weights[0].assign_add(tf.ones((4, 4, 9, 2)))  # a copy: the model stays as it is
    assert not np.allclose(stock(x), model(x))


def test_exports_load_where_tfbio_can_not_be_imported(tmp_path):
    model = models.locally_connected((7, 6, 2), 3, filters=((3, 4, 2), (2, 5, 1)), units=())
    model = with_preprocessing(model, L.Rescaling(1 / 255), SoftmaxCrossEntropy())
    export(model, str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (4, 7, 6, 2), np.uint8)
    np.save(tmp_path / "images.npy", images)
    script = Path(__file__).parents[1] / "without_tfbio.py"
    output_of(script, tmp_path / "images.npy", tmp_path, CUDA_VISIBLE_DEVICES="")
    for name in ("keras", "served"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), model(images), rtol=1e-5, atol=1e-6)


def test_a_transposed_layer_takes_tfbio_to_load(tmp_path):
    """Said in `tfbio.export`: it alone stays itself in the `.keras` file."""
    model = keras.Sequential([keras.Input((4, 4, 2)), LocallyConnected2DTranspose(1, 2), LocallyConnected2D(1, 2)])
    export(model, str(tmp_path))
    loaded, x = keras.models.load_model(tmp_path / "model.keras"), normal((2, 4, 4, 2))
    assert isinstance(loaded.layers[0], LocallyConnected2DTranspose)
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-5)
    served = tf.saved_model.load(tmp_path / "saved_model")
    np.testing.assert_allclose(served.serve(x), model(x), rtol=1e-5, atol=1e-5)
