"""The private parts of Keras that tfbio touches, in one place. Seen in Keras 3.15."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.trainers.compile_utils import CompileMetrics, MetricsList
from keras.src.utils.python_utils import pythonify_logs

__all__ = [
    "all_layers",
    "attributes",
    "CompileMetrics",
    "Directions",
    "apply_reduced",
    "build_metrics",
    "call_losses",
    "changed",
    "children",
    "decays",
    "directions",
    "inner_optimizers",
    "input_shapes",
    "is_functional",
    "is_quantized",
    "is_rematerialized",
    "learning_rate_schedule",
    "loss_arguments",
    "made_by",
    "managed_variables",
    "mask",
    "optimizer_of",
    "pythonify_logs",
    "replaced_call",
    "step_count",
    "supports_jit",
    "with_mask",
]

# Layers and models


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that a layer holds itself, in the order in which it was given them."""
    return layer._flatten_layers(include_self=False, recursive=False)


def all_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The model and all layers within it, at all depths, each once."""
    return model._flatten_layers()


def supports_jit(layer: keras.layers.Layer) -> bool:
    """True if XLA can compile the layer and all within it, as far as they say, and no input is a string."""
    strings = any(backend.standardize_dtype(each.dtype) == "string" for each in getattr(layer, "inputs", None) or ())
    return not strings and all(each.supports_jit for each in layer._flatten_layers())


def call_losses(layer: keras.layers.Layer) -> list[tf.Tensor]:
    """What the layer and those within it added to the losses in their last calls: no penalties on weights."""
    return [loss for each in layer._flatten_layers() for loss in each._get_own_losses()]


def made_by(tensor: Any) -> tuple[Any, Any, int]:
    """`(layer, node, number)`: the call that made a symbolic tensor, and which of its outputs the tensor is."""
    history = tensor._keras_history
    return history.operation, history.operation._inbound_nodes[history.node_index], history.tensor_index


def is_functional(model: Any) -> bool:
    """True if the model is a graph of layers: functional or Sequential."""
    return isinstance(model, keras.Sequential) or hasattr(model, "operations")


def is_rematerialized(layer: keras.layers.Layer) -> bool:
    """True if the layer was made in a `keras.RematScope`: its call is run again, out of our sight, going back."""
    return getattr(layer, "_remat_mode", None) is not None


def is_quantized(layer: keras.layers.Layer) -> bool:
    """True if Keras runs the layer's `quantized_call` in the place of its `call`."""
    return getattr(layer, "quantization_mode", None) is not None


def input_shapes(model: keras.Model) -> Any:
    """The shapes that a subclassed model was built for, nested as its inputs are; None if it does not know them."""
    shapes = list((getattr(model, "_build_shapes_dict", None) or {}).values())
    return shapes[0] if len(shapes) == 1 else shapes or None


def learning_rate_schedule(optimizer: keras.optimizers.Optimizer) -> Any:
    """The schedule that an optimizer was given; otherwise the variable that holds its learning rate, or None."""
    return getattr(optimizer, "_learning_rate", None)


def loss_arguments(loss: keras.losses.Loss) -> dict[str, Any]:
    """The arguments that a Keras loss hands to its function; some are not in its configuration (Huber's `delta`)."""
    return dict(getattr(loss, "_fn_kwargs", {}))


def mask(tensor: Any) -> Any:
    """The mask that Keras's layers have put on their output `tensor`; None without any."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: tf.Tensor, own: Any) -> tf.Tensor:
    """`tensor`, with a mask that `mask` returned."""
    if own is not None:
        tensor._keras_mask = own
    return tensor


@contextlib.contextmanager
def changed(layer: keras.layers.Layer, attribute: str, value: Any) -> Iterator[None]:
    """Gives an attribute of `layer` another value while its call is traced, if the layer has that attribute."""
    if not hasattr(layer, attribute):
        yield
        return
    before = getattr(layer, attribute)
    setattr(layer, attribute, value)
    try:
        yield
    finally:
        setattr(layer, attribute, before)


@contextlib.contextmanager
def attributes(layer: keras.layers.Layer, **values: Any) -> Iterator[None]:
    """Gives attributes of `layer` other values while its call is traced, behind Keras's tracker."""
    own = vars(layer)
    before = {name: own[name] for name in values if name in own}
    own.update(values)
    try:
        yield
    finally:
        for name in values.keys() - before.keys():
            own.pop(name)
        own.update(before)


def replaced_call(layer: keras.layers.Layer, call: Callable) -> Callable[[], None]:
    """Puts `call` in the place of the layer's own; returns a function that puts things back.

    `Layer.__call__` looks `self.call` up on the instance. The attribute is not set through Keras's tracker, so that
    nothing else sees it.
    """
    attributes = vars(layer)
    before = attributes.get("call")
    attributes["call"] = call

    def restore() -> None:
        if before is None:
            attributes.pop("call", None)
        else:
            attributes["call"] = before

    return restore


# Optimizers

_ALL_REDUCE = "_all_reduce_sum_gradients"


def inner_optimizers(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The optimizers that move variables: those within a `LossScaleOptimizer` or `MultiOptimizer`, or itself."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return list(getattr(optimizer, "optimizers", [optimizer]))


def apply_reduced(
    optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor], variables: list[keras.Variable]
) -> None:
    """`optimizer.apply` of gradients that are sums over replicas already. Called on a replica.

    Keras scales, checks and clips gradients before it sums them over replicas. Given the sums, it does all of that to
    the global gradient, with the same result on every replica. What is left out is its own sum.

    Raises:
        RuntimeError: this version of Keras sums elsewhere.
    """
    inner = inner_optimizers(optimizer)
    for each in inner:
        if not hasattr(type(each), _ALL_REDUCE):
            raise RuntimeError(f"Keras {keras.__version__} has no Optimizer.{_ALL_REDUCE}: install the version pinned.")
        vars(each)[_ALL_REDUCE] = _unchanged  # beside Keras's tracking of attributes
    try:
        optimizer.apply(gradients, variables)
    finally:
        for each in inner:
            vars(each).pop(_ALL_REDUCE, None)  # the replicas' threads take turns: another one may have been here


def optimizer_of(variable: keras.Variable, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The one of `inner_optimizers` that moves `variable`."""
    return next(o for o in inner_optimizers(optimizer) if any(v is variable for v in managed_variables(o)))


def step_count(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The variable that counts the calls of `apply` that were not skipped.

    With `gradient_accumulation_steps`, `optimizer.iterations` is a tensor: the count of real steps.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


def _unchanged(gradients_and_variables: list) -> list:
    return gradients_and_variables


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether the `weight_decay` of `optimizer` takes something off `variable`."""
    return bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable)


def managed_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables for which `optimizer` was built."""
    return list(optimizer._trainable_variables)


# Metrics


class Directions(MetricsList):
    """Tells callbacks which figures are to grow and which are to shrink. It measures nothing.

    Args:
        directions: "up" or "down" by the figures' names.
    """

    def __init__(self, directions: Mapping[str, str]):
        named = [SimpleNamespace(name=name, _direction=direction) for name, direction in directions.items()]
        super().__init__(named, name="directions")

    def reset_state(self) -> None:
        pass

    def result(self) -> dict:
        return {}


def directions(metrics: CompileMetrics) -> dict[str, str]:
    """ "up" or "down" by the names of figures, of those metrics that know which is better."""
    lists = [*metrics._flat_metrics, *metrics._flat_weighted_metrics] if metrics.built else []
    return {
        f"{own.output_name}_{metric.name}" if own.output_name else metric.name: metric._direction
        for own in lists
        if own is not None
        for metric in own.metrics
        if hasattr(metric, "_direction")
    }


def build_metrics(metrics: CompileMetrics, y: Any, outputs: Any, sample_weight: tf.Tensor) -> None:
    """Makes the variables of metrics that make them late, as `fit` does. Call it in the strategy's scope.

    Args:
        metrics: what `Model.compile` makes of its arguments, built.
        y, outputs, sample_weight: tensors of a batch, of which shapes and dtypes are looked at.
    """

    def symbolic(tensor: tf.Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(tensor.shape, backend.standardize_dtype(tensor.dtype))

    arguments = [keras.tree.map_structure(symbolic, each) for each in (y, outputs, sample_weight)]
    backend.compute_output_spec(metrics.update_state, *arguments)
