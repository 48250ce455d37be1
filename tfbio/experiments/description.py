"""Describes runs as plain data, so that two runs can be compared and the difference can be named.

A description holds no names of layers, because Keras numbers them by what else a process has made (`dense_7`). It
identifies a layer by its index in its model.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfbio import losses
from tfbio.data import memory_of, stream_of

__all__ = ["batches", "differences", "loss", "nameless", "network", "preprocessing", "upgraded"]

#: Where a class is defined, and what Keras derives from other keys: they don't change what a network computes.
_LEFT_OUT = ("name", "module", "registered_name", "build_config", "compile_config")


def network(model: keras.Model) -> Any:
    """Describes a model's architecture: every layer's settings, and how they are connected.

    Args:
        model: any Keras model.

    Returns:
        Plain data without names; None for a model that Keras can't serialize. A lambda is described as a lambda only,
        because its code holds the line numbers of its source file.
    """
    config = _serialized(model)
    return None if config is None else _anonymous(config["config"], {})


def loss(loss: losses.Loss) -> dict[str, Any]:
    """Describes a loss, with all its options.

    Args:
        loss: as the user gave it: for a model, it would have the names of the outputs, which Keras may have numbered.

    Returns:
        Plain data; the class alone for a loss that Keras can't serialize.
    """
    config = _serialized(loss)
    options = {} if config is None else _anonymous(config["config"], {})
    return {"class_name": type(loss).__name__, **options}


def upgraded(found: dict[str, Any]) -> dict[str, Any]:
    """Returns a description in today's form. Earlier ones name the loss's class alone, when losses had no options."""
    names = [cls.__name__ for cls in (losses.MeanSquaredError, losses.SigmoidCrossEntropy, losses.SoftmaxCrossEntropy)]
    if found.get("loss") in names:
        return {**found, "loss": loss(losses.get(found["loss"]))}
    return found


def preprocessing(part: Any) -> Any:
    """Describes what is applied to inputs: the settings of a layer, the name of a function, None for nothing."""
    if part is None or hasattr(part, "get_config"):
        return part and part.get_config()
    return getattr(part, "__qualname__", type(part).__name__)


def _serialized(thing: Any) -> dict[str, Any] | None:
    """Returns what Keras makes of an object, None if it can't."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says that a lambda is unsafe to load; nothing is loaded
            return keras.saving.serialize_keras_object(thing)
    except (NotImplementedError, OSError, TypeError, ValueError):  # no `get_config`, or a lambda without a source file
        return None


def _anonymous(config: Any, places: Mapping[str, int]) -> Any:
    """Returns `config` without names. A reference to a layer becomes its index, which `places` maps names to."""
    if isinstance(config, (list, tuple)):
        if len(config) == 3 and isinstance(config[0], str) and all(type(entry) is int for entry in config[1:]):
            return [places.get(config[0], config[0]), *config[1:]]  # (layer, its call, the call's output)
        return [_anonymous(entry, places) for entry in config]
    if not isinstance(config, dict):
        return config
    kind = config.get("class_name")
    if kind == "__lambda__":
        return kind
    if kind == "DTypePolicy":  # its name says all
        return config["config"]["name"]
    if isinstance(config.get("layers"), list):
        places = {_name(layer): place for place, layer in enumerate(config["layers"])}
    return {key: _anonymous(value, places) for key, value in config.items() if key not in _LEFT_OUT}


def _name(layer: Any) -> str | None:
    return layer["config"].get("name") if isinstance(layer, dict) and "config" in layer else None


def batches(dataset: Any) -> dict[str, Any]:
    """Describes the batches of an epoch: their number and, for sets of `tfbio.data`, how they are made.

    Args:
        dataset: a training set, as `tfbio.data.load` or the user's own function returns it.

    Returns:
        Plain data. It leaves out whether pictures that can't be decoded are skipped, because that may have to change
        before a run can continue.
    """
    source = memory_of(dataset) or stream_of(dataset)
    if source is None:
        count = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -1
        return {"steps_per_epoch": count if count >= 0 else None}
    return {"steps_per_epoch": source.steps_per_epoch, **source.settings}


def nameless(config: Any) -> Any:
    """Returns plain data without the names that Keras numbers by what else a process has made ("adam_5")."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "name" or not isinstance(value, str)}
        return {key: nameless(value) for key, value in kept.items()}
    return [nameless(entry) for entry in config] if isinstance(config, list) else config


def differences(before: Any, now: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yields where two descriptions differ: the path to a value, and both values. A missing value counts as None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            yield from differences(before.get(key), now.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, (*path, str(place)))
    elif before != now:
        yield path, before, now
