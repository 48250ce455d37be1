"""Plain feedforward networks of any size: layers in a chain, under fixed names.

Layers are called `conv_1`, `conv_2`, … (`local_1`, … where weights are not shared), `dense_1`, …, `logits`, not by
Keras's running numbers, which depend on what else a process has built: figures of single layers can then be compared
between runs.
"""

from collections.abc import Iterable, Sequence

import keras

from tfbio.layers import LocallyConnected2D

__all__ = ["convolutional", "fully_connected", "locally_connected"]


def fully_connected(
    input_shape: Sequence[int],
    classes: int,
    units: Sequence[int] = (256, 256),
    activation: str | None = "tanh",
    kernel_initializer: str | keras.Initializer = "glorot_uniform",
    name: str = "fully_connected",
) -> keras.Sequential:
    """A network of fully connected layers.

    Args:
        input_shape: shape of one example, of any rank; flattened if it is not a vector.
        classes: number of outputs.
        units: units of each hidden layer; none for a linear classifier.
        activation: activation of the hidden layers, as Keras accepts it.
        kernel_initializer: initializer of all kernels, as Keras accepts it. Biases start at 0.
        name: the model's name.

    Returns:
        a built model from examples of shape `(batch, *input_shape)` to logits of shape `(batch, classes)`.

    Raises:
        ValueError: if `units` is a single number.
    """
    layers = [keras.Input(input_shape)]
    if len(input_shape) > 1:
        layers.append(keras.layers.Flatten(name="flatten"))
    layers += _dense_layers(units, classes, activation, kernel_initializer)
    return keras.Sequential(layers, name=name)


def convolutional(
    input_shape: Sequence[int],
    classes: int,
    filters: Sequence[tuple[int, int, int]] = ((5, 64, 2), (5, 128, 2), (3, 256, 1)),
    units: Sequence[int] = (1024,),
    activation: str | None = "tanh",
    kernel_initializer: str | keras.Initializer = "glorot_uniform",
    padding: str = "same",
    name: str = "convolutional",
) -> keras.Sequential:
    """A network of convolutions, which shrink the image by their strides (no pooling), and fully connected layers.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.
        filters: each convolution's `(kernel size, filters, stride)`, kernel size and stride in pixels.
        units: units of each hidden fully connected layer after them; may be none.
        activation: activation of all hidden layers, as Keras accepts it.
        kernel_initializer: initializer of all kernels, as Keras accepts it. Biases start at 0.
        padding: `"same"` (zeros, so that stride 1 keeps the image's size) or `"valid"`.
        name: the model's name.

    Returns:
        a built model from images of shape `(batch, *input_shape)` to logits of shape `(batch, classes)`.

    Raises:
        ValueError: if `input_shape` is not that of an image, an entry of `filters` has not three numbers, or `units`
            is a single one.
    """
    layers = _image_layers(keras.layers.Conv2D, "conv", input_shape, filters, activation, kernel_initializer, padding)
    return keras.Sequential([*layers, *_dense_layers(units, classes, activation, kernel_initializer)], name=name)


def locally_connected(
    input_shape: Sequence[int],
    classes: int,
    filters: Sequence[tuple[int, int, int]] = ((5, 64, 2), (5, 128, 2), (3, 256, 1)),
    units: Sequence[int] = (1024,),
    activation: str | None = "tanh",
    kernel_initializer: str | keras.Initializer = "glorot_uniform",
    padding: str = "same",
    name: str = "locally_connected",
) -> keras.Sequential:
    """The network of `convolutional`, without shared weights: each position has a kernel and a bias of its own.

    Args: those of `convolutional`.

    Returns:
        a built model from images of shape `(batch, *input_shape)` to logits of shape `(batch, classes)`.

    Raises:
        ValueError: as `convolutional`.
    """
    layers = _image_layers(LocallyConnected2D, "local", input_shape, filters, activation, kernel_initializer, padding)
    return keras.Sequential([*layers, *_dense_layers(units, classes, activation, kernel_initializer)], name=name)


def _image_layers(
    layer: type[keras.layers.Layer],
    prefix: str,
    input_shape: Sequence[int],
    filters: Sequence[tuple[int, int, int]],
    activation: str | None,
    kernel_initializer: str | keras.Initializer,
    padding: str,
) -> list[keras.layers.Layer]:
    """The layers that begin a network of images: windows of one kind, then a vector."""
    if len(input_shape) != 3:
        raise ValueError(
            f"Invalid value for `input_shape`: expected (height, width, channels), received {tuple(input_shape)}."
        )
    layers = [keras.Input(input_shape)]
    for number, entry in enumerate(filters if isinstance(filters, Iterable) else [filters], start=1):
        if not isinstance(entry, Sequence) or len(entry) != 3:
            raise ValueError(
                "Invalid value for `filters`: expected entries (kernel size, filters, stride), as ((5, 64, 2),), "
                f"received {entry!r}."
            )
        kernel_size, channels, stride = entry
        options = {"activation": activation, "kernel_initializer": kernel_initializer, "name": f"{prefix}_{number}"}
        layers.append(layer(channels, kernel_size, stride, padding, **options))
    return [*layers, keras.layers.Flatten(name="flatten")]


def _dense_layers(
    units: Sequence[int], classes: int, activation: str | None, kernel_initializer: str | keras.Initializer
) -> list[keras.layers.Layer]:
    """The fully connected layers that end a network."""
    if not isinstance(units, Iterable):
        raise ValueError(
            f"Invalid value for `units`: expected a number for each hidden layer, as (256, 256) or (64,), received "
            f"{units!r}."
        )
    options = {"kernel_initializer": kernel_initializer}
    hidden = [
        keras.layers.Dense(count, activation=activation, name=f"dense_{number}", **options)
        for number, count in enumerate(units, start=1)
    ]
    return [*hidden, keras.layers.Dense(classes, name="logits", **options)]
