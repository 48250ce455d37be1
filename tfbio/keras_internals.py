"""The private parts of Keras that tfbio relies on, in one place.

Each is wrapped in a function that says what it does, and that fails by name where a version of Keras lacks it.
"""

from typing import Any

import keras
import tensorflow as tf
from keras.src import backend, tree
from keras.src.trainers.compile_utils import CompileMetrics
from keras.src.utils.python_utils import pythonify_logs

__all__ = [
    "CompileMetrics",
    "apply_reduced",
    "build_metrics",
    "decays",
    "inner_optimizers",
    "managed_variables",
    "optimizer_of",
    "pythonify_logs",
]

# --- Optimizers ------------------------------------------------------------------------------------------------------

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


def _unchanged(gradients_and_variables: list) -> list:
    return gradients_and_variables


def decays(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> bool:
    """Whether the `weight_decay` of `optimizer` takes something off `variable`."""
    return bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable)


def managed_variables(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables for which `optimizer` was built."""
    return list(optimizer._trainable_variables)


# --- Metrics ---------------------------------------------------------------------------------------------------------


def build_metrics(metrics: CompileMetrics, y: Any, outputs: Any, sample_weight: tf.Tensor) -> None:
    """Makes the variables of metrics that make them late, as `fit` does. Call it in the strategy's scope.

    Args:
        metrics: what `Model.compile` makes of its arguments, built.
        y, outputs, sample_weight: tensors of a batch, of which shapes and dtypes are looked at.
    """

    def symbolic(tensor: tf.Tensor) -> keras.KerasTensor:
        return keras.KerasTensor(tensor.shape, backend.standardize_dtype(tensor.dtype))

    arguments = [tree.map_structure(symbolic, each) for each in (y, outputs, sample_weight)]
    backend.compute_output_spec(metrics.update_state, *arguments)
