r"""Inverses: a stage in reverse, with weights of its own.

Target propagation sends targets down through learned inverses $g_l$ of the stages $f_l$,

$$ g_l(u) = r_l(V_l u + c_l) \approx h_{l-1} \quad\text{where } u = f_l(h_{l-1}), $$

"parametrised similarly" to the stage (Bartunov et al. 2018): its layers in reverse, each from its output's shape to its
input's, with fresh weights $V_l, c_l$ and, as $r_l$, the activation of what lies below: a tanh layer's inverse returns
values of the tanh layer below it.

| layer | its inverse |
|---|---|
| `Dense` | `Dense` |
| `Conv1D`, `Conv2D`, `Conv3D` | `Conv…Transpose` of the same kernel, strides and padding, to the exact input shape |
| `LocallyConnected2D` | `LocallyConnected2DTranspose`, likewise |
| `Flatten`, `Reshape` | `Reshape` |
| `MaxPooling2D`, `AveragePooling2D` | each value repeated over its window, or strides of the inverse below: `pooling` |
| normalisation | nothing: it is affine in each unit, and $V_l, c_l$ learn to undo it |
| activations, dropout | nothing: the next inverse's own activation takes their place |

`inverts` adds a layer class to the table. A stage that the table does not cover, or that branches, gets an inverse of
your own: any Keras model from the stage's output shape to its input shape.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from tfbio.layers import LocallyConnected2D, LocallyConnected2DTranspose, is_weighted, register_traits
from tfbio.layers.traits import registered, traits
from tfbio.network.graph import Node, check_graph, check_one_output, inlined, nodes

__all__ = ["inverse", "inverts", "output_activation"]

_LAYERS = keras.layers
_CROPPING = {1: _LAYERS.Cropping1D, 2: _LAYERS.Cropping2D, 3: _LAYERS.Cropping3D}

# What moves values about, or takes some away: the activation below is what made them.
_MOVING = ("shaping", "dropout", "pooling")


def inverts(*classes: type) -> Callable[[Callable], Callable]:
    """A decorator: the function below makes the inverse of layers of these classes.

    The function is called as `function(layer, inputs, shape, activation, options)` with the layer to invert, the Keras
    tensor that stands for its output, the layer's input shape without the batch axis, the activation that what it
    returns shall have, and the keyword arguments of `inverse`. It returns a Keras tensor of that shape. It goes to the
    registry of `tfbio.layers.traits`.
    """

    def add(function: Callable) -> Callable:
        register_traits(*classes, inverse=function)
        return function

    return add


def inverse(
    stage: keras.Model,
    activation: Any = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    fully_connected: bool = False,
    pooling: str | None = None,
    kernel_initializer: Any = "glorot_uniform",
    extra_units: int = 0,
) -> keras.Model:
    """A stage in reverse: a new model from its output's shape to its input's, with weights of its own.

    Args:
        stage: a chain of layers, as `tfbio.stages` returns them.
        activation: of the inverse's output, for `keras.activations.get`: that of the stage below, whose values it
            returns (`output_activation`).
        kernel_size: of the inverses of convolutions and locally connected layers; larger than theirs for a larger
            receptive field with the same centres. None for the same.
        fully_connected: one dense layer for the whole stage, whatever its layers are.
        pooling: `"upsample"` inverts pooling by repeating each value over its window; `"strided"` leaves it to the
            inverse of the convolution below, which takes the pooling's strides besides its own: as many
            multiplications fewer as pooling has taken pixels away. None refuses pooling.
        kernel_initializer: of all kernels.
        extra_units: units that come beside the stage's output, along its last axis (AO-SDTP's auxiliary output).

    Returns:
        A built model from `(batch, *stage output)` to `(batch, *stage input)`. Its weights have the dtype of the
        stage's, and it computes in that dtype under mixed precision too: targets are small differences of its values.

    Raises:
        ValueError: the stage has a layer without an inverse, branches, or has no fixed shapes.
    """
    check_graph(stage)
    check_one_output(stage)
    stage = inlined(stage)
    shape, output = stage.input_shape[1:], stage.output_shape[1:]
    if None in shape or None in output:
        raise ValueError(
            f"Invalid value for `stage`: expected fixed shapes, received {stage.input_shape} → {stage.output_shape} at "
            f"{stage.name!r}. Give the model a fixed input shape."
        )
    dtype = next((layer.variable_dtype for layer in stage.layers if layer.weights), keras.config.floatx())
    options = {
        "kernel_size": kernel_size,
        "pooling": pooling,
        "kernel_initializer": kernel_initializer,
        "dtype": dtype,
    }
    inputs = keras.Input((*output[:-1], output[-1] + extra_units), dtype=dtype)
    if fully_connected:
        result = _LAYERS.Flatten(dtype=dtype)(inputs) if len(output) > 1 else inputs
        result = _dense(None, result, (math.prod(shape),), activation, options)
    else:
        result, calls = inputs, _chain(stage)
        for position in reversed(range(len(calls))):
            below = _last_activation(calls[:position], activation)
            options["pooled"] = _pooled(calls[position + 1 :]) if pooling == "strided" else None
            result = _inverse_of(calls[position], result, below, options)
    if math.prod(result.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"Invalid value for `pooling`: 'strided' needs a convolution below the pooling, of sizes that strides can "
            f"make up for; the inverse of {stage.name!r} returns {result.shape[1:]}, expected {shape}. Pass 'upsample'."
        )
    if result.shape[1:] != shape:
        result = _LAYERS.Reshape(shape, dtype=dtype)(result)
    return keras.Model(inputs, result, name=f"{stage.name}_inverse")


def output_activation(stage: keras.Model) -> Any:
    """The activation that makes the stage's output, looking through reshaping, pooling and dropout; None for none."""
    return _last_activation(nodes(inlined(stage)), None)


def _last_activation(calls: Sequence[Node], before: Any) -> Any:
    """The activation that the values behind `calls` come from; `before` if the calls only move values about."""
    for call in reversed(calls):
        layer = call.layer
        if traits(layer).kind in _MOVING:
            continue
        if traits(layer).kind == "activation" and not hasattr(layer, "activation"):
            return None if layer.weights else layer
        return getattr(layer, "activation", None)
    return before


def _pooled(above: Sequence[Node]) -> tuple[int, int]:
    """By how much a layer's output is pooled before the next weighted layer."""
    strides = (1, 1)
    for layer in itertools.takewhile(lambda layer: not is_weighted(layer), (call.layer for call in above)):
        if traits(layer).kind == "pooling":
            strides = (strides[0] * layer.strides[0], strides[1] * layer.strides[1])
    return strides


def _chain(stage: keras.Model) -> list[Node]:
    """The stage's calls, each of which feeds the next and nothing else."""
    calls = nodes(stage)
    for call, above in zip(calls, [*calls[1:], None], strict=True):
        if len(call.inputs) != 1 or (above is not None and above.inputs[0] is not call.outputs[0]):
            raise ValueError(
                f"Invalid value for `stage`: expected a chain of layers, received {stage.name!r}, which branches at "
                f"{call.layer.name!r}. Pass an inverse of your own: a function of the stage that returns a Keras model "
                f"from {stage.output_shape} to {stage.input_shape}."
            )
    return calls


def _inverse_of(call: Node, inputs: Any, activation: Any, options: dict[str, Any]) -> Any:
    """The inverse of `call`'s layer."""
    layer, shape = call.layer, tuple(call.inputs[0].shape[1:])
    known = traits(layer)
    if function := known.inverse or _BY_KIND.get(known.kind):
        return function(layer, inputs, shape, activation, options)
    names = sorted(cls.__name__ for cls, each in registered().items() if each.inverse or each.kind in _BY_KIND)
    raise ValueError(
        f"Invalid value for `stage`: no inverse is known of layer {layer.name!r} ({type(layer).__name__}). Those of "
        f"{', '.join(names)} are; fully_connected=True takes any stage, tfbio.network.inverses.inverts adds one, and "
        "an inverse of your own is any Keras model."
    )


@inverts(_LAYERS.Dense)
def _dense(layer: Any, inputs: Any, shape: tuple, activation: Any, options: dict[str, Any]) -> Any:
    settings = {name: options[name] for name in ("kernel_initializer", "dtype")}
    return _LAYERS.Dense(shape[-1], activation, **settings)(inputs)


def _convolution(
    transpose: type, layer: Any, inputs: Any, shape: tuple, activation: Any, options: dict[str, Any]
) -> Any:
    if layer.groups != 1 or set(layer.dilation_rate) != {1} or layer.data_format != "channels_last":
        raise ValueError(
            f"Invalid value for `stage`: the inverse of convolutions takes one group, no dilation and channels last; "
            f"layer {layer.name!r} has groups={layer.groups}, dilation_rate={layer.dilation_rate}, "
            f"data_format={layer.data_format!r}. Pass fully_connected=True or an inverse of your own."
        )
    size, padding, margins = _kernel_size(layer, options), layer.padding, []
    lengths, counts, pooled = shape[:-1], inputs.shape[1:-1], options["pooled"] or layer.rank * (1,)
    strides = tuple(a * b for a, b in zip(layer.strides, pooled, strict=True))
    if padding == "same":
        reached = [(count - 1) * stride + k % 2 for count, stride, k in zip(counts, strides, size, strict=True)]
        extra = tuple(length - r for length, r in zip(lengths, reached, strict=True))
        if extra == strides:
            extra = None  # Keras's own choice, which it takes by no other name
    if padding == "valid" or size != layer.kernel_size or (extra and any(map(int.__ge__, extra, strides))):
        margins, padding = _margins(layer, size, strides, lengths, counts), "valid"
        extra = tuple(max(-behind, 0) for _, behind in margins)
    settings = {name: options[name] for name in ("kernel_initializer", "dtype")}
    result = transpose(shape[-1], size, strides, padding, output_padding=extra, activation=activation, **settings)(
        inputs
    )
    return _crop(result, margins, dtype=options["dtype"])


def _kernel_size(layer: Any, options: dict[str, Any]) -> tuple[int, ...]:
    size, own = options["kernel_size"], tuple(layer.kernel_size)
    size = own if size is None else (size,) * len(own) if isinstance(size, int) else tuple(size)
    if len(size) != len(own) or any(wide < k for wide, k in zip(size, own, strict=True)):
        raise ValueError(
            f"Invalid value for `kernel_size`: expected at least {own}, that of layer {layer.name!r}, received "
            f"{options['kernel_size']}."
        )
    return size


def _margins(
    layer: Any, size: Sequence[int], strides: Sequence[int], lengths: Sequence[int], counts: Sequence[int]
) -> list[tuple[int, int]]:
    """How far windows of `size` reach beyond the image, before and behind each axis, centred where the layer's own are.

    Negative behind an image whose last pixels no window reaches.
    """
    margins = []
    axes = zip(lengths, counts, strides, layer.dilation_rate, layer.kernel_size, size, strict=True)
    for length, count, stride, dilation, k, wide in axes:
        reached = (count - 1) * stride + (k - 1) * dilation + 1
        before = max(reached - length, 0) // 2 if layer.padding == "same" else 0
        before += (wide - k) // 2 * dilation
        margins.append((before, reached + (wide - k) * dilation - before - length))
    return margins


def _crop(result: Any, margins: Sequence[tuple[int, int]], **settings: Any) -> Any:
    crops = [(before, max(behind, 0)) for before, behind in margins]
    if not any(map(any, crops)):
        return result
    return _CROPPING[len(crops)](crops if len(crops) > 1 else crops[0], **settings)(result)


inverts(_LAYERS.Conv1D)(functools.partial(_convolution, _LAYERS.Conv1DTranspose))
inverts(_LAYERS.Conv2D)(functools.partial(_convolution, _LAYERS.Conv2DTranspose))
inverts(_LAYERS.Conv3D)(functools.partial(_convolution, _LAYERS.Conv3DTranspose))


@inverts(LocallyConnected2D)
def _locally_connected(layer: Any, inputs: Any, shape: tuple, activation: Any, options: dict[str, Any]) -> Any:
    first, size = layer.data_format == "channels_first", _kernel_size(layer, options)
    lengths, padding, margins = (shape[1:] if first else shape[:-1]), layer.padding, []
    if size != layer.kernel_size:
        counts = inputs.shape[2:] if first else inputs.shape[1:-1]
        margins, padding = _margins(layer, size, layer.strides, lengths, counts), "valid"
        lengths = [before + length + max(behind, 0) for length, (before, behind) in zip(lengths, margins, strict=True)]
    result = LocallyConnected2DTranspose(
        shape[0] if first else shape[-1],
        size,
        layer.strides,
        output_size=lengths,
        padding=padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        activation=activation,
        kernel_initializer=options["kernel_initializer"],
        dtype=options["dtype"],
    )(inputs)
    return _crop(result, margins, dtype=options["dtype"], data_format=layer.data_format)


def _reshape(layer: Any, inputs: Any, shape: tuple, activation: Any, options: dict[str, Any]) -> Any:
    return _LAYERS.Reshape(shape, dtype=options["dtype"])(inputs)


def _upsampling(layer: Any, inputs: Any, shape: tuple, activation: Any, options: dict[str, Any]) -> Any:
    if options["pooling"] == "strided":
        return inputs
    if options["pooling"] != "upsample":
        raise ValueError(
            f"Invalid value for `pooling`: layer {layer.name!r} pools, which has no inverse; expected 'upsample' "
            f"(repeat each value over its window) or 'strided' (the convolution below strides over it), received "
            f"{options['pooling']!r}. Bartunov et al. 2018 stride instead of pooling."
        )
    result = _LAYERS.UpSampling2D(layer.strides, dtype=options["dtype"])(inputs)
    excess = [(have - want) for have, want in zip(result.shape[1:3], shape[:2], strict=True)]
    if any(have > 0 for have in excess):
        result = _LAYERS.Cropping2D([(0, max(have, 0)) for have in excess], dtype=options["dtype"])(result)
    if any(have < 0 for have in excess):
        result = _LAYERS.ZeroPadding2D([(0, max(-have, 0)) for have in excess], dtype=options["dtype"])(result)
    return result


def _nothing(layer: Any, inputs: Any, shape: tuple, activation: Any, options: dict[str, Any]) -> Any:
    return inputs


_BY_KIND = {
    "activation": _nothing,
    "dropout": _nothing,
    "normalization": _nothing,
    "pooling": _upsampling,
    "shaping": _reshape,
}
