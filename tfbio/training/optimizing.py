"""Optimizers: creation in a strategy's scope, and moving averages of weights in the weights' place."""

from typing import Any

import keras
import tensorflow as tf

from tfbio.keras_internals import all_layers, inner_optimizers, managed_variables, step_count
from tfbio.rules import LearningRule

__all__ = ["finalize_averages", "make_optimizer", "make_optimizers", "scale_loss_of"]


def make_optimizers(
    rule: LearningRule, optimizer: Any, feedback_optimizer: Any, strategy: tf.distribute.Strategy
) -> tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer | None]:
    """The built optimizers of a rule's forward and feedback variables; one for both where the second is None.

    Args:
        rule: a built rule.
        optimizer, feedback_optimizer: as for `Trainer`.
        strategy: the strategy in whose scope this is called.

    Raises:
        ValueError: as `make_optimizer`.
    """
    forward, feedback = rule.forward_variables, rule.feedback_variables
    if feedback_optimizer is None and (len(rule.phases) > 1 or rule.feedback_loops):
        optimizer = keras.optimizers.get(optimizer)
        feedback_optimizer = type(optimizer).from_config(optimizer.get_config())
    if feedback_optimizer is None or not feedback:
        return make_optimizer(optimizer, [*forward, *feedback], rule.model, strategy, "optimizer"), None
    return (
        make_optimizer(optimizer, forward, rule.model, strategy, "optimizer"),
        make_optimizer(feedback_optimizer, feedback, rule.model, strategy, "feedback_optimizer"),
    )


def make_optimizer(
    identifier: Any,
    variables: list[keras.Variable],
    model: keras.Model,
    strategy: tf.distribute.Strategy,
    argument: str,
) -> keras.optimizers.Optimizer:
    """A built optimizer for `variables`. Call it in the strategy's scope.

    Args:
        identifier: what `keras.optimizers.get` takes. An object must be new, or built for these very variables.
        variables: what it will update.
        model: the network.
        strategy: the strategy in whose scope this is called.
        argument: the argument's name, for errors.

    Raises:
        ValueError: unknown, made outside the strategy's scope, or with an option that the strategy can't carry.
    """
    try:
        optimizer = keras.optimizers.get(identifier)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Invalid value for `{argument}`: {error}") from error
    if strategy.num_replicas_in_sync > 1:
        if not strategy.extended.variable_created_in_scope(step_count(optimizer).value):
            raise ValueError(
                f"Invalid value for `{argument}`: expected an optimizer made within `strategy.scope()`, received one "
                "made outside. Make it there, or pass its name or config."
            )
        for inner in inner_optimizers(optimizer):
            if inner.gradient_accumulation_steps:
                raise ValueError(
                    f"Invalid value for `{argument}`: gradient_accumulation_steps does not work under "
                    f"{type(strategy).__name__}, received {inner.gradient_accumulation_steps}. Use the trainer's own "
                    "`accumulation_steps`."
                )
    optimizer = scale_loss_of(model, optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    return optimizer


def scale_loss_of(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer, within a `LossScaleOptimizer` if a layer computes in float16 and there is none yet."""
    mixed = "mixed_float16" in {layer.dtype_policy.name for layer in all_layers(model)}
    if mixed and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def finalize_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """Puts the moving averages of `optimizer`, if it keeps some, in the place of its variables."""
    for inner in inner_optimizers(optimizer):
        if inner.use_ema and int(inner.iterations.numpy()):  # averages are zeros before the first step
            inner.finalize_variable_values(managed_variables(inner))
