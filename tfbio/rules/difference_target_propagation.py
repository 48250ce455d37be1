r"""Difference target propagation: targets that are met where inverses are not exact.

$$ t_l = h_l + g_{l+1}(t_{l+1}) - g_{l+1}(h_{l+1}) , $$

so that $t_l = h_l$ wherever the stage above has reached its target, whatever $g_{l+1}$ is. The core, with its local
losses, is `TargetPropagation`'s. The rules differ in where the recursion starts:

| rule | |
|---|---|
| `dtp` | $t_{L-1} = h_{L-1} - \alpha \, \partial \ell / \partial h_{L-1}$ |
| `sdtp` | $t_L = t$, the loss's own minimum, for $h_L = \text{predict}(f_L(h_{L-1}))$ (or a part of the way there) |
| `ao_sdtp` | $t_L = [t, z]$ for $[h_L, z]$ |

$z = \tanh(h_{L-1} A)$ are fixed random features, which tell the top inverse more of $h_{L-1}$ than ten classes do.

Lee, Zhang, Fischer & Bengio 2015, "Difference Target Propagation" (arXiv:1412.7525); Bartunov et al. 2018
(arXiv:1807.04587) for the last two.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.rules.base import Batch
from tfbio.rules.learned_inverses import one_of
from tfbio.rules.local_losses import Map
from tfbio.rules.target_propagation import TargetPropagation
from tfbio.serialization import register

__all__ = ["AuxiliaryOutputSDTP", "DifferenceTargetPropagation", "SimplifiedDifferenceTargetPropagation"]


def difference_targets(activations: Sequence[tf.Tensor], target: tf.Tensor, inverses: Sequence[Map]) -> list[tf.Tensor]:
    """$t_l = h_l + g_{l+1}(t_{l+1}) - g_{l+1}(h_{l+1})$.

    Args:
        activations: $h_k, …, h_m$.
        target: $t_m$.
        inverses: $g_{k+1}, …, g_m$.

    Returns:
        $t_k, …, t_m$.
    """
    targets = [target]
    for h, above, g in reversed(list(zip(activations, activations[1:], inverses, strict=False))):
        targets.insert(0, h + (g(targets[0]) - g(above)))
    return targets


@register
class DifferenceTargetPropagation(TargetPropagation):
    r"""DTP: difference targets, from a gradient step on the last hidden activation.

    Args:
        target_step: $\alpha$.
        target_reduction: `"example"`: of the example's own loss; `"batch"`: of the mean loss of the batch, so that the
            step is divided by the number of examples in it (those of weight 0 do not count). Replicas and microbatches
            count their own and multiply by their number, which is the global batch wherever they share it equally.
        **options: as in `TargetPropagation`.
    """

    inverts_output = False

    def __init__(self, target_step: float = 0.1, target_reduction: str = "example", **options: Any):
        super().__init__(**options)
        self.target_step = target_step
        self.target_reduction = one_of("target_reduction", target_reduction, ("example", "batch"))

    def setup(self) -> None:
        super().setup()
        if len(self.stages) == 2:
            self.warn(
                "on two stages it is backpropagation, the first stage's gradient times 2 `target_step`, because no "
                "target goes through an inverse. Pass a deeper model, or the rule sdtp, ddtp or ldrl."
            )

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        *hidden, _ = activations
        step = self.target_step * gradient()
        if self.target_reduction == "batch":
            shares = tf.distribute.get_strategy().num_replicas_in_sync * batch.microbatches
            step /= tf.cast(tf.maximum(shares * tf.math.count_nonzero(batch.weights), 1), step.dtype)
        return [*difference_targets(hidden, hidden[-1] - step, self.inverses[1:-1]), target]

    def get_config(self) -> dict[str, Any]:
        own = {"target_step": self.target_step, "target_reduction": self.target_reduction}
        return {**own, **super().get_config()}


@register
class SimplifiedDifferenceTargetPropagation(TargetPropagation):
    """SDTP: difference targets all the way from the label; no weights are transported, not even the last layer's.

    Args:
        target_step: how far $t_L$ is on the way from $h_L$ to the label; 1, the paper's, is the label. Inverses were
            learned around activations, and targets through them hold close to these only.
        reconstruction: as in `TargetPropagation`; the paper de-noises here.
        **options: as in `TargetPropagation`.
    """

    def __init__(self, target_step: float = 1.0, reconstruction: str = "denoise", **options: Any):
        super().__init__(reconstruction=reconstruction, **options)
        self.target_step = target_step

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        output = activations[-1]
        aim = output + self.target_step * (target - output)
        return [*difference_targets(activations, aim, self.inverses[1:])[:-1], target]

    def get_config(self) -> dict[str, Any]:
        return {"target_step": self.target_step, **super().get_config()}


@register
class AuxiliaryOutputSDTP(SimplifiedDifferenceTargetPropagation):
    """AO-SDTP: the top inverse also sees fixed random features of the last hidden activation.

    Args:
        auxiliary_units: number of features. They must not tell all of $h_{L-1}$, or the inverse has no need of the
            classes: 512 of 256 units leave next to nothing of the label's signal.
        **options: as in `SimplifiedDifferenceTargetPropagation`.

    Attributes:
        projection: $A$, `(units of h_{L-1}, auxiliary_units)`, never trained.
    """

    def __init__(self, auxiliary_units: int = 512, **options: Any):
        super().__init__(**options)
        if auxiliary_units < 0:
            raise ValueError(
                f"Invalid value for `auxiliary_units`: expected a number of at least 0, received {auxiliary_units}."
            )
        self.auxiliary_units = auxiliary_units

    def setup(self) -> None:
        if len(self.model.output_shape) != 2:
            raise ValueError(
                f"Invalid value for `model`: auxiliary outputs join outputs of shape (batch, units), received "
                f"{self.model.output_shape}."
            )
        super().setup()
        self.projection = keras.Variable(
            keras.initializers.GlorotUniform(),
            shape=(math.prod(self.stages[-1].input_shape[1:]), self.auxiliary_units),
            dtype=self.inverses[-1].variables[0].dtype,
            trainable=False,
            name="auxiliary_projection",
        )

    def _make_inverse(self, number: int, **options: Any) -> keras.Model:
        if number == len(self.stages) - 1:
            options["extra_units"] = self.auxiliary_units
        return super()._make_inverse(number, **options)

    def features(self, h: tf.Tensor) -> tf.Tensor:
        r"""$z = \\tanh(h_{L-1} A)$, `(batch, auxiliary_units)`."""
        flat = tf.reshape(h, [tf.shape(h)[0], -1])
        return tf.tanh(tf.matmul(tf.cast(flat, self.projection.dtype), self.projection.value))

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], batch: Batch
    ) -> list[tf.Tensor]:
        *hidden, output = activations
        seen, wanted = (self._seen(len(hidden), hidden[-1], each) for each in (output, target))
        return [*super().find_targets([*hidden, seen], wanted, gradient, batch)[:-1], target]

    def _seen(self, number: int, h: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        return tf.concat([image, self.features(h)], -1) if number == len(self.stages) - 1 else image

    @property
    def variables(self) -> list[keras.Variable]:
        return [*super().variables, self.projection]

    def get_config(self) -> dict[str, Any]:
        return {"auxiliary_units": self.auxiliary_units, **super().get_config()}
