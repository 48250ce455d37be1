r"""Direct difference target propagation: linear feedback takes the output's target straight to each stage.

With $h_L$ the **logits**, every stage learns from a target, the last one too: for a target step $\lambda$ and matrices
$Q_l$ of shape (outputs, units of $h_l$),

$$ t_L = h_L - \lambda \frac{\partial \ell}{\partial h_L}, \qquad t_l = h_l + (t_L - h_L) \, Q_l \quad (l < L), $$

and stage $l$ descends $\lVert h_l - t_l \rVert^2$. $Q_l$ inverts all that lies above stage $l$ at once,
$F_l = f_L \circ … \circ f_{l+1}$. It learns from the difference reconstruction loss

$$ \frac{1}{\sigma^2} \lVert (F_l(h_l + \sigma \xi) - h_L) \, Q_l - \sigma \xi \rVert^2
   + \frac{\gamma}{2} \lVert Q_l \rVert^2, \qquad \xi \sim N(0, 1) . $$

With $J_l$ the Jacobian of $F_l$ ($\delta h_L = \delta h_l \, J_l$), small $\sigma$ pulls $Q_l$ to
$(J_l^\top J_l + \frac{\gamma}{2})^{-1} J_l^\top$, on average over the data: the pseudo-inverse, damped, and so targets
to a Gauss–Newton step. $J_l^\top$ in its place makes the rule $2 \lambda$ times backpropagation; what
tells the two apart is the pseudo-inverse alone.

Meulemans, Carzaniga, Suykens, Sacramento & Grewe 2020, "A Theoretical Framework for Target Propagation"
(arXiv:2006.14331): DDTP-linear.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfbio.rules.base import Batch
from tfbio.rules.target_propagation import TargetPropagation
from tfbio.serialization import register

__all__ = ["DirectDifferenceTargetPropagation"]


def direct_feedback(path: keras.Model, activation: Any = None, kernel_initializer: Any = "glorot_normal"):
    """$Q$: a linear map from the output of `path` to its input.

    Args:
        path: what lies between a stage and the output.
        activation: of the stage; a difference of targets has none.
        kernel_initializer: of $Q$.

    Returns:
        A built model with one kernel, `(outputs, units)`, and no bias, which differences would cancel.
    """
    shape, layers = path.input_shape[1:], keras.layers
    dtype = next(weight.dtype for weight in path.weights)
    q = layers.Dense(math.prod(shape), use_bias=False, kernel_initializer=kernel_initializer, dtype=dtype, name="Q")
    chain = [keras.Input(path.output_shape[1:], dtype=dtype), layers.Flatten(dtype=dtype), q]
    return keras.Sequential([*chain, layers.Reshape(shape, dtype=dtype)], name=f"{path.name}_feedback")


@register
class DirectDifferenceTargetPropagation(TargetPropagation):
    r"""DDTP: difference targets from the logits straight to each stage, by linear feedback.

    Args:
        target_step: $\lambda$. It multiplies the forward update, of which nothing else depends on it.
        feedback_decay: $\gamma$.
        reconstruction: as in `TargetPropagation`; the paper's difference reconstruction loss here.
        **options: as in `TargetPropagation`. An `inverse` is of what lies between a stage and the output: keyword
            arguments of `direct_feedback`, or a function as there, which may return any Keras model $g$; the
            difference is then $g(t_L) - g(h_L)$.
    """

    targets_logits = True
    make_inverse = staticmethod(direct_feedback)

    def __init__(
        self, target_step: float = 0.1, feedback_decay: float = 0.0, reconstruction: str = "drl", **options: Any
    ):
        super().__init__(reconstruction=reconstruction, **options)
        if feedback_decay < 0:
            raise ValueError(
                f"Invalid value for `feedback_decay`: expected a number of at least 0, received {feedback_decay}."
            )
        self.target_step = target_step
        self.feedback_decay = feedback_decay

    def find_inverted(self) -> list[keras.Model | None]:
        """$F_{l-1}$ for each stage $l > 1$: it and all stages above it."""
        return [None, *(path_above(self.stages, number) for number in range(1, len(self.stages)))]

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        *hidden, logits = activations
        top = logits - self.target_step * (self.loss.predict(logits) - target)
        return [*(h + (g(top) - g(logits)) for h, g in zip(hidden, self.inverses[1:], strict=True)), top]

    def _examples(self, inputs: list[tf.Tensor], activations: list[tf.Tensor]) -> dict[int, tuple]:
        return super()._examples(inputs, [activations[-1]] * len(activations))

    def inverse_loss(self, number: int, h: tf.Tensor, u: tf.Tensor, batch: Batch, iteration: Any) -> tf.Tensor:
        loss = super().inverse_loss(number, h, u, batch, iteration)
        squares = [tf.reduce_sum(tf.square(variable.value)) for variable in self.inverses[number].trainable_variables]
        return loss + self.feedback_decay / 2 * tf.cast(batch.share, loss.dtype) * tf.add_n(squares)

    def get_config(self) -> dict[str, Any]:
        own = {"target_step": self.target_step, "feedback_decay": self.feedback_decay}
        return {**own, **super().get_config()}


def path_above(stages: list[keras.Model], number: int) -> keras.Model:
    """The stages from `number` on, as one model that shares their layers."""
    inputs = keras.Input(stages[number].input_shape[1:], dtype=stages[number].inputs[0].dtype)
    outputs = inputs
    for stage in stages[number:]:
        outputs = stage(outputs)
    return keras.Model(inputs, outputs, name=f"{stages[number].name}_to_output")
