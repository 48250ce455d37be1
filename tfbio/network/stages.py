"""Cuts and rewires a plain Keras model; every variable stays the user's own.

`with_feedback` returns the same network with every weighted layer wrapped in `Feedback`. `stages` returns the same
network as a chain of sub-models $f_1, …, f_L$ with $h_l = f_l(h_{l-1})$: what direct feedback and target propagation
work on. Both share the model's layers, so what is trained through them *is* the model. Both look inside nested models.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio import feedback as feedback_weights
from tfbio.layers import Feedback, is_exact, is_weighted
from tfbio.network.graph import Node, check_graph, inlined, labels, nodes, submodel

__all__ = ["Run", "named_stages", "output_layers", "run", "stages", "stop_gradient", "with_feedback"]


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
            stage = keras.Model(inputs, segment.tensor, name=name)
        else:
            calls = [call for part in segments[first : boundary + 1] for call in part.calls]
            stage = submodel(calls, segments[first - 1].tensor, segment.tensor, name)
        chain[segment.labels[-1]] = stage
        first = boundary + 1
    return chain


class Run(NamedTuple):
    """What came of running stages one after the other.

    Attributes:
        inputs: of each stage: constants.
        outputs: of each stage.
        losses: scalars: activity losses of every call, and each weight's regularization.
    """

    inputs: list[Any]
    outputs: list[tf.Tensor]
    losses: list[tf.Tensor]


def run(stages: Sequence[keras.Model], x: Any, watch: Callable[[tf.Tensor], None] = lambda h: None) -> Run:
    """Runs stages one after the other, as in training, none of which sees the ones before it.

    Args:
        stages: as `stages` returns them.
        x: inputs of the first, nested tensors `(batch, …)`.
        watch: called with the input of the last stage before it runs.
    """
    inputs, outputs, losses, weights = [], [x], [], {}
    for stage in stages:
        inputs.append(tf.nest.map_structure(stop_gradient, outputs[-1]))
        if stage is stages[-1]:
            watch(inputs[-1])
        outputs.append(stage(inputs[-1], training=True))
        # Kept now, because a later stage that shares a layer drops the losses of the layer's calls before.
        regularized = [variable for variable in stage.trainable_variables if variable.regularizer is not None]
        losses += stage.losses[: -len(regularized) or None]
        weights |= {id(variable): variable for variable in regularized}
    return Run(inputs, outputs[1:], losses + [variable.regularizer(variable.value) for variable in weights.values()])


def stop_gradient(h: tf.Tensor) -> tf.Tensor:
    """`h` as a constant, with its Keras mask if it has one."""
    constant, mask = tf.stop_gradient(h), getattr(h, "_keras_mask", None)
    if mask is not None:
        constant._keras_mask = mask
    return constant


@dataclass(frozen=True)
class _Segment:
    """The calls between two neighbouring points at which a model can be cut, their names, and the tensor behind."""

    tensor: Any
    calls: list[Node]
    labels: list[str]


def _segments(model: keras.Model) -> list[_Segment]:
    calls = nodes(model)
    last_use = {id(tensor): position for position, node in enumerate(calls) for tensor in node.inputs}
    last_use[id(model.outputs[0])] = len(calls)
    live = {id(tensor) for tensor in model.inputs}
    segments, names, first = [], labels(calls), 0
    for position, node in enumerate(calls):
        live |= {id(tensor) for tensor in node.outputs if id(tensor) in last_use}
        live = {tensor for tensor in live if last_use.get(tensor, -1) > position}
        if len(live) == 1:  # all that comes later needs this tensor alone, which is new: the call is of some use
            tensor = next(tensor for tensor in node.outputs if id(tensor) in live)
            part = slice(first, position + 1)
            segments.append(_Segment(tensor, calls[part], names[part]))
            first = position + 1
    return segments


def _fills(layer: Any) -> bool:
    """True if a stage holds one such layer: what has kernels, and an embedding, for the next kernel is not its own."""
    return isinstance(layer, keras.layers.Embedding) or (isinstance(layer, keras.layers.Layer) and not is_exact(layer))


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
