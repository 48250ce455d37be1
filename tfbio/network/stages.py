"""Cuts a plain Keras model into stages; every variable stays the user's own.

`stages` returns the same network as a chain of sub-models $f_1, …, f_L$ with $h_l = f_l(h_{l-1})$: what direct feedback
and target propagation work on. They share the model's layers, so what is trained through them *is* the model. Nested
models are looked into.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio.keras_internals import call_losses, mask, with_mask
from tfbio.layers import is_exact
from tfbio.layers.traits import traits
from tfbio.network.graph import Node, check_graph, inlined, nodes, numbered, submodel

__all__ = ["Run", "named_stages", "run", "stages", "stop_gradient"]


def stages(model: keras.Model, cuts: Sequence[str] | None = None) -> list[keras.Model]:
    """The model as a chain of sub-models that share its layers.

    A model can be cut at a tensor through which every path from input to output passes; residual blocks and other
    branches stay whole.

    Args:
        model: a functional or Sequential model. The last stage makes all of its outputs.
        cuts: names of layers to cut behind, `"name:k"` for call k (from 0) of a layer that is called several times;
            None cuts before each weighted layer but the first, so that a stage is a weighted layer (or an embedding)
            with the activation, normalisation, pooling and reshaping that follow it, or a whole block.

    Returns:
        Models $f_1, …, f_L$ with $f_L(…f_1(x)) = $ `model(x)`, built, in order.

    Raises:
        ValueError: a cut is not in the model, or not a point where it can be cut; the message names the nearest ones.
    """
    return list(named_stages(model, cuts).values())


def named_stages(model: keras.Model, cuts: Sequence[str] | None = None) -> dict[str, keras.Model]:
    """`stages` by the names of the calls that they end with, each as `cuts` takes it."""
    check_graph(model)
    model = inlined(model)
    segments = _segments(model)
    if cuts is None:
        boundaries = _default_boundaries(segments)
    else:
        boundaries = [_boundary(segments, name) for name in cuts]
        if boundaries != sorted(set(boundaries)):
            raise ValueError(f"Invalid value for `cuts`: expected layers in the model's order, received {list(cuts)}.")
    chain, first = {}, 0
    for number, boundary in enumerate([*boundaries, len(segments) - 1], 1):
        segment, name = segments[boundary], f"{model.name}_stage_{number}"
        if first == 0:
            inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
            stage = keras.Model(inputs, segment.tensors, name=name)
        else:
            calls = [call for part in segments[first : boundary + 1] for call in part.calls]
            stage = submodel(calls, segments[first - 1].tensors, segment.tensors, name)
        chain[segment.labels[-1]] = stage
        first = boundary + 1
    return chain


class Run(NamedTuple):
    """What came of running stages one after the other.

    Attributes:
        inputs: of each stage.
        outputs: of each stage.
        losses: scalars: activity losses of every call, and each weight's regularization.
    """

    inputs: list[Any]
    outputs: list[Any]
    losses: list[tf.Tensor]


def run(stages: Sequence[keras.Model], x: Any, enter: Callable | None = None, training: bool = True) -> Run:
    """Runs stages one after the other.

    Args:
        stages: as `stages` returns them.
        x: inputs of the first, nested tensors `(batch, …)`.
        enter: what the next stage sees of a stage's output; None for `stop_gradient`.
        training: as for Keras.
    """
    inputs, outputs, losses, weights = [x], [], [], {}
    for stage in stages:
        outputs.append(stage(inputs[-1], training=training))
        inputs.append((enter or stop_gradient)(outputs[-1]) if stage is not stages[-1] else None)
        # Kept now, because a later stage that shares a layer drops the losses of the layer's calls before.
        regularized = [variable for variable in stage.trainable_variables if variable.regularizer is not None]
        losses += call_losses(stage)
        weights |= {id(variable): variable for variable in regularized}
    losses += [variable.regularizer(variable.value) for variable in weights.values()]
    return Run(inputs[:-1], outputs, losses)


def stop_gradient(h: tf.Tensor) -> tf.Tensor:
    """`h` as a constant, with its Keras mask if it has one."""
    return with_mask(tf.stop_gradient(h), mask(h))


@dataclass(frozen=True)
class _Segment:
    """The calls between two neighbouring points at which a model can be cut, their names, and the tensor behind.

    Behind the last segment are the model's outputs, nested.
    """

    tensors: Any
    calls: list[Node]
    labels: list[str]


def _segments(model: keras.Model) -> list[_Segment]:
    calls = nodes(model)
    last_use = {id(tensor): position for position, node in enumerate(calls) for tensor in node.inputs}
    returned = {id(tensor): len(calls) for tensor in model.outputs}
    last_use |= returned
    live = {id(tensor) for tensor in model.inputs}
    segments, names, first = [], numbered([call.layer.name for call in calls]), 0
    for position, node in enumerate(calls[:-1]):
        live |= {id(tensor) for tensor in node.outputs if id(tensor) in last_use}
        live = {tensor for tensor in live if last_use.get(tensor, -1) > position}
        if len(live) == 1 and not live & returned.keys():
            # All that comes later needs this tensor alone, which is new, because the call is of some use.
            tensor = next(tensor for tensor in node.outputs if id(tensor) in live)
            part = slice(first, position + 1)
            segments.append(_Segment(tensor, calls[part], names[part]))
            first = position + 1
    outputs = model.outputs[0] if len(model.outputs) == 1 else model.output
    return [*segments, _Segment(outputs, calls[first:], names[first:])]


def _fills(layer: Any) -> bool:
    """True if a stage holds one such layer: what has kernels, and an embedding, for the next kernel is not its own."""
    return traits(layer).kind == "embedding" or (isinstance(layer, keras.layers.Layer) and not is_exact(layer))


def _default_boundaries(segments: list[_Segment]) -> list[int]:
    boundaries, filled = [], False
    for position, segment in enumerate(segments):
        fills = any(_fills(call.layer) for call in segment.calls)
        if fills and filled:
            boundaries.append(position - 1)
        filled = filled or fills
    return boundaries


def _boundary(segments: list[_Segment], name: str) -> int:
    """The segment that ends with the call of this name, which must not be the last one."""
    ends = [segment.labels[-1] for segment in segments]
    if name in ends[:-1]:
        return ends.index(name)
    position = next((i for i, segment in enumerate(segments) if name in segment.labels), None)
    if position is None:
        known = [label for segment in segments for label in segment.labels]
        if several := [label for label in known if label.rpartition(":")[0] == name]:
            raise ValueError(
                f"Invalid value for `cuts`: layer {name!r} is called {len(several)} times; expected one of its calls, "
                f"{', '.join(map(repr, several))}."
            )
        near = difflib.get_close_matches(name, known, n=3)
        raise ValueError(f"Invalid value for `cuts`: the model has no layer {name!r}; near it: {near or ends[:-1]}.")
    nearest = ends[max(position - 1, 0) : min(position + 1, len(ends) - 1)]
    raise ValueError(
        f"Invalid value for `cuts`: the model can't be cut behind {name!r}, because other paths lead around it or it "
        f"makes the output. The nearest layers to cut behind: {nearest or ends[:-1]}."
    )
