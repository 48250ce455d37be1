"""The networks are plain Keras models of the published sizes."""

import keras
import numpy as np
import pytest

from tfbio import models

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)


def dense(inputs, units):
    return (inputs + 1) * units


def conv(kernel, channels, filters):
    return (kernel * kernel * channels + 1) * filters


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "parameters"),
    [
        ("bartunov_mnist_fc", MNIST, 10, 466_698),
        ("bartunov_cifar10_fc", CIFAR, 10, 5_256_202),
        (
            "bartunov_mnist_conv",
            MNIST,
            10,
            conv(3, 1, 32) + conv(3, 32, 64) + dense(7 * 7 * 64, 1024) + dense(1024, 10),
        ),
        (
            "bartunov_cifar10_conv",
            CIFAR,
            10,
            conv(5, 3, 64) + conv(5, 64, 128) + conv(3, 128, 256) + dense(8 * 8 * 256, 1024) + dense(1024, 10),
        ),
        (
            "bartunov_imagenet_conv",
            IMAGENET,
            1000,
            conv(9, 3, 48)
            + conv(3, 48, 48)
            + conv(5, 48, 96)
            + conv(3, 96, 96)
            + conv(3, 96, 192)
            + conv(3, 192, 192)
            + conv(3, 192, 384)
            + dense(7 * 7 * 384, 1000),
        ),
    ],
)
def test_published_networks(name, input_shape, classes, parameters):
    model = getattr(models, name)()
    assert model.name == name
    assert model.built
    assert model.input_shape == (None, *input_shape)
    assert model.output_shape == (None, classes)
    assert model.count_params() == parameters
    *hidden, logits = [layer for layer in model.layers if layer.weights]
    assert {layer.activation for layer in hidden} == {keras.activations.tanh}
    assert (logits.name, logits.activation) == ("logits", keras.activations.linear)
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}


def local(kernel, channels, filters, side):
    return side * side * conv(kernel, channels, filters)


@pytest.mark.parametrize(
    ("dataset", "parameters"),
    [
        (
            "mnist",
            local(3, 1, 32, 14) + local(3, 32, 64, 7) + dense(7 * 7 * 64, 1024) + dense(1024, 10),
        ),
        (
            "cifar10",
            local(5, 3, 64, 16)
            + local(5, 64, 128, 8)
            + local(3, 128, 256, 8)
            + dense(8 * 8 * 256, 1024)
            + dense(1024, 10),
        ),
        (
            "imagenet",
            local(9, 3, 48, 56)
            + local(3, 48, 48, 28)
            + local(5, 48, 96, 28)
            + local(3, 96, 96, 14)
            + local(3, 96, 192, 14)
            + local(3, 192, 192, 7)
            + local(3, 192, 384, 7)
            + dense(7 * 7 * 384, 1000),
        ),
    ],
)
def test_published_locally_connected_networks(dataset, parameters):
    with keras.StatelessScope(initialize_variables=False):  # a gigabyte for ImageNet, were it allocated
        model = getattr(models, f"bartunov_{dataset}_lc")()
        twin = getattr(models, f"bartunov_{dataset}_conv")()
    assert model.count_params() == parameters
    assert round(parameters / 1e6, 2) == {"mnist": 4.19, "cifar10": 50.04, "imagenet": 259.86}[dataset]
    for layer, other in zip(model.layers, twin.layers, strict=True):
        assert layer.output.shape == other.output.shape
        assert getattr(layer, "activation", None) is getattr(other, "activation", None)
    assert model.layers[0].name == "local_1"


def test_a_locally_connected_network_starts_at_its_convolutional_twin_s_scale():
    deviations = [
        [np.std(layer.kernel) for layer in network((16, 16, 3), 10, ((3, 32, 2), (5, 64, 1)), (20,)).layers[:2]]
        for network in (models.convolutional, models.locally_connected)
    ]
    np.testing.assert_allclose(*deviations, rtol=0.05)


def test_spatial_chain_of_the_imagenet_network():
    shapes = [layer.output.shape[1:3] for layer in models.bartunov_imagenet_conv().layers[:-2]]
    assert shapes == [(side, side) for side in (56, 28, 28, 14, 14, 7, 7)]


def test_published_networks_take_other_shapes():
    assert models.bartunov_mnist_fc((8, 8, 1), 3).output_shape == (None, 3)
    assert models.bartunov_cifar10_conv(input_shape=(8, 8, 1), classes=3).output_shape == (None, 3)


def test_a_fully_connected_network_against_numpy():
    model = models.fully_connected((3, 2), 4, units=(5,), activation="relu")
    rng = np.random.default_rng(0)
    w1, b1, w2, b2 = weights = [rng.normal(size=variable.shape) for variable in model.weights]
    model.set_weights(weights)
    x = rng.normal(size=(7, 3, 2))
    expected = np.maximum(x.reshape(7, 6) @ w1 + b1, 0) @ w2 + b2
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-5)


def test_vectors_are_not_flattened():
    model = models.fully_connected((6,), 4)
    assert [layer.name for layer in model.layers] == ["dense_1", "dense_2", "logits"]
    model = models.fully_connected((3, 2), 4, units=())
    assert [layer.name for layer in model.layers] == ["flatten", "logits"]


def test_options_of_the_convolutional_network():
    model = models.convolutional(
        (9, 9, 2),
        4,
        filters=((3, 5, 2), (2, 6, 1)),
        units=(),
        activation="relu",
        kernel_initializer="zeros",
        padding="valid",
    )
    assert [layer.name for layer in model.layers] == ["conv_1", "conv_2", "flatten", "logits"]
    assert [layer.output.shape[1:] for layer in model.layers[:2]] == [(4, 4, 5), (3, 3, 6)]
    assert model.layers[0].activation is keras.activations.relu
    assert not any(np.any(weight) for weight in model.get_weights())


def test_initialisation_is_glorot_uniform():
    kernel = models.fully_connected((300,), 200, units=()).get_weights()[0]
    limit = np.sqrt(6 / (300 + 200))
    assert np.abs(kernel).max() <= limit
    np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.02)


def test_networks_follow_the_dtype_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = models.fully_connected((4,), 2)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model(np.zeros((1, 4), np.float32)).dtype.name == "bfloat16"
    assert {variable.dtype for variable in model.weights} == {"float32"}


def test_networks_load_again(tmp_path):
    model = models.convolutional((6, 6, 1), 3, filters=((3, 4, 2),), units=(5,))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 1))
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="`input_shape`: expected"):
        models.convolutional((784,), 10)
    with pytest.raises(ValueError, match="`filters`: expected entries"):
        models.convolutional(MNIST, 10, filters=((3, 32),))


@pytest.mark.parametrize("name", ["fully_connected", "convolutional", "locally_connected"])
def test_a_single_number_is_no_list_of_layers(name):
    with pytest.raises(ValueError, match=r"`units`: expected a number for each hidden layer, .* \(64,\), received 64"):
        getattr(models, name)((8, 8, 1), 10, units=64)


@pytest.mark.parametrize("filters", [5, (5, 64, 2)])
def test_a_single_convolution_is_no_list_of_them(filters):
    with pytest.raises(ValueError, match=r"`filters`: expected entries .*, as \(\(5, 64, 2\),\), received 5"):
        models.convolutional((8, 8, 1), 10, filters=filters)
