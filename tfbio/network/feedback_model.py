"""A model whose weighted layers have other weights in the backward pass, wherever they are called."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio import feedback as feedback_weights
from tfbio.keras_internals import is_quantized, is_rematerialized
from tfbio.layers import Feedback
from tfbio.layers.traits import is_exact, is_known_affine, is_weighted, kernels, traits
from tfbio.network.instrumented import Call, instrumented, trace, walk
from tfbio.network.probes import is_affine, mixes_inputs, own_weights
from tfbio.serialization import register

__all__ = ["FeedbackModel", "matching", "output_layers", "with_feedback"]


def matching(path: str, layers: Sequence[keras.layers.Layer], patterns: Iterable[Any]) -> set[Any]:
    """Those of `patterns` that mean a layer, or a layer that it is in.

    Args:
        path: the names that lead to the layer, `encoder/attention/query`.
        layers: the layers on this path, the layer itself last.
        patterns: names, paths, or patterns of these (`"encoder/*"`); classes of layers, or their names.
    """
    parts, found = path.split("/"), set()
    for number, layer in enumerate(layers, 1):
        names = ("/".join(parts[:number]), layer.name, *(cls.__name__ for cls in type(layer).__mro__))
        for pattern in patterns:
            if isinstance(pattern, type):
                if isinstance(layer, pattern):
                    found.add(pattern)
            elif any(fnmatch.fnmatchcase(name, pattern) for name in names):
                found.add(pattern)
    return found


@register
class FeedbackModel(keras.Model):
    """A model that runs as `model` does and shares all its variables; its errors go back through feedback weights.

    Arguments are those of `with_feedback`.

    Attributes:
        model: the user's model.
        feedback_layers: a `Feedback` wrapper for each weighted layer, in the order of the layers' first calls.
    """

    def __init__(
        self,
        model: keras.Model,
        feedback: Any,
        last_layer: Any = "symmetric",
        allow_backpropagation: Iterable[Any] = (),
        output_layers: Iterable[Any] | None = None,
        **kwargs,
    ):
        kwargs.setdefault("dtype", model.dtype_policy)
        kwargs.setdefault("name", f"{model.name}_feedback")
        super().__init__(**kwargs)
        self.model = model
        self.feedback = feedback_weights.get(feedback)
        self.last_layer = last_layer if last_layer == "same" else feedback_weights.get(last_layer)
        self.allow_backpropagation = tuple(allow_backpropagation)
        self.output_layers = None if output_layers is None else tuple(output_layers)
        self.feedback_layers = self._wrap()
        self._treatments = {each.layer: _through(each) for each in self.feedback_layers}
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        called: set[int] = set()

        def counted(key: int, treatment: Callable) -> Callable:
            def count(*args, **kwargs):
                called.add(key)
                return treatment(*args, **kwargs)

            return count

        with instrumented({layer: counted(id(layer), each) for layer, each in self._treatments.items()}):
            outputs = self.model(inputs, training=training)
        missed = [layer.name for layer in self._treatments if id(layer) not in called]
        if training and missed:
            raise ValueError(
                f"Invalid value for `model`: the calls of layers {missed} can't be seen, probably because the model "
                f"{self.model.name!r} makes them in a tf.function of its own. Remove the tf.function: whoever trains "
                "makes a graph of the whole step."
            )
        return outputs

    def _wrap(self) -> list[Feedback]:
        found = _Found(self.model, self.allow_backpropagation)
        last = found.last(self.output_layers) if self.last_layer != "same" else []
        last_ids = {id(layer) for layer in last}
        wrappers = []
        for number, layer in enumerate(found.treated):
            wrapper = Feedback(layer, self.last_layer if id(layer) in last_ids else self.feedback, index=number)
            wrapper.build(found.input_shape(layer))
            wrappers.append(wrapper)
        return wrappers

    def get_config(self) -> dict[str, Any]:
        plain = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "model": plain(self.model),
            "feedback": plain(self.feedback),
            "last_layer": self.last_layer if self.last_layer == "same" else plain(self.last_layer),
            "allow_backpropagation": [p.__name__ if isinstance(p, type) else p for p in self.allow_backpropagation],
            "output_layers": self.output_layers,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FeedbackModel":
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def _through(feedback: Feedback) -> Callable:
    """What the call of a feedback's layer becomes."""

    def treatment(call: Callable, inputs: Any, *args, **kwargs):
        if not _is_floating(inputs):
            return call(inputs, *args, **kwargs)  # rows of a table, by number: no error goes back to numbers
        return feedback.call(inputs, *args, **kwargs)

    return treatment


class _Found:
    """The layers of a model that get feedback, found by running it once symbolically.

    Attributes:
        trace: how the model calls its layers with weights.
        treated: those that get feedback, in the order of their first calls.

    Raises:
        ValueError: there are layers that can't be treated, all of which are named; or a pattern that means no layer.
    """

    def __init__(self, model: keras.Model, allowed: Sequence[Any]):
        self._model = model
        wrapped = {id(child) for _, layers in walk(model) if isinstance(layers[-1], Feedback) for child in layers}
        self._places = {
            id(layers[-1]): (path, layers)
            for path, layers in walk(model)
            if own_weights(layers[-1]) and not any(id(layer) in wrapped for layer in layers)
        }
        for unseen, why, instead in (
            (is_rematerialized, "are called again in the backward pass (keras.RematScope)", "Make them outside of it"),
            (is_quantized, "are quantized, and run by other code than their call", "Train before quantizing"),
        ):
            if paths := [path for path, layers in walk(model) if unseen(layers[-1])]:
                raise ValueError(
                    f"Invalid value for `model`: expected layers whose calls can be seen, received {paths}, which "
                    f"{why}. {instead}."
                )
        self.trace = trace(model, [layers[-1] for _, layers in self._places.values()])
        called = list({id(call.layer): call.layer for call in self.trace.calls}.values())
        reached = {id(call.layer) for call in self.trace.calls if _takes_errors(call)}
        self._weighted = [layer for layer in called if is_weighted(layer) and id(layer) in reached]
        exempt = self._meant(allowed, "allow_backpropagation")
        refused = {}
        for layer in called:
            if id(layer) not in exempt and (reason := self._objection(layer)):
                path, place = self._named(layer)
                refused[path] = f"({type(place).__name__}) {reason}"
        if refused:
            raise ValueError(
                f"Invalid value for `model`: expected layers that feedback weights can be given to, received "
                f"{len(refused)} that have none: {'; '.join(f'{path!r} {why}' for path, why in refused.items())}. Pass "
                f"allow_backpropagation={tuple(refused)} to keep their exact derivatives; it takes names, patterns "
                "and classes."
            )
        self.treated = [layer for layer in self._weighted if id(layer) not in exempt]

    def _meant(self, patterns: Sequence[Any], argument: str) -> set[int]:
        """The ids of the layers that `patterns` mean."""
        means = {key: matching(*place, patterns) for key, place in self._places.items()}
        if unknown := set(patterns).difference(*means.values()):
            names = [path for path, _ in self._places.values()]
            raise ValueError(
                f"Invalid value for `{argument}`: expected names, patterns or classes of layers with weights of "
                f"{self._model.name!r}, received {sorted(map(str, unknown))}, which mean none; it has {names}."
            )
        return {key for key, meant in means.items() if meant}

    def _named(self, layer: keras.layers.Layer) -> tuple[str, keras.layers.Layer]:
        """What an error says of a layer: its path, or that of the recurrent layer whose cell it is."""
        path, layers = self._places[id(layer)]
        for number, each in enumerate(layers, 1):
            if _is_recurrent(each):
                return "/".join(path.split("/")[:number]), each
        return path, layer

    def _objection(self, layer: keras.layers.Layer) -> str | None:
        """Why a layer can't be treated; None if it can, or need not."""
        path, layers = self._places[id(layer)]
        calls = self.trace.calls_of(layer)
        if is_weighted(layer):
            reached = [call for call in calls if _takes_errors(call)]
            if not reached:
                return None
            try:
                kernels(layer)
            except ValueError:
                return "has no plain kernel (LoRA or quantisation is on)"
            if not is_known_affine(layer) and not is_affine(reached[0]):
                return (
                    "is not affine in its input given its kernels: leave the nonlinearity to its attribute `activation`"
                    ", or to a layer of its own"
                )
            return None
        if is_exact(layer):
            return None
        if any(map(_is_recurrent, layers)):
            return "has kernels that act within a cell, through time, between nonlinearities"
        try:
            if not mixes_inputs(calls[0]):
                return None
        except Exception as error:  # a layer of whatever kind, called out of its place
            return f"could not be tried out ({type(error).__name__}: {error})"
        return "has weights that mix its inputs; an affine layer names its kernels in `feedback_kernels`"

    def input_shape(self, layer: keras.layers.Layer) -> tuple[int | None, ...]:
        """Of the first call to which errors go back."""
        return next(tuple(call.args[0].shape) for call in self.trace.calls_of(layer) if _takes_errors(call))

    def last(self, patterns: Sequence[Any] | None) -> list[keras.layers.Layer]:
        """The layers that make the outputs: those that `patterns` mean, or those after which no weights come."""
        if patterns is not None:
            meant = self._meant(patterns, "output_layers")
            return [layer for layer in self._weighted if id(layer) in meant]
        last = self.trace.last(self._weighted)
        if self._weighted and not last:
            names = [self._places[id(layer)][0] for layer in self._weighted]
            raise ValueError(
                f"Invalid value for `output_layers`: which layers make the outputs of {self._model.name!r} can't be "
                f"seen; name them, received None; it has {names}."
            )
        return last


def _is_recurrent(layer: keras.layers.Layer) -> bool:
    return traits(layer).kind == "recurrent"


def _takes_errors(call: Call) -> bool:
    """True if errors go back to a call's input: a table that is looked up by number sends none back."""
    return bool(call.args) and _is_floating(call.args[0])


def _is_floating(inputs: Any) -> bool:
    return tf.is_tensor(inputs) and inputs.dtype.is_floating


def output_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The last weighted layers: those from which no other weighted layer is reached on the way to an output."""
    weighted = [layers[-1] for _, layers in walk(model) if is_weighted(layers[-1])]
    return trace(model, weighted).last(weighted)


def with_feedback(
    model: keras.Model,
    feedback: Any,
    last_layer: Any = "symmetric",
    allow_backpropagation: Iterable[Any] = (),
    output_layers: Iterable[Any] | None = None,
) -> FeedbackModel:
    """The same model with every weighted layer's backward pass on feedback weights.

    Args:
        model: any built Keras model: functional, Sequential or subclassed, with one output or several. It is not
            changed. A subclassed one must have been called once.
        feedback: a `tfbio.feedback` object, name or config, for the weighted layers.
        last_layer: the same for the layers that make the outputs. `"symmetric"` sends the exact error to the layers
            below, as the code of Xiao et al. 2018 does; `"same"` uses `feedback` there too, as Lillicrap et al. 2016.
        allow_backpropagation: layers that keep their own derivative though their weights mix their inputs: names,
            paths and patterns of them (`"encoder/*"`), and classes; all that is within such a layer is meant too.
        output_layers: the layers that make the outputs, likewise; None finds them.

    Returns:
        A model that runs `model` itself and shares its variables; feedback variables are added, non-trainable but where
        they learn.

    Raises:
        ValueError: layers have weights that mix their inputs and can't be treated, all of which are named; a name that
            means no layer.
    """
    return FeedbackModel(model, feedback, last_layer, allow_backpropagation, output_layers)
