r"""Difference target propagation with the local difference reconstruction loss (L-DRL): inverses learn to transpose.

With $h_L$ the **logits**, difference targets go down through all inverses, from a step on the logits,

$$ t_L = h_L - \beta \frac{\partial \ell}{\partial h_L}, \qquad
   t_{l-1} = h_{l-1} + g_l(t_l) - g_l(h_l), $$

and every stage, the last one too, descends $\frac12 \lVert h_l - t_l \rVert^2$. Where the Jacobian of each $g_l$ is the
transposed one of $f_l$, that is $\beta$ times backpropagation, up to the second order of $\beta$. The inverses are
pulled there by

$$ -2 \langle \delta, g_l(f_l(h_{l-1} + \delta)) - g_l(h_l) \rangle
   + \lVert g_l(h_l + \varepsilon) - g_l(h_l) \rVert^2, \qquad \delta, \varepsilon \sim N(0, \sigma^2), $$

each stage by its own loss, with many updates a batch: `feedback_iterations`. They keep up with the forward weights,
so their optimizer should be fast, and is one of its own.

Ernoult, Normandin, Moudgil, Spinney, Belilovsky, Rish, Richards & Bengio 2022, "Towards Scaling Difference Target
Propagation by Learning Backprop Targets" (arXiv:2201.13415).
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfbio.rules.base import Batch
from tfbio.rules.difference_target_propagation import difference_targets
from tfbio.rules.target_propagation import TargetPropagation
from tfbio.serialization import register

__all__ = ["LocalDifferenceTargetPropagation"]


@register
class LocalDifferenceTargetPropagation(TargetPropagation):
    r"""L-DRL: difference targets from the logits down, through inverses that learn transposed Jacobians.

    Args:
        target_step: $\beta$.
        reconstruction: as in `TargetPropagation`; the paper's local difference reconstruction loss here.
        feedback_iterations: as in `TargetPropagation`; tens of them in the paper.
        **options: as in `TargetPropagation`.
    """

    targets_logits = True
    local_scale = 0.5

    def __init__(
        self, target_step: float = 0.7, reconstruction: str = "ldrl", feedback_iterations: Any = 20, **options: Any
    ):
        super().__init__(reconstruction=reconstruction, feedback_iterations=feedback_iterations, **options)
        self.target_step = target_step

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        logits = activations[-1]
        top = logits - self.target_step * (self.loss.predict(logits) - target)
        return difference_targets(activations, top, self.inverses[1:])

    def get_config(self) -> dict[str, Any]:
        return {"target_step": self.target_step, **super().get_config()}
