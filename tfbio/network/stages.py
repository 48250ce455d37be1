"""Cuts a plain Keras model into stages; every variable stays the user's own.

`stages` returns the same network as a chain of sub-models $f_1, …, f_L$ with $h_l = f_l(h_{l-1})$: what direct feedback
and target propagation work on. They share the model's layers, so what is trained through them *is* the model. Nested
models are looked into.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfbio.layers import is_exact
from tfbio.network.graph import check_graph, inlined, nodes

__all__ = ["stages"]


def stages(model: keras.Model, cuts: Sequence[str] | None = None) -> list[keras.Model]:
    """The model as a chain of sub-models that share its layers.

    A model can be cut at a tensor through which every path from input to output passes; residual blocks and other
    branches stay whole.

    Args:
        model: a functional or Sequential model with one output.
        cuts: names of layers to cut behind; None cuts before each weighted layer but the first, so that a stage is a
            weighted layer (or an embedding) with the activation, normalisation, pooling and reshaping that follow it,
            or a whole block.

    Returns:
        Models $f_1, …, f_L$ with $f_L(…f_1(x)) = $ `model(x)`, built, in order.

    Raises:
        ValueError: a cut is not in the model, or not a point where it can be cut; the message names the nearest ones.
    """
    check_graph(model)
    model = inlined(model)
    segments = _segments(model)
    if cuts is None:
        boundaries = _default_boundaries(segments)
    else:
        boundaries = [_boundary(model, segments, name) for name in cuts]
        if boundaries != sorted(set(boundaries)):
            raise ValueError(f"Invalid value for `cuts`: expected layers in the model's order, received {list(cuts)}.")
    inputs = model.inputs if len(model.inputs) > 1 else model.inputs[0]
    chain = []
    for number, boundary in enumerate([*boundaries, len(segments) - 1], 1):
        outputs = segments[boundary].tensor
        chain.append(keras.Model(inputs, outputs, name=f"{model.name}_stage_{number}"))
        inputs = outputs
    return chain


@dataclass(frozen=True)
class _Segment:
    """The layers between two neighbouring points at which a model can be cut, and the tensor at the second."""

    tensor: Any
    layers: tuple


def _segments(model: keras.Model) -> list[_Segment]:
    calls = nodes(model)
    last_use = {id(tensor): position for position, node in enumerate(calls) for tensor in node.inputs}
    last_use[id(model.outputs[0])] = len(calls)
    live = {id(tensor) for tensor in model.inputs}
    segments, layers = [], []
    for position, node in enumerate(calls):
        layers.append(node.layer)
        live |= {id(tensor) for tensor in node.outputs if id(tensor) in last_use}
        live = {tensor for tensor in live if last_use.get(tensor, -1) > position}
        if len(live) == 1 and len(node.outputs) == 1:  # all that comes later needs this tensor alone
            segments.append(_Segment(node.outputs[0], tuple(layers)))
            layers = []
    return segments


def _fills(layer: Any) -> bool:
    """True if a stage holds one such layer: what has kernels, and an embedding, for the next kernel is not its own."""
    return isinstance(layer, keras.layers.Embedding) or (isinstance(layer, keras.layers.Layer) and not is_exact(layer))


def _default_boundaries(segments: list[_Segment]) -> list[int]:
    boundaries, filled = [], False
    for position, segment in enumerate(segments):
        fills = any(map(_fills, segment.layers))
        if fills and filled:
            boundaries.append(position - 1)
        filled = filled or fills
    return boundaries


def _boundary(model: keras.Model, segments: list[_Segment], name: str) -> int:
    """The segment that ends with the layer called `name`, which must not be the last one."""
    ends = [segment.layers[-1].name for segment in segments]
    if name in ends[:-1]:
        return ends.index(name)
    position = next((i for i, s in enumerate(segments) if any(layer.name == name for layer in s.layers)), None)
    if position is None:
        near = difflib.get_close_matches(name, [layer.name for layer in model.layers], n=3)
        raise ValueError(f"Invalid value for `cuts`: the model has no layer {name!r}; near it: {near or ends[:-1]}.")
    nearest = ends[max(position - 1, 0) : min(position + 1, len(ends) - 1)]
    raise ValueError(
        f"Invalid value for `cuts`: the model can't be cut behind {name!r}, for other paths lead around it or it makes "
        f"the output. The nearest layers to cut behind: {nearest or ends[:-1]}."
    )
