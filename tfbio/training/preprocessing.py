"""Preprocessing on the device that knows whether it trains."""

import inspect
from collections.abc import Callable
from typing import Any

import keras

__all__ = ["Preprocessing"]


class Preprocessing(keras.layers.Layer):
    """A layer around a layer or function, or around nothing, that hands on whether it is called in training.

    Keras layers within, augmentation say, learn it as those of a model do; a function may have an argument `training`.
    The random state of a layer is among this one's variables; that of layers which a function merely calls is not.

    Args:
        function: a layer or function of the inputs; None returns them as they are.
    """

    def __init__(self, function: Callable[..., Any] | None):
        super().__init__(dtype="float32", autocast=False)  # what is done to inputs is `function`'s business
        self.function = function
        own = () if function is None or isinstance(function, keras.layers.Layer) else _parameters(function)
        self._takes_training = "training" in own
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        if self.function is None:
            return x
        return self.function(x, training=training) if self._takes_training else self.function(x)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # of what is not written in Python
        return ()
