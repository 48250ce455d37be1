"""Objects by name: how `"fa"`, a class name, a config dictionary or an object all become the same object.

Every rule, feedback, layer and loss is registered with Keras under the package name `tfbio`, so that Keras's own
`keras.saving.serialize_keras_object` and `deserialize_keras_object` carry it; this module adds the short names. What
users register keeps the name of their own package.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import keras

__all__ = ["each_registered", "register", "resolve"]

T = TypeVar("T", bound=Callable)

_registered: list[Callable] = []
_listeners: list[Callable[[Callable], None]] = []


def register(thing: T) -> T:
    """Registers a class or function with Keras and, for the console command, with gin. It is a decorator.

    Keras gets what it can save: functions, and classes with a `get_config`. The name there is
    `"<top-level module>><name>"`, and `<module>.<name>` in gin, where `@<name>` is enough.

    Args:
        thing: a class or function of your own, defined at the top level of a module: a data set, network, rule, loss,
            layer, schedule, metric, callback.

    Returns:
        `thing` itself, unchanged.
    """
    if not inspect.isclass(thing) or hasattr(thing, "get_config"):
        keras.saving.register_keras_serializable(thing.__module__.partition(".")[0])(thing)
    _registered.append(thing)
    for listener in _listeners:
        listener(thing)
    return thing


def each_registered(listener: Callable[[Callable], None]) -> None:
    """Calls `listener` with everything that is registered, now and later. So no lower floor knows of gin."""
    _listeners.append(listener)
    for thing in _registered:
        listener(thing)


def resolve(identifier: Any, base: type, names: Mapping[str, type | Mapping], argument: str) -> Any:
    """Returns the object that `identifier` means.

    Args:
        identifier: an instance of `base`, a subclass of it, a name in `names`, a class name of one of its values, or a
            dictionary: Keras's serialized form, or `{"class_name": name, "config": {…}}` with any of these names.
        base: the class that the result must be an instance of.
        names: short name → class, or → dictionary that says which class with which arguments.
        argument: the name of the argument to speak of in errors.

    Returns:
        An instance of `base`.

    Raises:
        ValueError: nothing of that name is known; the message lists what is.
    """
    if isinstance(identifier, base):
        return identifier
    if inspect.isclass(identifier) and issubclass(identifier, base):
        return identifier()
    classes = {**{cls.__name__: cls for cls in names.values() if inspect.isclass(cls)}, **names}
    if isinstance(identifier, str) and identifier in classes:
        return resolve(classes[identifier], base, names, argument)
    if isinstance(identifier, Mapping) and "class_name" in identifier:
        name = str(identifier["class_name"]).rpartition(">")[2]
        cls = (
            keras.saving.get_registered_object(identifier.get("registered_name"))  # first: it may be the user's own
            or classes.get(name)
            or keras.saving.get_registered_object(f"tfbio>{name}")
        )
        if inspect.isclass(cls) and issubclass(cls, base):
            return cls.from_config(dict(identifier.get("config", {})))
    raise ValueError(
        f"Invalid value for `{argument}`: expected a {base.__name__}, its config, or one of "
        f"{', '.join(sorted(classes))}, received {identifier!r}."
    )
