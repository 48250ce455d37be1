"""What a run is, as plain data: two processes that make the same run describe it alike, and what differs can be named.

Keras numbers the names of layers by all that a process has made before (`dense_7`), so no description holds them: a
layer is known by its place in its model.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfbio.data import memory_of, stream_of

__all__ = ["batches", "differences", "nameless", "network"]

#: Where a class is defined, and what Keras derives from the rest: neither says what a network computes.
_LEFT_OUT = ("name", "module", "registered_name", "build_config", "compile_config")


def network(model: keras.Model) -> Any:
    """A model's architecture: every layer's settings, and how they are connected.

    Args:
        model: any Keras model.

    Returns:
        plain data without names; None for a model that Keras can't serialize. Of a lambda there is no more than that it
        is one, since its code holds the lines of the file that it was read from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a lambda is unsafe to load: nothing is
            config = keras.saving.serialize_keras_object(model)
    except (NotImplementedError, OSError, TypeError, ValueError):  # no `get_config`, or a lambda without a source file
        return None
    return _anonymous(config["config"], {})


def _anonymous(config: Any, places: Mapping[str, int]) -> Any:
    """`config` without names; where one layer refers to another, `places` says which of its model's layers that is."""
    if isinstance(config, (list, tuple)):
        if len(config) == 3 and isinstance(config[0], str) and all(type(entry) is int for entry in config[1:]):
            return [places.get(config[0], config[0]), *config[1:]]  # (layer, its call, the call's output)
        return [_anonymous(entry, places) for entry in config]
    if not isinstance(config, dict):
        return config
    kind = config.get("class_name")
    if kind == "__lambda__":
        return kind
    if kind == "DTypePolicy":  # the one thing that its name is all of
        return config["config"]["name"]
    if isinstance(config.get("layers"), list):
        places = {_name(layer): place for place, layer in enumerate(config["layers"])}
    return {key: _anonymous(value, places) for key, value in config.items() if key not in _LEFT_OUT}


def _name(layer: Any) -> str | None:
    return layer["config"].get("name") if isinstance(layer, dict) and "config" in layer else None


def batches(dataset: Any) -> dict[str, Any]:
    """What decides which batches an epoch has: their number and, of sets of `tfbio.data`, how they are made.

    Args:
        dataset: a training set, as `tfbio.data.load` or a function of the user's returns it.

    Returns:
        plain data. Whether pictures that can't be decoded are skipped is left out: it may be needed to go on.
    """
    source = memory_of(dataset) or stream_of(dataset)
    if source is None:
        count = int(dataset.cardinality()) if hasattr(dataset, "cardinality") else -1
        return {"steps_per_epoch": count if count >= 0 else None}
    return {"steps_per_epoch": source.steps_per_epoch, **source.settings}


def nameless(config: Any) -> Any:
    """Plain data without the names that Keras numbers by what else a process has made ("adam_5")."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "name" or not isinstance(value, str)}
        return {key: nameless(value) for key, value in kept.items()}
    return [nameless(entry) for entry in config] if isinstance(config, list) else config


def differences(before: Any, now: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two descriptions differ: the path to each value, and both. What one of them lacks counts as None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*now, *(key for key in before if key not in now)]:
            yield from differences(before.get(key), now.get(key), (*path, key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, pair in enumerate(zip(before, now, strict=True)):
            yield from differences(*pair, (*path, str(place)))
    elif before != now:
        yield path, before, now
