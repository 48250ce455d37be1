"""Where direct feedback enters a model: behind its stages, or behind calls of its layers, at whatever depth.

`Chain` is for graphs: the model's stages, of which none sees the ones before it. `Blocks` is for models whose inside no
graph shows (subclassed ones, composite layers such as a transformer's): the model runs as it is, and what chosen layers
return is recorded and goes on as a constant. Both say where errors can go: `signals`.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio.keras_internals import children, is_functional
from tfbio.network.graph import channel_axis, nodes, numbered
from tfbio.network.instrumented import input_spec, instrumented, walk
from tfbio.network.stages import named_stages, run, stop_gradient
from tfbio.network.treatable import matching

__all__ = ["LOSS", "Blocks", "Chain", "Cut", "cut", "meant_layers"]

#: The name of the signal that the layers above all cuts learn from.
LOSS = "loss"


class Cut(NamedTuple):
    """A place where a signal enters: its name, the activations' shape without the batch, the axis of their channels."""

    name: str
    shape: tuple[int | None, ...]
    axis: int


class Ran(NamedTuple):
    """What came of a run: the activations at each cut, the model's outputs, and what its layers added as losses."""

    hidden: list[tf.Tensor]
    outputs: Any
    losses: list[tf.Tensor]


class Chain:
    """A graph as a chain of stages.

    Args:
        model: a functional or Sequential model.
        cuts: as in `stages`.

    Attributes:
        stages: the sub-models.
        cuts: a `Cut` behind each of them but the last.
        outputs: shapes and dtypes of the model's outputs, as a list of `tf.TensorSpec`.
        signals: names of cuts that layers learn from, by the layers' paths: one each, but where stages share a layer.
        leaks: layers that errors of later cuts reach around earlier ones: none.
    """

    def __init__(self, model: keras.Model, cuts: Sequence[str] | None = None):
        named = named_stages(model, cuts)
        self.stages = list(named.values())
        self.outputs = [tf.TensorSpec(t.shape, t.dtype) for t in model.outputs]
        self.cuts, self.signals, self.leaks, below = [], {}, [], []
        for name, stage in named.items():
            if stage is self.stages[-1]:
                name = LOSS
            else:
                below += [call.layer for call in nodes(stage)]
                shape = tuple(stage.outputs[0].shape[1:])
                self.cuts.append(Cut(name, shape, channel_axis(below, len(shape))))
            for layer in _layers(stage.trainable_variables):
                self.signals[layer] = (*self.signals.get(layer, ()), name)

    def run(self, x: Any, enter: Callable = stop_gradient, training: bool = True) -> Ran:
        """Runs the model; what goes on behind each cut is `enter` of what came there."""
        ran = run(self.stages, x, enter, training)
        return Ran(ran.outputs[:-1], ran.outputs[-1], ran.losses)


class Blocks:
    """A model that is cut behind every call of some layers: behind each floating tensor that the call returns.

    What makes an output, with no weights after it, is not cut: it learns from the loss.

    Args:
        model: any built Keras model; a subclassed one must have been called once.
        layers: layers within it.

    Attributes: those of `Chain`. There are no stages; a layer has several signals if it is called several times, or if
        it is one of the `leaks`.

    Raises:
        ValueError: the calls can't be seen, or nothing is left to cut.
    """

    stages = ()

    def __init__(self, model: keras.Model, layers: Sequence[keras.layers.Layer]):
        self._model = model
        self._paths = {id(place[-1]): path for path, place in walk(model)}
        self._layers = list(layers)
        self._uncut: set[int] = set()
        if uncut := self._survey():
            self._uncut = uncut
            self._survey()
        if not self.cuts:
            raise ValueError(
                f"Invalid value for `blocks`: expected layers with others above them, received "
                f"{[self._paths[id(layer)] for layer in self._layers]}, which make the output of {model.name!r}."
            )

    def run(self, x: Any, enter: Callable = stop_gradient, training: bool = True) -> Ran:
        """Runs the model; what goes on behind each cut is `enter` of what came there."""
        hidden, outputs = self._run(x, enter, training, [])
        return Ran([h for _, h in hidden], outputs, self._model.losses)

    def _run(self, x: Any, enter: Callable, training: bool, called: list) -> tuple[list[tuple[Any, tf.Tensor]], Any]:
        """What comes to each cut, with the layer that it comes from, and the outputs; blocks are added to `called`."""
        hidden, numbers = [], itertools.count()

        def treatment(layer: keras.layers.Layer) -> Callable:
            def passed(h: Any) -> Any:
                if not tf.is_tensor(h) or not h.dtype.is_floating or next(numbers) in self._uncut:
                    return h
                hidden.append((layer, h))
                return enter(h)

            def treat(call: Callable, *args, **kwargs) -> Any:
                outputs = call(*args, **kwargs)
                called.append(layer)
                return tf.nest.map_structure(passed, outputs)

            return treat

        with instrumented({layer: treatment(layer) for layer in self._layers}):
            return hidden, self._model(x, training=training)

    def _survey(self) -> set[int]:
        """Runs the model once, symbolically, and sets the attributes.

        Returns:
            numbers of the cuts that no weights come after.
        """
        variables = self._model.trainable_variables
        uncut: set[int] = set()

        def survey(x: Any, weights: list[tf.Tensor]) -> None:
            graph, entered, before, called = tf.compat.v1.get_default_graph(), [], [], []

            def enter(h: tf.Tensor) -> tf.Tensor:
                if h.graph is not graph:
                    raise ValueError(
                        f"Invalid value for `blocks`: expected layers that the model calls in the open, received one "
                        f"that {self._model.name!r} calls within a loop or a tf.function of its own."
                    )
                before.append(list(called))
                entered.append(stop_gradient(h))
                tape.watch(entered[-1])
                return entered[-1]

            known = {place[-1]: _recorder(place[-1], called) for _, place in walk(self._model)}
            scope = keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True)))
            with scope, tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape, instrumented(known):
                tape.watch(weights)
                hidden, outputs = self._run(x, enter, True, called)
            outputs = [output for output in tf.nest.flatten(outputs) if tf.is_tensor(output)]

            def reached(target: tf.Tensor) -> tuple[set[str], set[int]]:
                gradients = tape.gradient(target, [*weights, *entered])
                on = [gradient is not None for gradient in gradients]
                return (
                    _layers(itertools.compress(variables, on)),
                    set(itertools.compress(range(len(entered)), on[len(weights) :])),
                )

            names = numbered([self._paths[id(layer)] for layer, _ in hidden])
            learn = {name: reached(h)[0] for name, (_, h) in zip(names, hidden, strict=True)}
            learn[LOSS] = set()
            for output in outputs:
                layers, cuts = reached(output)
                learn[LOSS] |= layers
                uncut.update(cuts if not layers else ())
            self.outputs = [tf.TensorSpec(output.shape, output.dtype) for output in outputs]
            self.cuts = [
                Cut(name, tuple(h.shape[1:]), channel_axis(below, len(h.shape) - 1))
                for name, (_, h), below in zip(names, hidden, before, strict=True)
            ]
            layers = sorted(_layers(variables), key=[*map(_layer, variables)].index)
            self.signals = {each: tuple(name for name in learn if each in learn[name]) for each in layers}
            often = {_layer(v) for layer in called if called.count(layer) > 1 for v in layer.weights}
            self.leaks = [layer for layer, names in self.signals.items() if len(names) > 1 and layer not in often]

        specs = [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables]
        tf.function(survey, autograph=False).get_concrete_function(input_spec(self._model), specs)
        return uncut


def cut(model: keras.Model, cuts: Sequence[str] | None = None, blocks: Iterable[Any] | None = None) -> Chain | Blocks:
    """The model, cut where it is told to be.

    Args:
        model: any built Keras model; a subclassed one must have been called once.
        cuts: names of layers of a graph to cut it behind, as in `stages`.
        blocks: layers at any depth to cut it behind: names, paths and patterns of them (`"encoder/*"`), and classes. Of
            layers within one another that the same pattern means, the outer one.

    Without both, a graph is cut into its stages. Where composite layers of one class repeat, and make more cuts than
    that, and no error gets around them, it is cut behind these.

    Raises:
        ValueError: both are given; a pattern means no layer; a model has no graph, and no blocks that repeat.
    """
    if cuts is not None and blocks is not None:
        raise ValueError(f"Invalid value for `blocks`: expected it without `cuts`, received {blocks} and {cuts}.")
    if blocks is not None:
        return Blocks(model, meant_layers(model, list(blocks)))
    chain = Chain(model, cuts) if cuts is not None or is_functional(model) else None
    repeated = _repeated(model) if cuts is None else []
    if len(repeated) > (len(chain.cuts) if chain else 0):
        found = Blocks(model, repeated)
        if not found.leaks and len(found.cuts) > (len(chain.cuts) if chain else 0):
            return found
    if chain is None:
        raise ValueError(
            f"Invalid value for `blocks`: expected layers to cut the subclassed {type(model).__name__} {model.name!r} "
            f"behind, received None; name those that all paths pass. It has {[path for path, _ in walk(model)]}."
        )
    return chain


def meant_layers(model: keras.Model, patterns: list[Any]) -> list[keras.layers.Layer]:
    """The layers of a model that patterns mean; of those within one another that the same one means, the outer one."""
    places = [(path.rpartition("/")[0], path, layers) for path, layers in walk(model)]
    means = {}
    for above, path, layers in places:
        inherited = matching(above, layers[:-1], patterns) if above else set()
        means[path] = matching(path, layers, patterns) - inherited
    if unknown := set(patterns).difference(*means.values()):
        raise ValueError(
            f"Invalid value for `blocks`: expected names, patterns or classes of layers of {model.name!r}, received "
            f"{sorted(map(str, unknown))}, which mean none; it has {list(means)}."
        )
    return [layers[-1] for _, path, layers in places if means[path]]


def _repeated(model: keras.Model) -> list[keras.layers.Layer]:
    """The outermost composite layers with weights of which there are several of one class, side by side."""
    level = children(model)
    while level:
        composite = [layer for layer in dict.fromkeys(level) if children(layer) and layer.trainable_variables]
        classes = [type(layer) for layer in composite]
        if several := [layer for layer in composite if classes.count(type(layer)) > 1]:
            return several
        level = [child for layer in composite for child in children(layer)]
    return []


def _recorder(layer: keras.layers.Layer, called: list) -> Callable:
    def treatment(call: Callable, *args, **kwargs):
        outputs = call(*args, **kwargs)
        called.append(layer)
        return outputs

    return treatment


def _layer(variable: keras.Variable) -> str:
    return variable.path.rpartition("/")[0]


def _layers(variables: Iterable[keras.Variable]) -> set[str]:
    """The paths of the layers that hold variables."""
    return {_layer(variable) for variable in variables}
