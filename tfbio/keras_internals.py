"""The private parts of Keras that tfbio touches, in one place. Seen in Keras 3.15."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

__all__ = [
    "attributes",
    "changed",
    "children",
    "input_shapes",
    "is_functional",
    "is_quantized",
    "is_rematerialized",
    "learning_rate_schedule",
    "loss_arguments",
    "mask",
    "replaced_call",
]

# Layers and models


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that a layer holds itself, in the order in which it was given them."""
    return layer._flatten_layers(include_self=False, recursive=False)


def is_functional(model: Any) -> bool:
    """True if the model is a graph of layers: functional or Sequential."""
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


def is_rematerialized(layer: keras.layers.Layer) -> bool:
    """True if the layer was made in a `keras.RematScope`: its call is run again, out of our sight, going back."""
    return getattr(layer, "_remat_mode", None) is not None


def is_quantized(layer: keras.layers.Layer) -> bool:
    """True if Keras runs the layer's `quantized_call` in the place of its `call`."""
    return getattr(layer, "quantization_mode", None) is not None


def input_shapes(model: keras.Model) -> Any:
    """The shapes that a subclassed model was built for, nested as its inputs are; None if it does not know them."""
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    return shapes[0] if len(shapes) == 1 else shapes or None


def learning_rate_schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """The schedule that an optimizer was given; otherwise the variable that holds its learning rate, or None."""
    return getattr(optimizer, "_learning_rate", None)


def loss_arguments(loss: keras.losses.Loss) -> dict[str, Any]:
    """The arguments that a Keras loss hands to its function; some are not in its configuration (Huber's `delta`)."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def mask(tensor: Any) -> Any:
    """The mask that Keras's layers have put on their output `tensor`; None without any."""
    return getattr(tensor, "_keras_mask", None)


@contextlib.contextmanager
def changed(layer: keras.layers.Layer, attribute: str, value: Any) -> Iterator[None]:
    """Gives an attribute of `layer` another value while its call is traced, if the layer has that attribute."""
    if not hasattr(layer, attribute):
        yield
        return
    before = getattr(layer, attribute)
    setattr(layer, attribute, value)
    try:
        yield
    finally:
        setattr(layer, attribute, before)


@contextlib.contextmanager
def attributes(layer: keras.layers.Layer, **values: Any) -> Iterator[None]:
    """Gives attributes of `layer` other values while its call is traced, behind Keras's tracker."""
    own = vars(layer)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values.keys() - before.keys():
            own.pop(name)
        own.update(before)


def replaced_call(layer: keras.layers.Layer, call: Callable) -> Callable[[], None]:
    """Puts `call` in the place of the layer's own; returns a function that puts things back.

    `Layer.__call__` looks `self.call` up on the instance. The attribute is not set through Keras's tracker, so that
    nothing else sees it.
    """
    attributes = vars(layer)
    before = attributes.get("call")
    attributes["call"] = call

    def restore() -> None:
        if before is None:
            attributes.pop("call", None)
        else:
            attributes["call"] = before

    return restore
