"""What callbacks have come to, in checkpoints: the count of epochs without improvement, the best figure so far.

Keras's callbacks have no protocol for that, but keep such things in attributes. What is called like an argument of the
constructor is a setting (some are made ready only once figures come in). Of all else, what has changed since training
began is state. It is kept if it is plain data: numbers, strings, None, arrays, and lists and dicts of them.
"""

import base64
import inspect
import io
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = ["CallbackStates"]


class CallbackStates(tf.train.experimental.PythonState):
    """The states of the callbacks of a call to `fit`, as a part of a checkpoint.

    Callbacks are told apart by class, and by their order among those of one class.
    """

    def __init__(self):
        self._callbacks: list[keras.callbacks.Callback] = []
        self._begin: list[dict[str, str]] = []
        self._restored: dict[str, dict[str, str]] = {}

    def begin(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        """Follows these callbacks, which have seen `on_train_begin`, and gives them what a checkpoint held of them."""
        self._callbacks = list(callbacks)
        self._begin = [_attributes(callback) for callback in self._callbacks]
        restored, self._restored = self._restored, {}
        for name, callback in _named(self._callbacks):
            for attribute, value in restored.get(name, {}).items():
                setattr(callback, attribute, json.loads(value, object_hook=_array))

    def serialize(self) -> str:
        states = {}
        for (name, callback), begin in zip(_named(self._callbacks), self._begin, strict=True):
            now = _attributes(callback)
            states[name] = {attribute: value for attribute, value in now.items() if begin.get(attribute) != value}
        return json.dumps(states)

    def deserialize(self, string_value: str) -> None:
        self._restored = json.loads(string_value)


def _named(callbacks: list[keras.callbacks.Callback]) -> list[tuple[str, keras.callbacks.Callback]]:
    seen: Counter = Counter()
    named = []
    for callback in callbacks:
        kind = type(callback).__name__
        named.append((f"{kind}/{seen[kind]}", callback))
        seen[kind] += 1
    return named


def _attributes(callback: keras.callbacks.Callback) -> dict[str, str]:
    """The attributes that are plain data and no settings, as JSON."""
    settings, encoded = set(inspect.signature(type(callback).__init__).parameters), {}
    for name, value in vars(callback).items():
        if name in settings:
            continue
        try:
            encoded[name] = json.dumps(value, default=_plain)
        except (TypeError, ValueError):  # a model, a function, a file; a structure that holds itself
            continue
    return encoded


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        file = io.BytesIO()
        np.save(file, value)
        return {"__array__": base64.b64encode(file.getvalue()).decode()}
    raise TypeError


def _array(content: dict) -> Any:
    if set(content) != {"__array__"}:
        return content
    return np.load(io.BytesIO(base64.b64decode(content["__array__"])), allow_pickle=False)
