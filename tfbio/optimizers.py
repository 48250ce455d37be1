r"""Update rules of this literature, as Keras optimizers.

| optimizer | $W$ after a step | source |
|---|---|---|
| `BatchManhattan` | only the gradient's sign counts | Liao, Leibo & Poggio 2016 (arXiv:1510.05067) |
| `NoSignChangeSGD` | no weight crosses zero | code of Xiao et al. 2018 (arXiv:1811.03567) |
| `NormConstrainedSGD` | each kernel keeps its norm | Moskovitz et al. 2018 (arXiv:1812.06488), as in BioTorch |

They take any rule's updates. Kernels are what `tfbio.layers.kernels` says of the model's layers: of dense, einsum,
convolutional and locally connected ones, and of your own. All other weights (biases, what normalisation learns, PReLU's
slopes, scales, embeddings) are free. Under replicas each acts on the sum of all replicas' gradients.
"""

import contextlib
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfbio.layers.traits import is_weighted, kernels
from tfbio.serialization import register

__all__ = ["BatchManhattan", "NoSignChangeSGD", "NormConstrainedSGD"]


def mark_kernels(layers: Iterable[keras.layers.Layer]) -> None:
    """Tells the optimizers of this module which of the layers' weights are kernels: those that mix inputs.

    An optimizer sees variables alone, so that each carries the answer of `tfbio.layers.traits`. Rules mark the kernels
    of the model that they are built for; a variable that was never marked goes by its name, as Keras gives it.
    """
    layers = list(layers)
    for variable in [weight for layer in layers for weight in layer.weights]:
        variable.is_kernel = False
    for layer in filter(is_weighted, layers):
        with contextlib.suppress(ValueError):  # LoRA or quantisation: it has no plain kernel
            for kernel in kernels(layer):
                kernel.is_kernel = True


def _is_kernel(variable: keras.Variable) -> bool:
    return getattr(variable, "is_kernel", variable.name.endswith("kernel"))


@register
class BatchManhattan(keras.optimizers.SGD):
    r"""Steps of one size, by the sign of the batch's gradient.

    $$ d = \mathrm{sign}(G) + λ W, \qquad m \leftarrow μ m + α d, \qquad W \leftarrow W - m . $$

    Liao et al. 2016, in the order of Xiao et al.'s code: momentum and decay come behind the sign. Without both, every
    weight whose gradient is not zero moves by $α$.

    Args:
        learning_rate: $α$, a number or schedule.
        momentum: $μ$, in [0, 1).
        decay: $λ$; unlike Keras's own `weight_decay`, it goes through the momentum.
        name, **kwargs: as in `keras.optimizers.SGD`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        decay: float = 0.0,
        name: str = "batch_manhattan",
        **kwargs,
    ):
        super().__init__(learning_rate, momentum, name=name, **kwargs)
        self.decay = decay

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        direction = tf.sign(gradient) + self.decay * tf.cast(variable, gradient.dtype)
        super().update_step(direction, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "decay": self.decay}


class _KernelSGD(keras.optimizers.SGD):
    """SGD that mends each kernel behind its step."""

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        index = self._get_variable_index(variable)
        before = tf.identity(variable)
        super().update_step(gradient, variable, learning_rate)
        if _is_kernel(self._trainable_variables[index]):
            self.assign(variable, self.mended(tf.convert_to_tensor(variable), before, index))

    def mended(self, after: tf.Tensor, before: tf.Tensor, index: int) -> tf.Tensor:
        """What the kernel becomes: `after` the step, given what it was `before` and its number."""
        raise NotImplementedError


@register
class NoSignChangeSGD(_KernelSGD):
    """SGD under which kernels keep their signs: a weight that would cross zero stops at ±1e-10.

    With signs that never change, fixed feedback of the first signs is sign symmetry for ever.

    Args:
        learning_rate, momentum, nesterov, weight_decay, …: as in `keras.optimizers.SGD`.
    """

    def mended(self, after: tf.Tensor, before: tf.Tensor, index: int) -> tf.Tensor:
        sign = tf.sign(before)
        return tf.where(sign * tf.sign(after) < sign * sign, sign * tf.cast(1e-10, sign.dtype), after)


@register
class NormConstrainedSGD(_KernelSGD):
    r"""SGD under which each kernel keeps the Frobenius norm that it had when the optimizer was built.

    $$ W \leftarrow W' \, \lVert W_0 \rVert / \lVert W' \rVert $$

    with $W'$ what SGD makes of $W$. Kernels that were zero then have no norm to keep, and are free, as is all else.

    Args:
        learning_rate, momentum, nesterov, weight_decay, …: as in `keras.optimizers.SGD`.
    """

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        self._norms = []
        for variable in variables:
            norm = self.add_variable((), dtype=variable.dtype, name="norm")
            norm.assign(tf.norm(tf.convert_to_tensor(variable.value)))
            self._norms.append(norm)

    def mended(self, after: tf.Tensor, before: tf.Tensor, index: int) -> tf.Tensor:
        first = tf.convert_to_tensor(self._norms[index].value)
        return tf.where(first > 0, after * tf.math.divide_no_nan(first, tf.norm(after)), after)
