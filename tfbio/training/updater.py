r"""The one way in which updates are applied, behind `Trainer`, its feedback loops and `Learner` alike.

Gradients are computed under a loss scale where float16 needs one, and each replica has a part of their sum. Then

1. they are summed over replicas and workers, once;
2. each optimizer checks that its sum is finite, takes the loss scale out, and clips: all of it of the **global**
   gradient, with the same verdict everywhere, so that a step is taken by all replicas or by none;
3. it moves its variables;
4. followers take the same step.

Keras would sum last. Then every replica clips its own part, and a loss scaler believes what the first replica says.

A rule's followers are pairs of variables of which the one takes the other's steps. With
$w \leftarrow (1 - λ) w + Δ$ and $b \leftarrow (1 - λ) b + Δ$, whatever $Δ$ is, $w - b$ only shrinks by $1 - λ$. So
the gap is read before the optimizer's step, and $b$ is put that far below $w$ behind it. A step that the loss scaler
skips leaves both as they are.
"""

from typing import Any

import keras
import tensorflow as tf

from tfbio.keras_internals import apply_reduced, decays, optimizer_of, step_count
from tfbio.rules import LearningRule
from tfbio.training.replicas import sum_over_replicas

__all__ = ["Updater"]


class Updater:
    """Applies what a rule computes.

    Args:
        rule: a built rule.
        optimizer: for the rule's forward variables; without `feedback_optimizer`, for its feedback variables too.
        feedback_optimizer: for the rule's feedback variables.
    """

    def __init__(
        self,
        rule: LearningRule,
        optimizer: keras.optimizers.Optimizer,
        feedback_optimizer: keras.optimizers.Optimizer | None = None,
    ):
        self._rule = rule
        self._optimizer, self._feedback_optimizer = optimizer, feedback_optimizer

    @property
    def loss_scale(self) -> tf.Tensor | float:
        """What every example's factor in `apply`'s gradients is to be multiplied by; 1 where nothing is scaled."""
        return self._optimizer.scale_loss(1.0)

    @property
    def feedback_loss_scale(self) -> tf.Tensor | float:
        """The same for `apply_feedback`."""
        return self._feedback_optimizer.scale_loss(1.0)

    def apply(self, gradients: dict[str, list[tf.Tensor]], *scalars: tf.Tensor) -> list[tf.Tensor]:
        """Takes the step that one batch makes. Called on a replica.

        Args:
            gradients: of this replica's part of the batch, scaled by `loss_scale`: for each of the groups "forward" and
                "feedback" that learn, a gradient for each of the rule's variables.
            *scalars: what else to sum over replicas; it travels with the gradients.

        Returns:
            The scalars' sums.
        """
        gradients, scalars = sum_over_replicas((gradients, list(scalars)))
        followers = self._rule.followers if "forward" in gradients else []
        gaps, steps = self._remaining_gaps(followers), step_count(self._optimizer)
        gradients, gaps, steps = _read_before_writing((gradients, gaps, tf.convert_to_tensor(steps)))
        for optimizer, own, variables in self._shares(gradients):
            apply_reduced(optimizer, own, variables)
        self._follow(followers, gaps, steps)
        return scalars

    def apply_feedback(self, gradients: list[tf.Tensor], variables: list[keras.Variable]) -> None:
        """Takes a step of a part of the feedback alone. Called on a replica.

        Args:
            gradients: of this replica's part of the batch, scaled by `feedback_loss_scale`.
            variables: what they are of.
        """
        gradients = _read_before_writing(sum_over_replicas(gradients))
        apply_reduced(self._feedback_optimizer, gradients, variables)

    def _shares(self, gradients: dict[str, list[tf.Tensor]]) -> list[tuple]:
        """`(optimizer, gradients, variables)` for each optimizer that takes a step."""
        variables = {group: getattr(self._rule, f"{group}_variables") for group in gradients}
        if self._feedback_optimizer is None:
            shares = [(self._optimizer, sum(gradients.values(), []), sum(variables.values(), []))]
        else:
            optimizers = {"forward": self._optimizer, "feedback": self._feedback_optimizer}
            gradients = {**gradients, "feedback": self._rescaled(gradients.get("feedback", []))}
            shares = [(optimizers[group], gradients[group], variables[group]) for group in variables]
        return [share for share in shares if share[1]]

    def _rescaled(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients under the first optimizer's loss scale, under the second's: each adapts its own."""
        factor = self.feedback_loss_scale / self.loss_scale
        if not tf.is_tensor(factor) and factor == 1.0:
            return gradients
        return [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]

    def _remaining_gaps(self, followers: list[tuple[keras.Variable, keras.Variable]]) -> list[tf.Tensor]:
        """$(1 - λ) (w - b)$ for each pair $(b, w)$, as it will be once the optimizer has taken its step.

        $λ$ is what the optimizer's `weight_decay` takes off $w$ in this step, learning rate included: nothing in those
        that only add to the gradients of the next one.
        """
        gaps = []
        for b, w in followers:
            inner = optimizer_of(w, self._optimizer)
            gap = tf.convert_to_tensor(w) - tf.convert_to_tensor(b)
            if decays(inner, w):
                decayed = gap * tf.cast(inner.weight_decay, gap.dtype) * tf.cast(inner.learning_rate, gap.dtype)
                if every := inner.gradient_accumulation_steps:
                    decayed *= tf.cast((tf.convert_to_tensor(step_count(inner)) + 1) % every == 0, gap.dtype)
                gap -= decayed
            gaps.append(gap)
        return gaps

    def _follow(
        self, followers: list[tuple[keras.Variable, keras.Variable]], gaps: list[tf.Tensor], steps: tf.Tensor
    ) -> None:
        """Puts each $b$ a gap below its $w$, unless the optimizer, which had taken so many steps, has skipped this."""
        scales = isinstance(self._optimizer, keras.optimizers.LossScaleOptimizer)
        for (b, w), gap in zip(followers, gaps, strict=True):
            value = tf.convert_to_tensor(w) - gap
            if scales:
                taken = tf.convert_to_tensor(step_count(self._optimizer)) > steps
                value = tf.where(taken, value, tf.convert_to_tensor(b))
            b.assign(value)


def _read_before_writing(tensors: Any) -> Any:
    """The same tensors, none of which is there before all are.

    For an update to be made of them: TensorFlow's graph optimizer drops the order of a read and a later write of a
    variable where no data tie the two, as with feedback weights that learn.
    """
    with tf.control_dependencies(tf.nest.flatten(tensors)):
        return tf.nest.map_structure(tf.identity, tensors)
