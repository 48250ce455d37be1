"""A Keras model as a graph of layer calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfbio.keras_internals import is_functional, made_by
from tfbio.layers import is_weighted

__all__ = ["Node", "channel_axis", "check_graph", "check_one_output", "inlined", "nodes", "numbered", "submodel"]


def check_graph(model: keras.Model) -> None:
    """Refuses a model that has no graph of layers to walk.

    Raises:
        ValueError: a subclassed model, or an unbuilt one.
    """
    if not is_functional(model):
        raise ValueError(
            f"Invalid value for `model`: expected a functional or Sequential keras.Model, received the subclassed "
            f"{type(model).__name__}. This rule must see the graph of layers: build the model as "
            "keras.Model(inputs, outputs), or train it with a rule that needs no "
            "graph, such as tfbio.rules.FeedbackAlignment or Backpropagation."
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Invalid value for `model`: expected a built model, received the Sequential {model.name!r} without an "
            "input shape. Put keras.Input(shape) first."
        )


def check_one_output(model: keras.Model) -> None:
    """Refuses a graph with several outputs.

    Raises:
        ValueError: says how many there are.
    """
    if len(model.outputs) != 1:
        raise ValueError(f"Invalid value for `model`: expected one output, received {len(model.outputs)}.")


@dataclass(frozen=True)
class Node:
    """One call of one layer: its arguments as Keras recorded them, the tensors among them, and what it returned."""

    layer: Any
    arguments: Any
    inputs: tuple
    outputs: tuple


def nodes(model: keras.Model) -> list[Node]:
    """The calls of layers between the model's inputs and outputs, each after those that it needs."""
    ordered, done = [], {id(tensor) for tensor in model.inputs}
    stack = list(model.outputs)
    while stack:
        tensor = stack[-1]
        if id(tensor) in done:
            stack.pop()
            continue
        layer, node, _ = made_by(tensor)
        missing = [t for t in node.input_tensors if id(t) not in done]
        if missing:
            stack.extend(missing)
            continue
        tensors = tuple(node.input_tensors), tuple(node.output_tensors)
        ordered.append(Node(layer, node.arguments, *tensors))
        done.update(map(id, node.output_tensors))
    return ordered


def numbered(names: list[str]) -> list[str]:
    """`name`, and of those that come several times `name:0`, `name:1`, …"""
    return [
        name if names.count(name) == 1 else f"{name}:{names[:position].count(name)}"
        for position, name in enumerate(names)
    ]


def channel_axis(layers: Sequence[Any], rank: int) -> int:
    """The axis of the channels in what comes out of layers, without the batch: 0 or −1.

    Args:
        layers: those that come before, in the order of their calls. The last of them that has a `data_format`, or that
            puts its units last, decides; if there is none, Keras's own setting does for images.
        rank: number of the output's axes without the batch.
    """
    formats = [keras.config.image_data_format() if rank > 2 else "channels_last"]
    for layer in layers:
        data_format = getattr(layer, "data_format", None)
        if data_format is not None:
            formats.append(data_format)
        elif is_weighted(layer) or type(layer).__name__ in ("Permute", "Reshape", "Transpose"):
            formats.append("channels_last")
    return 0 if formats[-1] == "channels_first" else -1


def submodel(calls: list[Node], source: Any, target: Any, name: str) -> keras.Model:
    """The calls between two tensors as a model of their own, which shares the layers.

    The calls are made again, on a new input: `keras.Model(source, target)` takes *every* call of the layer that made
    `source` for the input.

    Args:
        calls: all calls that `target` needs and `source` does not, each after those that it needs.
        source: the tensor that stands for the model's input.
        target: the tensors that it returns, nested.
        name: of the model.
    """
    inputs = keras.Input(batch_shape=source.shape, dtype=source.dtype, sparse=source.sparse)
    made = {id(source): inputs}
    for call in calls:
        args, kwargs = call.arguments.fill_in(made)
        made.update(zip(map(id, call.outputs), keras.tree.flatten(call.layer(*args, **kwargs)), strict=True))
    return keras.Model(inputs, keras.tree.map_structure(lambda tensor: made[id(tensor)], target), name=name)


def inlined(model: keras.Model) -> keras.Model:
    """The same model with the layers of nested models as layers of its own.

    Args:
        model: a functional or Sequential model.

    Returns:
        A functional model on the same layers; `model` itself if it nests none.
    """
    if not any(isinstance(layer, keras.Model) and is_functional(layer) for layer in model.layers):
        return model

    def call(layer: Any, *args, **kwargs) -> Any:
        if isinstance(layer, keras.Model) and is_functional(layer):
            return inlined(layer).call(*args, **kwargs)  # not `layer(…)`, which would record one call of the whole
        return layer(*args, **kwargs)

    if isinstance(model, keras.Sequential):
        outputs = model.inputs[0]
        for layer in model.layers:
            outputs = call(layer, outputs)
        return keras.Model(model.inputs[0], outputs, name=model.name)
    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
