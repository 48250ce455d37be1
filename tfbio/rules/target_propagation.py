r"""Target propagation: every stage gets a target for its output, sent down through learned inverses.

With the network cut into stages $h_l = f_l(h_{l-1}; \theta_l)$, $h_L = \text{predict}(f_L(h_{L-1}))$, and inverses
$g_l(h_l) \approx h_{l-1}$ of the stages above the first, all learning is local:

$$ \theta_l: \; \lVert f_l(h_{l-1}) - t_l \rVert^2 \;(l < L), \quad \ell \;(l = L), \qquad
   g_l: \; \lVert g_l(f_l(\tilde h)) - \tilde h \rVert^2, \quad \tilde h = h_{l-1} + \sigma \varepsilon,
   \; \varepsilon \sim N(0, 1) . $$

Inputs and targets are constants of each loss. The inverse loss is *noise-preserving* as it stands; *de-noising*, it
asks for $h_{l-1}$ in the place of $\tilde h$; `tfbio.rules.local_losses` has these and more. The rules of the family
differ in how targets come about, and in little else. This file has what they share, how inverses learn apart
(`tfbio.rules.learned_inverses`), and the plain way: from $t_L = t$, the loss's own minimum (the one-hot label under
softmax),

$$ t_l = g_{l+1}(t_{l+1}) . $$

Bengio 2014, "How auto-encoders could provide credit assignment in deep networks via target propagation"
(arXiv:1407.7906); Lee, Zhang, Fischer & Bengio 2015, "Difference Target Propagation" (arXiv:1412.7525).
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfbio.network.graph import numbered
from tfbio.network.stages import run, stop_gradient
from tfbio.rules.base import Batch, Update, regularization, weighted_loss
from tfbio.rules.learned_inverses import LearnedInverses
from tfbio.rules.local_losses import Map, local_signal, wide
from tfbio.rules.target_diagnostics import diagnose
from tfbio.serialization import register

__all__ = ["TargetPropagation"]


def plain_targets(target: tf.Tensor, inverses: Sequence[Map]) -> list[tf.Tensor]:
    """$t_l = g_{l+1}(t_{l+1})$.

    Args:
        target: $t_m$.
        inverses: $g_{k+1}, …, g_m$.

    Returns:
        $t_k, …, t_m$.
    """
    targets = [target]
    for g in reversed(inverses):
        targets.insert(0, g(targets[0]))
    return targets


def _constant(tape: tf.GradientTape) -> Map:
    """What a stage sees of the one below: a constant that the tape watches."""

    def constant(h: tf.Tensor) -> tf.Tensor:
        h = stop_gradient(h)
        tape.watch(h)
        return h

    return constant


@register
class TargetPropagation(LearnedInverses):
    """Targets are the inverses' images of the targets above; the core that the whole family shares.

    Args:
        noise: $\\sigma$ of the inverse losses; one number, or one for each stage (those of stages without an inverse
            are not used).
        reconstruction: the inverses' loss, by its name in `tfbio.rules.local_losses`: `"preserve"` (they return the
            noisy activation), `"denoise"` (the clean one), `"drl"` or `"ldrl"` (differences alone matter).
        feedback_iterations: updates that a batch gives the inverses, each with noise of its own; one number, or one for
            each stage, as `noise`. All but the last are made before the forward weights' update, and need `Trainer`.
        reduction: `"sum"` or `"mean"` over units, of local and inverse losses. It matters to optimizers whose steps
            depend on the gradient's scale, as Adam's do where its epsilon is large.
        schedule: `"parallel"`: both kinds of losses at every step; `"alternating"`: inverses and forward weights take
            turns, inverses first.
        period: steps in a turn; None for an epoch.
        inverse: keyword arguments of `tfbio.inverse` by name, or a function called as it is, which returns any Keras
            model from the stage's output shape to its input shape; registered with Keras if it is to be saved.
        cuts: names of layers to cut the model behind; None for one stage a weighted layer or block (`tfbio.stages`).
        seed: of the noise; None for 0. The inverses' first weights come from Keras's global seed, as the model's do.

    Attributes:
        stages: the sub-models $f_1, …, f_L$, once built.
        inverted: what each of the inverses inverts: the stages themselves.
        inverses: $g_l$ for each stage, None where none is needed: at the first.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    #: Factor of the stages' local losses.
    local_scale = 1.0

    # What the members of the family differ in

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        r"""The stages' targets.

        Args:
            activations: $h_1, …, h_L$.
            target: $t$, the shape of $h_L$.
            gradient: returns $\partial \ell / \partial h_{L-1}$ of each example.
            batch: the examples: weights, and the part of the global batch that they are.

        Returns:
            $t_1, …, t_L$.
        """
        return plain_targets(target, self.inverses[1:])

    def _targets(self, tape, inputs, outputs, batch: Batch) -> list[tuple[tf.Tensor, tf.Tensor]]:
        activations, logits = self._activations(outputs), outputs[-1]

        def gradient() -> tf.Tensor:
            return wide(tape.gradient(logits, inputs[-1], tf.cast(self.loss.error(batch.y, logits), logits.dtype)))

        targets = self.find_targets(activations, self.loss.target(batch.y, logits), gradient, batch)
        return [(tf.stop_gradient(h), tf.stop_gradient(t)) for h, t in zip(activations, targets, strict=True)]

    def targets(self, x: tf.Tensor, y: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """`(activation, target)` of each stage on a batch; the last activation is the prediction, or the logits."""
        with keras.StatelessScope(), tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            ran = run(self.stages, tf.nest.map_structure(tf.convert_to_tensor, x), _constant(tape))
        return self._targets(tape, ran.inputs, ran.outputs, Batch.of(x, y))

    def update(self, batch: Batch) -> Update:
        values = [variable.value for variable in self.forward_variables]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(values)
            ran = run(self.stages, batch.x, _constant(tape))
            inputs, outputs = ran.inputs, ran.outputs
            loss = weighted_loss(self.loss, batch, outputs[-1])
            penalty = regularization(ran, batch, loss.dtype)
        pairs = self._targets(tape, inputs, outputs, batch)
        taught = outputs if self.targets_logits else outputs[:-1]
        losses = [penalty] if self.targets_logits else [loss, penalty]
        signals = [
            tf.cast(self.local_scale * local_signal(h, t, batch.weights, self.reduction), output.dtype)
            for output, (h, t) in zip(taught, pairs, strict=False)
        ]
        gradients = tape.gradient([*taught, *losses], values, [*signals, *map(tf.ones_like, losses)], "zero")
        feedback = self.learn_inverses(self._examples(inputs, [h for h, _ in pairs]), batch)
        return Update(outputs[-1], loss + penalty, list(map(tf.convert_to_tensor, gradients)), feedback)

    def diagnostics(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        """The figures of `tfbio.rules.target_diagnostics`, by the name of each stage's first weighted layer."""
        pairs = self.targets(x, y)
        below = [None, *(h for h, _ in pairs[:-1])]
        with keras.StatelessScope():
            returned = [
                None if g is None else wide(g(self._image(number, below[number]), training=True))
                for number, g in enumerate(self.inverses)
            ]
            reached = [
                self._activation(number, self.stages[number](t, training=True))
                for number, (_, t) in enumerate(pairs[:-1], 1)
            ]
        names = [next((layer.name for layer in stage.layers if layer.weights), stage.name) for stage in self.stages]
        return diagnose(numbered(names), pairs, returned, reached)
