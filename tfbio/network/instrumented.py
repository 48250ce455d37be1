"""Runs a Keras model with some of its layers' calls replaced, and looks at how it calls them.

A learning rule needs its hands on layers wherever they are called: in a graph, within a composite layer such as
attention, in a subclassed model, several times over. So nothing is cloned or rewired. The model runs as it is, and
while it does, the `call` of each chosen layer goes through a *treatment*:

    with instrumented({layer: treatment}):
        outputs = model(x, training=True)

Around a call, Keras does what it always does: masks, dtypes, `training`, losses that layers add. A treatment is called
as `treatment(call, *args, **kwargs)` with the layer's own `call` and what Keras passes it, and returns what the layer
would. Calls of the layer within its own treatment are plain ones.

The replicas of a strategy are traced in threads of their own, which take turns where replicas meet. So what is replaced
is put there by the first and taken away by the last of them, and each thread looks up its own treatments.
"""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfbio.keras_internals import children, input_shapes, is_functional, replaced_call
from tfbio.layers.recurrent_feedback import without_fused_kernels
from tfbio.layers.traits import is_weighted

__all__ = ["CALL", "Call", "Trace", "instrumented", "trace", "walk"]

Treatment = Callable[..., Any]


class _Thread(threading.local):
    def __init__(self):
        self.treatments: dict[int, Treatment] = {}
        self.inside: set[int] = set()


_thread = _Thread()
_lock = threading.Lock()
_users: dict[int, int] = {}
_restore: dict[int, Callable[[], None]] = {}


@contextlib.contextmanager
def instrumented(treatments: Mapping[keras.layers.Layer, Treatment]) -> Iterator[None]:
    """While it lasts, this thread's calls of some layers go through their treatments.

    Args:
        treatments: layer → `(call, *args, **kwargs) -> outputs`. Within another such context, a layer's innermost
            treatment counts.
    """
    layers = list(treatments)
    before = _thread.treatments
    with _lock:
        for layer in layers:
            _users[id(layer)] = _users.get(id(layer), 0) + 1
            if _users[id(layer)] == 1:
                _restore[id(layer)] = replaced_call(layer, _routed(layer))
    _thread.treatments = {**before, **{id(layer): treatment for layer, treatment in treatments.items()}}
    try:
        yield
    finally:
        _thread.treatments = before
        with _lock:
            for layer in layers:
                _users[id(layer)] -= 1
                if not _users[id(layer)]:
                    del _users[id(layer)]
                    _restore.pop(id(layer))()


def _routed(layer: keras.layers.Layer) -> Callable:
    call, key = layer.call, id(layer)
    first = next(iter(inspect.signature(call).parameters), None)

    @functools.wraps(call)
    def routed(*args, **kwargs):
        if not args and first in kwargs:  # a treatment need not look for its inputs: `layer(inputs=x)`
            args = (kwargs.pop(first),)
        treatment = _thread.treatments.get(key)
        if treatment is None or key in _thread.inside:
            return call(*args, **kwargs)
        _thread.inside.add(key)
        try:
            return treatment(call, *args, **kwargs)
        finally:
            _thread.inside.discard(key)

    return routed


def walk(model: keras.layers.Layer) -> Iterator[tuple[str, tuple[keras.layers.Layer, ...]]]:
    """All layers within a model, at all depths, each once.

    Yields:
        The names that lead to the layer, `encoder/attention/query`, and the layers of these names, itself last.
    """
    seen: set[int] = set()

    def inner(layer: keras.layers.Layer, names: tuple, layers: tuple) -> Iterator:
        for child in children(layer):
            if id(child) not in seen:
                seen.add(id(child))
                place = (*names, child.name), (*layers, child)
                yield "/".join(place[0]), place[1]
                yield from inner(child, *place)

    return inner(model, (), ())


@dataclass(frozen=True, eq=False)
class Call:
    """One call of one layer in a traced run: its arguments and outputs are symbolic tensors, nested as the layer's."""

    layer: keras.layers.Layer
    args: tuple
    kwargs: dict[str, Any]
    outputs: Any

    @property
    def inputs(self) -> list[tf.Tensor]:
        return [each for each in tf.nest.flatten((self.args, self.kwargs)) if tf.is_tensor(each)]


@dataclass(frozen=True)
class Trace:
    """How a model calls its layers: all calls in order, and the model's outputs, in one symbolic run.

    Attributes:
        outputs: the model's, nested symbolic tensors.
        calls: of the layers that were asked for and of those around them.
        around: layer's id → the layers that it is in, the innermost last, and itself.
        weights: the model's, and the symbolic tensors that stood for them.
        inputs: the model's, symbolic.
    """

    outputs: Any
    calls: list[Call]
    around: dict[int, tuple[keras.layers.Layer, ...]]
    weights: list[tuple[keras.Variable, tf.Tensor]]
    inputs: list[tf.Tensor]

    @property
    def graph(self) -> tf.Graph:
        return _tensors(self.outputs)[0].graph

    def calls_of(self, layer: keras.layers.Layer) -> list[Call]:
        return [call for call in self.calls if call.layer is layer]

    def _outer_calls(self, layer: keras.layers.Layer) -> list[Call]:
        """The layer's calls in the model's own graph; of a layer within a loop, those of what holds the loop."""
        for each in reversed(self.around[id(layer)]):
            calls = [call for call in self.calls_of(each) if _tensors(call.outputs)]
            if calls and all(t.graph is self.graph for call in calls for t in _tensors(call.outputs)):
                return calls
        return []

    def is_above(self, layer: keras.layers.Layer, others: Sequence[keras.layers.Layer]) -> bool:
        """True if something leads from one of `others` to an input of `layer`."""
        below = {id(other) for other in others}
        made = {id(t): [call.layer] for call in self.calls if id(call.layer) in below for t in _tensors(call.outputs)}
        return bool(_reached([tensor for call in self._outer_calls(layer) for tensor in call.inputs], made))

    def last(self, layers: Sequence[keras.layers.Layer]) -> list[keras.layers.Layer]:
        """Those of `layers` that make an output: nothing leads from them to it but through no other of `layers`.

        A layer that also reaches the output through another one is not the last on the way to that output.
        """
        calls = {id(layer): self._outer_calls(layer) for layer in layers}
        made: dict[int, list] = {}
        for layer in layers:
            for call in calls[id(layer)]:
                for tensor in _tensors(call.outputs):
                    made.setdefault(id(tensor), []).append(layer)
        found: dict[int, keras.layers.Layer] = {}
        for output in _tensors(self.outputs):
            nearest = _reached([output], made)
            below = set()
            for layer in nearest:
                starts = [tensor for call in calls[id(layer)] for tensor in call.inputs]
                below |= {id(other) for other in _reached(starts, made, through=True)} - {id(layer)}
            found.update({id(layer): layer for layer in nearest if id(layer) not in below})
        return list(found.values())


def _tensors(nested: Any) -> list[tf.Tensor]:
    return [tensor for tensor in tf.nest.flatten(nested) if tf.is_tensor(tensor)]


def _reached(starts: Sequence[tf.Tensor], made: Mapping[int, list], through: bool = False) -> list[Any]:
    """What made the tensors that lead to `starts`: the nearest of `made` on each path; going `through` these, all."""
    found, stack, seen = {}, list(starts), set()
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        makers = made.get(id(tensor), ())
        found.update({id(maker): maker for maker in makers})
        if not makers or through:
            stack.extend(tensor.op.inputs)
    return list(found.values())


def input_spec(model: keras.Model) -> Any:
    """`tf.TensorSpec`s of the model's inputs, nested as they are.

    Raises:
        ValueError: a model that is not built, or a subclassed one that was never called, and so does not know them.
    """
    if not model.built:
        raise ValueError(
            f"Invalid value for `model`: expected a built model, received {model.name!r} without an input shape. Put "
            "keras.Input(shape) first, or call it on a batch."
        )
    if is_functional(model):
        inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        return keras.tree.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), inputs)
    shapes = input_shapes(model)
    if shapes is None:
        raise ValueError(
            f"Invalid value for `model`: expected a model that knows its inputs, received the subclassed "
            f"{type(model).__name__} {model.name!r}, which was built without having been called. Call it on a batch "
            "first: model(x)."
        )
    return keras.tree.map_shape_structure(lambda shape: tf.TensorSpec((None, *shape[1:]), model.input_dtype), shapes)


#: Part of the names of operations that a recorded call of a layer with kernels, or with no layers within, makes.
CALL = "recorded_call"


def trace(model: keras.Model, layers: Iterable[keras.layers.Layer]) -> Trace:
    """Runs `model` once, symbolically and as in training, and records the calls of `layers` and of those around them.

    Nothing is computed and no variable changes.

    Raises:
        ValueError: as `input_spec`.
    """
    calls: list[Call] = []
    chosen = {id(layer) for layer in layers}
    around = {id(each[-1]): each for _, each in walk(model) if id(each[-1]) in chosen}

    def recorder(layer: keras.layers.Layer) -> Treatment:
        def treatment(call: Callable, *args, **kwargs):
            named = tf.name_scope(CALL) if is_weighted(layer) or not children(layer) else contextlib.nullcontext()
            with without_fused_kernels(layer), named:
                outputs = call(*args, **kwargs)
            calls.append(Call(layer, args, kwargs, outputs))
            return outputs

        return treatment

    seen: list = []

    def run(inputs: Any, values: list[tf.Tensor]) -> None:
        recorders = {layer: recorder(layer) for each in around.values() for layer in each}
        weights = list(zip(model.weights, values, strict=True))
        with keras.StatelessScope(state_mapping=weights), instrumented(recorders):
            seen.extend((model(inputs, training=True), weights, _tensors(inputs)))

    specs = [tf.TensorSpec(weight.shape, weight.dtype) for weight in model.weights]
    tf.function(run, autograph=False).get_concrete_function(input_spec(model), specs)
    outputs, weights, inputs = seen
    return Trace(outputs, calls, around, weights, inputs)
