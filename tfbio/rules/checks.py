"""Checks the models that rules are built with."""

import logging
from typing import Any

import keras
import tensorflow as tf

from tfbio import losses
from tfbio.keras_internals import all_layers, made_by
from tfbio.layers.traits import traits
from tfbio.network.instrumented import input_spec

__all__ = ["build_layers", "check_logits", "check_model"]

_LINEAR = keras.activations.linear
_LOG = logging.getLogger("tfbio")


def check_model(model: Any) -> None:
    """Refuses what is no built model.

    Raises:
        ValueError: says what to pass instead.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Invalid value for `model`: expected a keras.Model, received {model!r}.")
    if not model.built:
        raise ValueError(
            f"Invalid value for `model`: expected a built model, received {model.name!r}, which has no variables yet. "
            "Give it a keras.Input, or call it on a batch, first."
        )


def build_layers(model: keras.Model) -> None:
    """Builds layers within layers that Keras builds at their first call, such as a PReLU as a layer's activation.

    Keras's `fit` meets them in its first step; whoever differentiates has to know all variables before.
    """
    if all(layer.built for layer in all_layers(model)):
        return
    specs = input_spec(model)
    if all(None not in spec.shape[1:] for spec in tf.nest.flatten(specs)):
        model(tf.nest.map_structure(lambda spec: tf.zeros([2, *spec.shape[1:]], spec.dtype), specs), training=False)


def check_logits(model: keras.Model, loss: losses.Loss) -> None:
    """Refuses a model one of whose outputs ends in the activation that its loss contains already.

    Raises:
        ValueError: says what to pass instead.
    """
    structure = losses.output_structure(model)
    if structure is None:
        return  # a subclassed model shows no last layer
    for own, output in loss.each(structure):
        for tensor in keras.tree.flatten(output):
            _check_activation(model, own, tensor)


def _check_activation(model: keras.Model, loss: losses.Loss, tensor: Any) -> None:
    layer = _output_layer(tensor)
    activation = getattr(layer, "activation", layer)  # a layer may have another one as its activation, or be one
    activation = getattr(activation, "__name__", type(activation).__name__).lower().removesuffix("_v2")  # tf.nn's
    if activation.replace("_", "") in {name.replace("_", "") for name in loss.contains}:  # keras.ops say LogSoftmax
        raise ValueError(
            f"Invalid value for `model`: expected logits as output, because {type(loss).__name__} contains the output "
            f"activation; layer {layer.name!r} of {model.name!r} ends in {activation}. Build it without: activation="
            "None (in keras.applications: classifier_activation=None)."
        )
    if loss.takes_probabilities and getattr(layer, "activation", None) is _LINEAR:
        _LOG.warning(
            f"{loss.described()} takes probabilities, and {layer.name!r} of {model.name!r} has no activation. Pass the "
            "loss with from_logits=True, or 'softmax_cross_entropy' or 'sigmoid_cross_entropy'."
        )


def _output_layer(tensor: Any) -> Any:
    """The layer whose values an output has, looking into nested models and through what only passes them on."""
    while True:
        layer, node, number = made_by(tensor)
        if isinstance(layer, keras.Model) and getattr(layer, "outputs", None):
            tensor = layer.outputs[number]
        elif traits(layer).kind == "shaping" or (
            isinstance(layer, keras.layers.Activation) and layer.activation is _LINEAR
        ):
            tensor = node.input_tensors[0]
        else:
            return layer
