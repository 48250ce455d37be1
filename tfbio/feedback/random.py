r"""Fixed random feedback: $B$ is drawn once and never changes.

Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep learning" (Nature
Communications 7:13276): the error passes back through $B$ instead of $W^\top$, and $W$ comes to align with it.

The literature's scales, all Keras initializers (fan-in and fan-out are the kernel's; where a layer shares no
weights between positions, those of one position):

| source | initializer |
|---|---|
| default: the scale of the forward weights (BioTorch) | `"glorot_uniform"` |
| Lillicrap et al. 2016 | `RandomUniform(-0.5, 0.5)` |
| Xiao et al. 2018, conv: $N(0, 2 / (k_h k_w c_{out}))$ | `VarianceScaling(2.0, "fan_out", "untruncated_normal")` |
| Xiao et al. 2018, dense: $U(\pm 1/\sqrt{n_{in}})$ | `VarianceScaling(1 / 3, "fan_in", "uniform")` |

`SignedRandom` lets the draw start with the forward weights' signs, $B = |B_0| \odot \mathrm{sign}(W_0)$, and keeps it:
feedback alignment with signed initialisation in the code of Xiao et al. 2018 (arXiv:1811.03567). Where $W$ keeps its
signs (`tfbio.optimizers.NoSignChangeSGD`), that is sign symmetry without any transport.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.fans import with_fans
from tfbio.feedback.base import FeedbackWeights
from tfbio.serialization import register

__all__ = ["Learned", "Random", "SignedRandom", "seeded"]


def seeded(initializer: Any, seed: int | None, index: int) -> Callable[..., tf.Tensor]:
    """A fresh copy of `initializer` with a seed of its own.

    Args:
        initializer: whatever `keras.initializers.get` takes.
        seed: the rule's seed; None takes the next number of Keras's global generator (`keras.utils.set_random_seed`).
        index: number of the draw, so that each kernel gets its own.

    Returns:
        A Keras initializer (a plain function as it is). Never the object passed: one with a fixed seed repeats its
        draw, and a kernel that is initialised by the same object would equal its feedback.
    """
    initializer = keras.initializers.get(initializer)
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer  # a plain function has no seed to set
    config = keras.initializers.serialize(initializer)
    if "seed" in config["config"]:
        drawn = None if seed is None else int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
        config = {**config, "config": {**config["config"], "seed": drawn}}
    return keras.initializers.deserialize(config)


@register
class Random(FeedbackWeights):
    """Backward weights drawn once, independent of the forward ones.

    Args:
        initializer: the distribution, anything that `keras.initializers.get` takes; see the module's table.
        scale: a factor on every draw.
        seed: None draws from Keras's global seed.
    """

    def __init__(self, initializer: Any = "glorot_uniform", scale: float = 1.0, seed: int | None = None):
        self._initializer = keras.initializers.get(initializer)
        self.scale = scale
        self.seed = seed

    def initializer(
        self, index: int, fans: tuple[float, float] | None = None, kernel: Any = None
    ) -> Callable[..., tf.Tensor]:
        draw = seeded(self._initializer, self.seed, index)
        if fans is not None:
            draw = with_fans(draw, fans)
        return lambda shape, dtype=None: self.scale * draw(shape, dtype=dtype)

    def __call__(
        self,
        kernel: tf.Tensor,
        variable: tf.Tensor | None,
        key: tf.Tensor,
        fans: tuple[float, float] | None = None,
    ) -> tf.Tensor:
        return variable

    def get_config(self) -> dict[str, Any]:
        return {
            "initializer": keras.initializers.serialize(self._initializer),
            "scale": self.scale,
            "seed": self.seed,
        }


@register
class SignedRandom(Random):
    """Backward weights drawn once, with the signs that the forward ones have when the feedback is made.

    Xiao et al.'s code gives all weights of a kernel one magnitude: `initializer="ones"`, with `scale` for their size.
    Where a forward weight is zero, the draw keeps its own sign.

    Args:
        initializer, scale, seed: as in `Random`.
    """

    def initializer(
        self, index: int, fans: tuple[float, float] | None = None, kernel: Any = None
    ) -> Callable[..., tf.Tensor]:
        random = super().initializer(index, fans)

        def draw(shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
            values = random(shape, dtype)
            signs = tf.sign(tf.cast(tf.convert_to_tensor(kernel), values.dtype))
            return tf.where(signs == 0, values, tf.abs(values) * signs)

        return draw


@register
class Learned(Random):
    """Backward weights that are drawn like `Random` ones and then learn, as the rule says (weight mirrors).

    Args:
        initializer, scale, seed: as in `Random`.
    """

    learned = True
