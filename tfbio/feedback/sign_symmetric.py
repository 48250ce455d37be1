r"""Sign-symmetric feedback: the backward weights share the signs of the forward weights, and nothing else.

$$ V = c \; M \odot S \odot \mathrm{sign}(W) $$

with magnitudes $M \ge 0$ of mean square 1, a scale $c$, and, for partial sign concordance, a fixed mask $S$ of signs.

* **uniform** (uSF): $M = 1$.
* **batch** (brSF): $M$ is drawn afresh for every update.
* **fixed** (frSF): $M$ is drawn once.

Liao, Leibo & Poggio 2016, "How important is weight symmetry in backpropagation?" (arXiv:1510.05067), found that signs
matter and magnitudes do not; Xiao, Chen, Liao & Poggio 2018 (arXiv:1811.03567) took sign symmetry to ImageNet, and
Moskovitz, Litwin-Kumar & Abbott 2018 (arXiv:1812.06488) normalised its scale. The scales, with the fans of $W$:

| `scale` | $c$ | source |
|---|---|---|
| `"glorot"` | $\sqrt{2 / (n_{in} + n_{out})}$ | the initialiser's deviation, as BioTorch |
| `"xiao"` | convolutions $\sqrt{2 / n_{out}}$, dense $1 / \sqrt{n_{in}}$ | the code of Xiao et al. |
| `"norm"` | $\lVert W \rVert / \lVert M \odot \mathrm{sign}(W) \rVert$ of this step | Moskovitz et al., strict |
| a number | itself | |
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfbio.fans import fans_of
from tfbio.feedback.base import FeedbackWeights
from tfbio.feedback.bits import stateless_normal, stateless_uniform
from tfbio.feedback.random import seeded
from tfbio.serialization import register

__all__ = ["SignSymmetric"]

_MAGNITUDES = ("uniform", "batch", "fixed")
_DISTRIBUTIONS = ("uniform", "normal")
# Numbers of the draws of masks, beyond those of kernels: a mask must not depend on its kernel's magnitudes.
_MASKS = 1 << 20


@register
class SignSymmetric(FeedbackWeights):
    """Backward weights with the signs of the forward ones.

    Args:
        magnitude: `"uniform"`, `"batch"` (drawn for each update) or `"fixed"` (drawn once).
        scale: `"glorot"`, `"xiao"`, `"norm"` or a number: see the module's table.
        distribution: of drawn magnitudes: `"uniform"` on [0, √3] (Liao), or `"normal"`, folded (Xiao).
        concordance: the share of weights whose feedback keeps their sign, in [0, 1]; the rest, chosen once, flips it.
        seed: of all draws; None takes Keras's global seed for what is drawn once, and 0 for what is drawn for each
            update (a function of seed, kernel and step, the same on every replica and after a restart).

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    def __init__(
        self,
        magnitude: str = "uniform",
        scale: str | float = "glorot",
        distribution: str = "uniform",
        concordance: float = 1.0,
        seed: int | None = None,
    ):
        for name, value, known in (
            ("magnitude", magnitude, _MAGNITUDES),
            ("distribution", distribution, _DISTRIBUTIONS),
            ("scale", scale, ("glorot", "xiao", "norm") if isinstance(scale, str) else (scale,)),
        ):
            if value not in known:
                raise ValueError(f"Invalid value for `{name}`: expected one of {known}, received {value!r}.")
        if not 0.0 <= concordance <= 1.0:
            raise ValueError(f"Invalid value for `concordance`: expected a share in [0, 1], received {concordance}.")
        self.magnitude = magnitude
        self.scale = scale
        self.distribution = distribution
        self.concordance = concordance
        self.seed = seed

    def initializer(
        self, index: int, fans: tuple[float, float] | None = None, kernel: Any = None
    ) -> Callable[..., tf.Tensor] | None:
        if self.magnitude != "fixed" and self.concordance == 1.0:
            return None
        upper = math.sqrt(3.0) if self.distribution == "uniform" else 1.0
        kind = keras.initializers.RandomUniform(0.0, upper)
        if self.distribution == "normal":
            kind = keras.initializers.RandomNormal(stddev=1.0)
        magnitudes = seeded(kind, self.seed, index)
        places = seeded(keras.initializers.RandomUniform(0.0, 1.0), self.seed, index + _MASKS)

        def draw(shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
            values = tf.abs(magnitudes(shape, dtype=dtype)) if self.magnitude == "fixed" else tf.ones(shape, dtype)
            return tf.where(places(shape, dtype=dtype) < self.concordance, values, -values)

        return draw

    def __call__(
        self,
        kernel: tf.Tensor,
        variable: tf.Tensor | None,
        key: tf.Tensor,
        fans: tuple[float, float] | None = None,
    ) -> tf.Tensor:
        kernel = tf.convert_to_tensor(kernel)
        feedback = tf.sign(kernel)
        if variable is not None:
            feedback *= tf.cast(variable, kernel.dtype)
        if self.magnitude == "batch":
            feedback *= self._magnitudes(kernel.shape, kernel.dtype, key)
        return feedback * self._factor(kernel, feedback, fans or fans_of(kernel.shape))

    def _magnitudes(self, shape: Any, dtype: tf.DType, key: tf.Tensor) -> tf.Tensor:
        """Non-negative draws whose mean square is 1, a function of the seed and the key."""
        seed = key + tf.constant([(self.seed or 0) << 32, 0], tf.int64)
        if self.distribution == "uniform":
            return tf.cast(stateless_uniform(shape, seed, math.sqrt(3.0)), dtype)
        return tf.cast(tf.abs(stateless_normal(shape, seed)), dtype)

    def _factor(self, kernel: tf.Tensor, feedback: tf.Tensor, fans: tuple[float, float]) -> tf.Tensor:
        fan_in, fan_out = fans
        if self.scale == "norm":
            wide = tf.float64 if kernel.dtype == tf.float64 else tf.float32
            norms = [tf.norm(tf.cast(weights, wide)) for weights in (kernel, feedback)]
            return tf.cast(tf.math.divide_no_nan(*norms), kernel.dtype)
        if self.scale == "glorot":
            factor = math.sqrt(2.0 / (fan_in + fan_out))
        elif self.scale == "xiao":
            factor = math.sqrt(2.0 / fan_out) if len(kernel.shape) > 2 else 1.0 / math.sqrt(fan_in)
        else:
            factor = self.scale
        return tf.constant(factor, kernel.dtype)

    def get_config(self) -> dict[str, Any]:
        names = ("magnitude", "scale", "distribution", "concordance", "seed")
        return {name: getattr(self, name) for name in names}
