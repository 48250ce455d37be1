"""A Keras model as a graph of layer calls."""

from dataclasses import dataclass
from typing import Any

import keras

__all__ = ["Node", "check_graph", "inlined", "nodes"]


def check_graph(model: keras.Model) -> None:
    """Refuses a model that has no graph of layers to walk.

    Raises:
        ValueError: a subclassed model, an unbuilt one, or one with several outputs.
    """
    if not _is_functional(model):
        raise ValueError(
            f"Invalid value for `model`: expected a functional or Sequential keras.Model, received the subclassed "
            f"{type(model).__name__}. This rule must see the graph of layers: build the model as "
            "keras.Model(inputs, outputs), or train it with tfbio.rules.Backpropagation."
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Invalid value for `model`: expected a built model, received the Sequential {model.name!r} without an "
            "input shape. Put keras.Input(shape) first."
        )
    if len(model.outputs) != 1:
        raise ValueError(f"Invalid value for `model`: expected one output, received {len(model.outputs)}.")


def _is_functional(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


@dataclass(frozen=True)
class Node:
    """One call of one layer."""

    layer: Any
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
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        missing = [t for t in node.input_tensors if id(t) not in done]
        if missing:
            stack.extend(missing)
            continue
        ordered.append(Node(history.operation, tuple(node.input_tensors), tuple(node.output_tensors)))
        done.update(map(id, node.output_tensors))
    return ordered


def inlined(model: keras.Model) -> keras.Model:
    """The same model with the layers of nested models as layers of its own.

    Args:
        model: a functional or Sequential model.

    Returns:
        A functional model on the same layers; `model` itself if it nests none.
    """
    if not any(isinstance(layer, keras.Model) and _is_functional(layer) for layer in model.layers):
        return model

    def call(layer: Any, *args, **kwargs) -> Any:
        if isinstance(layer, keras.Model) and _is_functional(layer):
            return inlined(layer).call(*args, **kwargs)  # not `layer(…)`, which would record one call of the whole
        return layer(*args, **kwargs)

    if isinstance(model, keras.Sequential):
        outputs = model.inputs[0]
        for layer in model.layers:
            outputs = call(layer, outputs)
        return keras.Model(model.inputs[0], outputs, name=model.name)
    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
