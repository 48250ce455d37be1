r"""Optimizers under replicas: creation in scope, clipping that clips the **global** gradient, and followers.

A Keras 3 optimizer clips what each replica hands it, before it sums over replicas, so that two replicas with opposite
large gradients end elsewhere than one replica with their sum. Here the gradients are summed first and clipped by the
optimizer's own settings; its own clipping then finds nothing left to do.

A rule's `followers` are pairs of variables of which the one takes the other's steps. With
$w \leftarrow (1 - λ) w + Δ$ and $b \leftarrow (1 - λ) b + Δ$, whatever $Δ$ is, $w - b$ only shrinks by $1 - λ$. So
the gap is read before the optimizer's step, and $b$ is put that far below $w$ behind it.
"""

from typing import Any

import keras
import tensorflow as tf

__all__ = ["follow", "globally_clipped", "make_optimizer", "put_averages", "remaining_gaps", "together"]

Followers = list[tuple[keras.Variable, keras.Variable]]


def make_optimizer(
    identifier: Any, variables: list[keras.Variable], strategy: tf.distribute.Strategy, argument: str, mixed: bool
) -> keras.optimizers.Optimizer:
    """A built optimizer for `variables`. Call it in the strategy's scope.

    Args:
        identifier: what `keras.optimizers.get` takes. An object must be new, or built for these very variables.
        variables: what it will update.
        strategy: the strategy in whose scope this is called.
        argument: the argument's name, for errors.
        mixed: wrap it for float16's loss scaling.

    Raises:
        ValueError: unknown, made outside the strategy's scope, or with an option that the strategy can't carry.
    """
    try:
        optimizer = keras.optimizers.get(identifier)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Invalid value for `{argument}`: {error}") from error
    if strategy.num_replicas_in_sync > 1:
        if not strategy.extended.variable_created_in_scope(optimizer.iterations.value):
            raise ValueError(
                f"Invalid value for `{argument}`: expected an optimizer made within `strategy.scope()`, received one "
                "made outside. Make it there, or pass its name or config."
            )
        if optimizer.gradient_accumulation_steps:
            raise ValueError(
                f"Invalid value for `{argument}`: gradient_accumulation_steps does not work under "
                f"{type(strategy).__name__}, received {optimizer.gradient_accumulation_steps}. Use the trainer's "
                "own `accumulation_steps`."
            )
    if mixed and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if not optimizer.built:
        optimizer.build(variables)
    return optimizer


def globally_clipped(
    optimizer: keras.optimizers.Optimizer, gradients: list[tf.Tensor], replicas: int
) -> list[tf.Tensor]:
    """This replica's share of the clipped global gradient: the shares' sum is clipped as `optimizer` says.

    Args:
        optimizer: its `clipnorm`, `global_clipnorm` or `clipvalue` is what is applied; without one, or on a single
            replica, where Keras's own clipping is right, gradients are returned as they are.
        gradients: this replica's part of a sum over replicas.
        replicas: the number of replicas in sync.
    """
    inner = _unscaled(optimizer)
    if replicas == 1 or not (inner.clipnorm or inner.global_clipnorm or inner.clipvalue):
        return gradients
    scale = tf.cast(getattr(optimizer, "dynamic_scale", 1.0), tf.float32)
    total = [g / tf.cast(scale, g.dtype) for g in tf.distribute.get_replica_context().all_reduce("sum", gradients)]
    if inner.clipnorm:
        total = [tf.clip_by_norm(g, inner.clipnorm) for g in total]
    elif inner.global_clipnorm:
        total, _ = tf.clip_by_global_norm(total, inner.global_clipnorm)
    else:
        total = [tf.clip_by_value(g, -inner.clipvalue, inner.clipvalue) for g in total]
    return [g * tf.cast(scale / replicas, g.dtype) for g in total]


def together(tensors: Any) -> Any:
    """The same tensors, none of which is there before all are.

    For an update to be made of them: TensorFlow's graph optimizer drops the order of a read and a later write of a
    variable where no data tie the two, as with feedback weights that learn.
    """
    with tf.control_dependencies(tf.nest.flatten(tensors)):
        return tf.nest.map_structure(tf.identity, tensors)


def remaining_gaps(optimizer: keras.optimizers.Optimizer, followers: Followers) -> list[tf.Tensor]:
    """$(1 - λ) (w - b)$ for each pair $(b, w)$, to be read before `optimizer` takes its step.

    $λ$ is what the optimizer's `weight_decay` takes off $w$ in this step, learning rate included: nothing in those
    that only add to the gradients of the next one.
    """
    inner = _unscaled(optimizer)
    gaps = []
    for b, w in followers:
        gap = tf.convert_to_tensor(w) - tf.convert_to_tensor(b)
        if inner.weight_decay and inner._use_weight_decay(w):
            decayed = gap * tf.cast(inner.weight_decay, gap.dtype) * tf.cast(inner.learning_rate, gap.dtype)
            if every := inner.gradient_accumulation_steps:
                decayed *= tf.cast((tf.convert_to_tensor(inner._iterations) + 1) % every == 0, gap.dtype)
            gap -= decayed
        gaps.append(gap)
    return gaps


def follow(followers: Followers, gaps: list[tf.Tensor]) -> None:
    """Puts each $b$ a gap below its $w$, which has taken its step."""
    for (b, w), gap in zip(followers, gaps, strict=True):
        b.assign(tf.convert_to_tensor(w) - gap)


def put_averages(optimizer: keras.optimizers.Optimizer) -> None:
    """Puts the moving averages of `optimizer`, if it keeps some, in the place of its variables."""
    inner = _unscaled(optimizer)
    if inner.use_ema and int(inner.iterations.numpy()):  # averages are zeros before the first step
        inner.finalize_variable_values(inner._trainable_variables)


def _unscaled(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer within what scales the loss for float16, if that is around it."""
    return getattr(optimizer, "inner_optimizer", optimizer)
