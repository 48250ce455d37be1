"""Which layers of a model get feedback weights, which need none, and which can't be treated."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.keras_internals import is_quantized, is_rematerialized
from tfbio.layers import Feedback
from tfbio.layers.recurrent_feedback import objection
from tfbio.layers.traits import is_exact, is_known_affine, is_weighted, kernels, traits
from tfbio.network.instrumented import CALL, Call, Trace, trace, walk
from tfbio.network.probes import is_affine, mixes_inputs, own_weights

__all__ = ["Treatable", "is_floating", "is_recurrent", "matching", "output_layers", "plain_patterns"]


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


def plain_patterns(patterns: Iterable[Any] | None) -> tuple[str, ...] | None:
    """Patterns as plain data: classes by their names. None stays None."""
    return patterns and tuple(each.__name__ if isinstance(each, type) else each for each in patterns)


class Treatable:
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
        called = {id(call.layer): call.layer for call in self.trace.calls if id(call.layer) in self._places}.values()
        reached = {id(call.layer) for call in self.trace.calls if _takes_errors(call)}
        self._weighted = [layer for layer in called if is_weighted(layer) and id(layer) in reached]
        exempt = self._meant(allowed, "allow_backpropagation")
        refused = dict.fromkeys(
            _used_elsewhere(model, self.trace, exempt | wrapped),
            "has weights that are used otherwise than by calling it",
        )
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
            if is_recurrent(each):
                return "/".join(path.split("/")[:number]), each
        return path, layer

    def _objection(self, layer: keras.layers.Layer) -> str | None:
        """Why a layer can't be treated; None if it can, or need not."""
        path, layers = self._places[id(layer)]
        calls = self.trace.calls_of(layer)
        if is_weighted(layer):
            reached = [call for call in calls if _takes_errors(call)]
            if not reached:
                several = any(map(is_floating, tf.nest.flatten([call.args for call in calls])))
                return "takes several inputs at once, and one vector-Jacobian product is of one" if several else None
            if is_recurrent(layer):
                return objection(layer)
            if any(tensor.graph is not self.trace.graph for tensor in tf.nest.flatten(reached[0].outputs)):
                return "is called within a loop, a branch or a function of the graph"
            if len(tf.nest.flatten(reached[0].outputs)) > 1:
                return "returns several tensors"
            try:
                kernels(layer)
            except ValueError:
                return "has no plain kernel of that name (LoRA is on, or `feedback_kernels` says another)"
            if not is_known_affine(layer) and not is_affine(reached[0]):
                return (
                    "is not affine in its input given its kernels: leave the nonlinearity to its attribute `activation`"
                    ", or to a layer of its own"
                )
            return None
        if is_exact(layer):
            return None
        if any(map(is_recurrent, layers)):
            return objection(layer)
        try:
            if not mixes_inputs(calls[0]):
                return None
        except Exception as error:  # a layer of whatever kind, called out of its place
            return f"could not be tried out ({type(error).__name__}: {error})"
        return "has weights that mix its inputs; an affine layer names its kernels in `feedback_kernels`"

    def input_shape(self, layer: keras.layers.Layer) -> tuple[int | None, ...]:
        """Of the first call to which errors go back."""
        return next(tuple(call.args[0].shape) for call in self.trace.calls_of(layer) if _takes_errors(call))

    def passes_errors(self, layer: keras.layers.Layer) -> bool:
        """True if errors that go back through a layer's kernels reach weights that learn: below it, or in its cell."""
        learning = [call.layer for call in self.trace.calls if call.layer.trainable_variables]
        return is_recurrent(layer) or self.trace.is_above(layer, learning)

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


# Operations that mix inputs by weights.
_PRODUCTS = ("MatMul", "BatchMatMul", "Einsum", "Conv", "DepthwiseConv", "XlaDot")


def _used_elsewhere(model: keras.Model, known: Trace, exempt: set[int]) -> list[str]:
    """Paths of layers whose weights meet activations in a product outside of the layers' own calls.

    Feedback has no hold of these. Such are `matmul(x, layer.kernel)`, a kernel tied by `transpose`, weights that the
    model itself holds, and all that a tf.function of the user's own calls.

    Raises:
        ValueError: the last two, which no name of a layer allows.
    """
    owners = {id(w): ("", model) for w in model.weights}
    for path, layers in walk(model):
        owners.update({id(w): (path, layers[-1]) for w in layers[-1].weights})  # the innermost last
    sources = {id(value): {owners[id(w)][0]} for w, value in known.weights if id(owners[id(w)][1]) not in exempt}
    active = {id(tensor) for tensor in known.inputs}
    found: dict[str, None] = {}
    for op in known.graph.get_operations():
        inputs = list(op.inputs)
        of_weights = set().union(*(sources.get(id(t), ()) for t in inputs if id(t) not in active))
        on_activations = any(id(t) in active for t in inputs)
        own = CALL in op.name and "/pfor/" not in op.name  # tf.vectorized_map makes operations of its own from a call's
        product = op.type.startswith(_PRODUCTS) and not own
        if product and on_activations:
            found.update(dict.fromkeys(sorted(of_weights)))
        if "PartitionedCall" in op.type and any(tensor.dtype == tf.resource for tensor in inputs):
            raise ValueError(  # traced before, with the variables themselves
                f"Invalid value for `model`: expected layers whose calls can be seen, received {model.name!r}, which "
                "calls some in a tf.function within it. Remove the tf.function: whoever trains makes a graph of the "
                "whole step."
            )
        for output in op.outputs:
            if on_activations:
                active.add(id(output))
            elif of_weights:
                sources[id(output)] = of_weights
    if "" in found:
        raise ValueError(
            f"Invalid value for `model`: expected kernels that belong to layers, received {model.name!r}, which itself "
            "has weights that are used otherwise than by calling a layer. Put them into a layer of their own."
        )
    return list(found)


def is_recurrent(layer: keras.layers.Layer) -> bool:
    return traits(layer).kind == "recurrent"


def _takes_errors(call: Call) -> bool:
    """True if errors go back to a call's input: a table that is looked up by number sends none back."""
    return bool(call.args) and is_floating(call.args[0])


def is_floating(inputs: Any) -> bool:
    return tf.is_tensor(inputs) and inputs.dtype.is_floating


def output_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The last weighted layers: those from which no other weighted layer is reached on the way to an output."""
    weighted = [layers[-1] for _, layers in walk(model) if is_weighted(layers[-1])]
    return trace(model, weighted).last(weighted)
