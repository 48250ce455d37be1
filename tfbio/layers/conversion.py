"""Locally connected layers from and to others: convolutions, Keras 2's layers, and stock Keras 3 layers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfbio.keras_internals import all_layers
from tfbio.layers.locally_connected import LocallyConnected, LocallyConnected1D, LocallyConnected2D

__all__ = ["from_convolution", "from_keras2", "plain", "to_keras2"]

_LAYERS = keras.layers


def from_convolution(convolution: keras.layers.Layer, input_shape: tuple) -> LocallyConnected:
    """The locally connected layer that starts as a convolution: all positions have its weights, each its own copy.

    Args:
        convolution: a built `Conv1D` or `Conv2D` without groups, `valid` or `same` padding.
        input_shape: `(batch, …)`; of fixed size, but for the batch.

    Returns:
        A built layer of the same name and options, with the same outputs.

    Raises:
        ValueError: another layer, or an option that is not supported.
    """
    classes = {_LAYERS.Conv1D: LocallyConnected1D, _LAYERS.Conv2D: LocallyConnected2D}
    config = convolution.get_config()
    known = type(convolution) in classes and config.pop("groups") == 1 and config["padding"] != "causal"
    if not known or not convolution.built:
        raise ValueError(
            f"Invalid value for `convolution`: expected a built Conv1D or Conv2D without groups or causal padding, "
            f"received {convolution.name!r} ({type(convolution).__name__})."
        )
    layer = classes[type(convolution)].from_config(config)
    layer.build(input_shape)
    kernel = np.reshape(convolution.kernel, layer.kernel.shape[-2:])
    weights = [kernel] if convolution.bias is None else [kernel, np.asarray(convolution.bias)]
    layer.set_weights([np.broadcast_to(w, v.shape) for w, v in zip(weights, layer.weights, strict=True)])
    return layer


def from_keras2(layer: LocallyConnected, weights: Sequence[np.ndarray]) -> None:
    """Gives a layer the weights of Keras 2's layer of the same name and options.

    Args:
        layer: a built `LocallyConnected1D` or `LocallyConnected2D`.
        weights: what `get_weights()` of Keras 2's layer with `implementation=1` returns: the kernel
            `(positions, taps * inputs, filters)`, and the bias if there is one.

    Raises:
        ValueError: the shapes do not fit.
    """
    shapes = [w.shape for w in to_keras2(layer)]
    if [np.shape(w) for w in weights] != shapes:
        raise ValueError(
            f"Invalid value for `weights`: expected shapes {shapes} for {layer.name!r}, received "
            f"{[np.shape(w) for w in weights]}. Take them from a Keras 2 layer with implementation=1."
        )
    kernel, *bias = weights
    if layer.data_format == "channels_first":
        *_, channels, filters = layer.window_shape
        kernel = np.reshape(kernel, (-1, channels, layer.windows.taps, filters)).swapaxes(1, 2)
        bias = [np.moveaxis(np.reshape(b, (filters, *layer.windows.positions)), 0, -1) for b in bias]
    layer.set_weights([np.reshape(w, v.shape) for w, v in zip([kernel, *bias], layer.weights, strict=True)])


def to_keras2(layer: LocallyConnected) -> list[np.ndarray]:
    """The weights for Keras 2's layer of the same name and options, with `implementation=1`.

    Args:
        layer: a built `LocallyConnected1D` or `LocallyConnected2D`; Keras 2 knows no dilation, and no `same` padding.

    Returns:
        What its `set_weights` takes. With `"channels_first"`, Keras 2 puts channels before taps in the kernel, and
        reads the bias as `(filters, …)` whatever its shape says.
    """
    kernel, *bias = layer.get_weights()
    taps, (*_, channels, filters) = layer.windows.taps, layer.window_shape
    kernel = kernel.reshape(-1, taps, channels, filters)
    if layer.data_format == "channels_first":
        kernel = kernel.swapaxes(1, 2)
        bias = [np.moveaxis(b, -1, 0).reshape(b.shape) for b in bias]
    return [kernel.reshape(-1, taps * channels, filters), *bias]


def plain(model: keras.Model) -> keras.Model:
    """The same model on stock Keras layers alone, as far as its locally connected layers go.

    Args:
        model: any model. It is not changed.

    Returns:
        `model` itself if it has no such layer or is a subclassed one. Else a model in which each `LocallyConnected1D`
        and `LocallyConnected2D` is a nested model that picks the windows by their index and multiplies them in an
        `EinsumDense` layer, with a copy of the weights; the other layers, transposed ones too, are shared.
    """
    graph = isinstance(model, keras.Sequential) or hasattr(model, "operations")
    if not graph or not any(isinstance(layer, _CONVERTED) for layer in all_layers(model)):
        return model
    return keras.models.clone_model(model, clone_function=_stock, recursive=True)


_CONVERTED = (LocallyConnected1D, LocallyConnected2D)


def _stock(layer: Any) -> Any:
    """A model of stock layers for a locally connected layer; any other layer as it is."""
    if not isinstance(layer, _CONVERTED):
        return layer
    windows, channels_first = layer.windows, layer.data_format == "channels_first"
    axes = "xy"[: layer.rank]
    index, pixels = windows.index().reshape(-1), int(np.prod(windows.size))

    inputs = keras.Input(layer.input_spec.shape[1:], dtype=layer.compute_dtype)
    rows = _LAYERS.Permute((*range(2, layer.rank + 2), 1))(inputs) if channels_first else inputs
    rows = _LAYERS.Reshape((pixels, layer.window_shape[-2]))(rows)
    if index.max() == pixels:
        rows = keras.ops.pad(rows, ((0, 0), (0, 1), (0, 0)))
    patches = keras.ops.take(rows, index, axis=1)
    patches = _LAYERS.Reshape((*windows.positions, -1))(patches)
    product = _LAYERS.EinsumDense(
        f"b{axes}k,{axes}kf->b{axes}f",
        output_shape=(*windows.positions, layer.filters),
        bias_axes=f"{axes}f" if layer.use_bias else None,
        name=f"{layer.name}_weights",
        dtype=layer.dtype_policy,
    )
    outputs = product(patches)
    product.set_weights(layer.get_weights())
    if channels_first:
        outputs = _LAYERS.Permute((layer.rank + 1, *range(1, layer.rank + 1)))(outputs)
    outputs = _LAYERS.Activation(layer.activation, dtype=layer.dtype_policy)(outputs)
    return keras.Model(inputs, outputs, name=layer.name)
