"""Cuts and rewires a plain Keras model; every variable stays the user's own.

`with_feedback` returns the same network with every weighted layer wrapped in `Feedback`. `stages` returns the same
network as a chain of sub-models $f_1, …, f_L$ with $h_l = f_l(h_{l-1})$: what direct feedback and target propagation
work on. Both share the model's layers, so what is trained through them *is* the model. Both look inside nested models.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfbio import feedback as feedback_weights
from tfbio.layers import Feedback, is_exact, is_weighted
from tfbio.network.graph import check_graph, inlined, nodes

__all__ = ["output_layers", "stages", "with_feedback"]


def output_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The last weighted layers: those from which no other weighted layer is reached on the way to the output."""
    found, stack, seen = {}, list(model.outputs), set()
    maker = {id(tensor): node for node in nodes(model) for tensor in node.outputs}
    while stack:
        node = maker.get(id(stack.pop()))
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if is_weighted(node.layer):
            found[id(node.layer)] = node.layer
        else:
            stack.extend(node.inputs)
    return list(found.values())


def with_feedback(
    model: keras.Model,
    feedback: Any,
    last_layer: Any = "symmetric",
    allow_backpropagation: Iterable[str] = (),
) -> keras.Model:
    """The same model with every weighted layer's backward pass on feedback weights.

    Args:
        model: a functional or Sequential model with one output. It is not changed.
        feedback: a `tfbio.feedback` object, name or config, for the weighted layers.
        last_layer: the same for the layer that makes the output. `"symmetric"` sends the exact error to the layer
            below, as the code of Xiao et al. 2018 does; `"same"` uses `feedback` there too, as Lillicrap et al. 2016.
        allow_backpropagation: names of layers that can't be treated and shall keep their own derivative.

    Returns:
        A model whose layers are `Feedback` wrappers around the original layers (and the original layers, where they
        have no kernels): all variables of `model` are shared; feedback variables are added, non-trainable.

    Raises:
        ValueError: a layer has weights that mix its inputs and can't be treated; a name that is not in the model.
    """
    check_graph(model)
    model = inlined(model)
    feedback = feedback_weights.get(feedback)
    last_feedback = feedback if last_layer == "same" else feedback_weights.get(last_layer)
    last = {id(layer) for layer in output_layers(model)}
    allowed, names, count = set(allow_backpropagation), set(), 0

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        nonlocal count
        names.add(layer.name)
        if layer.name in allowed or is_exact(layer):
            return layer
        if not is_weighted(layer):
            raise ValueError(
                f"Invalid value for `model`: layer {layer.name!r} ({type(layer).__name__}) has weights that mix its "
                f"inputs, and no feedback is known for them. Pass allow_backpropagation=({layer.name!r},) to keep its "
                "exact derivative, or give the class a `feedback_kernels` attribute (see tfbio.layers.traits)."
            )
        count += 1
        return Feedback(layer, last_feedback if id(layer) in last else feedback, index=count - 1)

    result = keras.models.clone_model(model, clone_function=clone)
    if unknown := allowed - names:
        raise ValueError(
            f"Invalid value for `allow_backpropagation`: expected names of layers of {model.name!r}, received "
            f"{sorted(unknown)}; the model has {sorted(names)}."
        )
    return result


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
