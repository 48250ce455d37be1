"""A loss for each output of a model, each with terms and a factor of its own."""

import copy
from typing import Any

import keras
import tensorflow as tf

from tfbio.losses.base import Loss, wide
from tfbio.losses.single import single
from tfbio.serialization import register

__all__ = ["PerOutput", "flatten", "for_model", "output_structure"]

Path = tuple[str | int, ...]


@register
class PerOutput(Loss):
    """A loss for each output. Dicts and lists of losses mean this class; write it out to give factors.

    Outputs without a loss (None, or left out of a dict) learn nothing from it.

    Args:
        losses: a dict by the names of outputs (by key, where the model returns a dict), or a list in their order, of
            whatever `tfbio.losses.get` takes; it may be nested as the outputs are.
        loss_weights: $λ_o$, in the structure of `losses`; None for 1 each.

    Raises:
        ValueError: an unknown loss, or factors that do not fit.
    """

    def __init__(self, losses: dict | list | tuple, loss_weights: dict | list | tuple | None = None):
        found = flatten(losses)
        if not any(found):
            raise ValueError(f"Invalid value for `losses`: expected losses in a dict or a list, received {losses!r}.")
        self._losses = [single(identifier) for identifier in found.values()]
        self._paths = list(found)  # in the outputs
        self._label_paths = [(path,) for path in found]  # in the labels: the first that is there
        self._structure, self._weights_structure = losses, loss_weights
        factors = None if loss_weights is None else flatten(loss_weights)
        if factors is not None and set(factors) != set(found):
            raise ValueError(
                f"Invalid value for `loss_weights`: expected a number for each loss, for {_names(found)}, received "
                f"{loss_weights}."
            )
        self.loss_weights = tuple(1.0 if factors is None else float(factors[path]) for path in found)
        self._names = [_name(path) for path in found]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"{name}_loss" for name in self._names)

    def bind(self, model: keras.Model) -> "PerOutput":
        """The loss for a model's outputs: where they are, and what they are called.

        Raises:
            ValueError: the model lacks an output that a loss is for.
        """
        structure = output_structure(model)
        if structure is None:
            return self  # a subclassed model does not show its outputs: paths are what they are
        names = getattr(model, "output_names", None) or [model.layers[-1].name]  # a Sequential does not say
        bound = copy.copy(self)
        bound._paths, bound._label_paths, bound._names = [], [], []
        for given in flatten(self._structure):
            path, name = given, _name(given)
            if isinstance(given[0], str) and not isinstance(structure, dict) and given[0] in names:
                path = (names.index(given[0]), *given[1:])
            elif isinstance(given[0], int) and not isinstance(structure, dict) and given[0] < len(names):
                name = _name((names[given[0]], *given[1:]))
            if not keras.tree.is_nested(structure) and path == (0,):
                path = ()
            if not _has(structure, path):
                known = list(structure) if isinstance(structure, dict) else names
                raise ValueError(
                    f"Invalid value for `loss`: expected losses for outputs of {model.name!r}, which are "
                    f"{', '.join(map(str, known))}, received one for {_name(given)}."
                )
            bound._paths.append(path)
            bound._label_paths.append((given, path, (name,)))
            bound._names.append(name)
        return bound

    def each(self, outputs: Any) -> list[tuple[Loss, Any]]:
        return [(loss, _at(outputs, path)) for loss, path in zip(self._losses, self._paths, strict=True)]

    def per_example(self, y: Any, outputs: Any) -> tf.Tensor:
        columns = [loss.per_example(*pair) for loss, *pair in self._with_labels(y, outputs)]
        dtype = tf.float64 if any(column.dtype == tf.float64 for column in columns) else tf.float32
        return tf.stack([tf.cast(column, dtype) for column in columns], axis=1)

    def count(self, y: Any, output_shape: Any) -> tuple[int, ...] | tf.Tensor:
        counts = [loss.count(*pair) for loss, *pair in self._with_labels(y, output_shape)]
        varying = next((count for count in counts if tf.is_tensor(count)), None)
        if varying is None:
            return tuple(counts)
        return tf.stack([tf.broadcast_to(tf.cast(count, tf.float32), tf.shape(varying)) for count in counts], axis=1)

    def factors(self, sample_weight: tf.Tensor, totals: tf.Tensor) -> tf.Tensor:
        factors = super().factors(tf.convert_to_tensor(sample_weight)[:, tf.newaxis], totals)
        return factors * tf.constant(self.loss_weights, factors.dtype)

    def weighted(self, values: Any, weights: tf.Tensor) -> Any:
        return self._nested(
            values, [loss.weighted(own, weights[:, n]) for n, (loss, own) in enumerate(self.each(values))]
        )

    def predict(self, outputs: Any) -> Any:
        return self._nested(outputs, [loss.predict(own) for loss, own in self.each(outputs)], wide)

    def error(self, y: Any, outputs: Any) -> Any:
        return self._nested(outputs, [loss.error(*pair) for loss, *pair in self._with_labels(y, outputs)])

    @property
    def figure_names(self) -> tuple[str, ...]:
        named = zip(self._names, self._losses, strict=True)
        return tuple(f"{name}_{figure}" for name, loss in named for figure in loss.figure_names)

    def figures(self, y: Any, outputs: Any) -> dict[str, tf.Tensor]:
        found = zip(self._names, self._with_labels(y, outputs), strict=True)
        return {
            f"{name}_{figure}": values
            for name, (loss, *pair) in found
            for figure, values in loss.figures(*pair).items()
        }

    def check_labels(self, y: Any, output_shape: Any) -> None:
        for loss, *pair in self._with_labels(y, output_shape):
            loss.check_labels(*pair)

    def described(self) -> str:
        return f"losses of several outputs ({', '.join(loss.described() for loss in self._losses)})"

    def get_config(self) -> dict:
        found = dict(zip(flatten(self._structure), self._losses, strict=True))
        return {
            "losses": _map_paths(self._structure, lambda path: keras.saving.serialize_keras_object(found[path])),
            "loss_weights": self._weights_structure,
        }

    def _with_labels(self, y: Any, outputs: Any) -> list[tuple[Loss, Any, Any]]:
        """`(loss, labels, outputs)` of each output. Output shapes may stand for outputs."""
        labels = [self._labels(y, paths) for paths in self._label_paths]
        return [(loss, own, output) for own, (loss, output) in zip(labels, self.each(outputs), strict=True)]

    def _labels(self, y: Any, paths: tuple[Path, ...]) -> Any:
        if not keras.tree.is_nested(y) and len(self._losses) == 1:
            return y
        for path in paths:
            if _has(y, path):
                return _at(y, path)
        raise ValueError(
            f"Invalid value for `y`: expected labels for each output with a loss, {', '.join(self._names)}, in a dict "
            f"or in the outputs' order, received {keras.tree.map_structure(lambda part: '*', y)}."
        )

    def _nested(self, outputs: Any, values: list, otherwise: Any = lambda output: tf.zeros_like(wide(output))) -> Any:
        """Values of the outputs that have a loss, in the structure of all outputs."""
        return _filled(outputs, dict(zip(self._paths, values, strict=True)), otherwise)


def for_model(loss: Loss, model: keras.Model) -> Loss:
    """The loss for a model: itself, or one that takes each of the model's outputs to its own.

    Raises:
        ValueError: the model lacks an output that a loss is for.
    """
    structure = output_structure(model)
    if keras.tree.is_nested(structure) and not loss.takes_all_outputs:
        loss = PerOutput(keras.tree.map_structure(lambda _: loss, structure))
    return loss.bind(model) if isinstance(loss, PerOutput) else loss


def with_weights(loss: Any, loss_weights: Any, model: keras.Model) -> Any:
    """The loss that Keras's `loss` and `loss_weights` of `compile` mean for a model.

    Args:
        loss: whatever `tfbio.losses.get` takes.
        loss_weights: a factor for each output, in the outputs' order or by name; None for `loss` as it is.
        model: a built model of several outputs.

    Raises:
        ValueError: the loss has factors already, or the model has one output, or factors do not fit.
    """
    if loss_weights is None:
        return loss
    structure = output_structure(model)
    whole = isinstance(loss, Loss) and loss.takes_all_outputs
    if whole or not keras.tree.is_nested(structure) or not isinstance(loss_weights, (dict, list, tuple)):
        raise ValueError(
            f"Invalid value for `loss_weights`: expected a number for each of a model's several outputs, in a list or "
            f"a dict, and a loss for each output, received {loss_weights!r} for {model.name!r} and {loss!r}. Scale a "
            "single loss through the learning rate; tfbio.losses.PerOutput has `loss_weights` of its own."
        )
    names = list(structure) if isinstance(structure, dict) else model.output_names
    if not any(flatten(loss)):
        loss = dict.fromkeys(names, loss)
    if isinstance(loss, dict) and not isinstance(loss_weights, dict):
        loss_weights = _by_name(loss_weights, names)
    elif isinstance(loss_weights, dict) and not isinstance(loss, dict):
        loss = _by_name(loss, names)
    return PerOutput(loss, loss_weights)


def output_structure(model: keras.Model) -> Any:
    """A model's outputs, nested as it returns them; None for a subclassed model, which does not show them."""
    outputs = getattr(model, "outputs", None)
    if not outputs:
        return None
    structure = outputs if isinstance(model, keras.Sequential) else model.output
    return structure[0] if isinstance(structure, (list, tuple)) and len(structure) == 1 else structure  # as calls do


def flatten(nested: Any, path: Path = ()) -> dict[Path, Any]:
    """What is nested by its path; configurations are leaves, and None is left out."""
    if _is_config(nested) or not isinstance(nested, (dict, list, tuple)):
        return {} if nested is None else {path: nested}
    items = nested.items() if isinstance(nested, dict) else enumerate(nested)
    return {key: value for step, inner in items for key, value in flatten(inner, (*path, step)).items()}


def _by_name(values: list | tuple, names: list[str]) -> dict[str, Any]:
    if len(values) != len(names):
        raise ValueError(
            f"Invalid value for `loss_weights`: expected losses and factors for each of {', '.join(names)}, received "
            f"{values}."
        )
    return dict(zip(names, values, strict=True))


def _map_paths(nested: Any, function: Any, path: Path = ()) -> Any:
    """The structure of `nested` with values that are a function of the path."""
    if _is_config(nested) or not isinstance(nested, (dict, list, tuple)):
        return None if nested is None else function(path)
    if isinstance(nested, dict):
        return {step: _map_paths(inner, function, (*path, step)) for step, inner in nested.items()}
    return [_map_paths(inner, function, (*path, step)) for step, inner in enumerate(nested)]


def _filled(nested: Any, values: dict[Path, Any], otherwise: Any, path: Path = ()) -> Any:
    if path in values:
        return values[path]
    if isinstance(nested, dict):
        return {step: _filled(inner, values, otherwise, (*path, step)) for step, inner in nested.items()}
    if isinstance(nested, (list, tuple)):
        return type(nested)([_filled(inner, values, otherwise, (*path, step)) for step, inner in enumerate(nested)])
    return otherwise(nested)


def _is_config(nested: Any) -> bool:
    return isinstance(nested, dict) and "class_name" in nested


def _has(nested: Any, path: Path) -> bool:
    for step in path:
        inside = isinstance(nested, dict) and step in nested
        if not inside and not (isinstance(nested, (list, tuple)) and isinstance(step, int) and step < len(nested)):
            return False
        nested = nested[step]
    return True


def _at(nested: Any, path: Path) -> Any:
    for step in path:
        nested = nested[step]
    return nested


def _name(path: Path) -> str:
    return "/".join(f"output_{step}" if isinstance(step, int) else step for step in path)


def _names(paths: Any) -> str:
    return ", ".join(map(_name, paths))
