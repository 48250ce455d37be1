r"""Weight mirrors: backward weights that learn the forward ones from the layers' response to noise.

In mirror mode every layer is alone. It is driven with noise $x$ of mean 0 and variance 1, and answers with
$y = f(x; W) - f(0; W)$, before its activation. Where a weight joins an input and an output, their product has the mean
$W$: averaged over the examples and over the places where a kernel is used ($n$ in all),

$$ \hat W = \frac{1}{n} \sum x \otimes y, \qquad \mathrm{E}[\hat W] = W, \qquad
   B \leftarrow B + η (\hat W - λ B) . $$

The Hebbian term alone would let $B$ grow for ever. With $λ = 1$, used here, its decay is as large as its growth: $B$ is
a running mean of unbiased estimates of $W$, of $W$'s own size, that forgets at the rate $η$, the learning rate of the
feedback optimizer. The paper's decay is this $λ$; its noise variance is in $η$.

A separable convolution has two kernels, one behind the other. Each is mirrored with fresh noise in the other's place:
the signal that reaches the pointwise kernel is white then, and what the random pointwise kernel makes of the depthwise
one's answer averages to that answer. Both estimates keep the mean $W$.

Akrout, Wilson, Humphreys, Lillicrap & Tweed 2019, "Deep Learning without Weight Transport" (arXiv:1904.05391).
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfbio import feedback as feedback_weights
from tfbio.feedback.bits import stateless_bits
from tfbio.layers import Feedback, kernels
from tfbio.layers.recurrent_feedback import RecurrentFeedback
from tfbio.rules.base import Batch, Update
from tfbio.rules.feedback_alignment import FeedbackRule
from tfbio.serialization import register

__all__ = ["WeightMirror", "noise"]

# Numbers of the draws that stand in for kernels, beyond those of layers.
_STAND_INS = 1 << 20


def noise(shape: tuple[int, ...], key: tf.Tensor) -> tf.Tensor:
    """Random signs: of all noise of mean 0 and variance 1, that with the least scatter in $x \\otimes y$.

    Args:
        shape: of the result.
        key: `(2,)`, int64, what it is a function of, the same with XLA and without.

    Returns:
        ±1, float32.
    """
    return tf.where(stateless_bits(shape, key) < 0, -1.0, 1.0)


@register
class WeightMirror(FeedbackRule):
    """Feedback alignment whose backward weights are taught by noise.

    They learn in mirror steps, one in `interval`, and rest in all others. The first is step 0. `Update.feedback` is
    $B - \\hat W$ for the optimizer of the feedback, plain SGD as a rule, whose learning rate is $η$. A dense layer with
    $n$ inputs and kernel at rest comes to an angle of about $\\arctan \\sqrt{η n / 2 N}$ with its feedback, $N$ being
    `examples`. Noise is a function of seed, layer and step, the same on every replica.

    Args:
        initializer, scale, seed: of the first backward weights, as in `FeedbackAlignment`; `seed` also fixes the noise
            (None: 0).
        interval: steps from one mirror step to the next.
        examples: examples of noise in a mirror step.
        last_layer, allow_backpropagation, output_layers: as in `FeedbackRule`.

    Raises:
        ValueError: `interval` or `examples` below 1.
    """

    def __init__(
        self,
        initializer: Any = "glorot_uniform",
        scale: float = 1.0,
        seed: int | None = None,
        interval: int = 1,
        examples: int = 64,
        last_layer: Any = "same",
        allow_backpropagation: Iterable[Any] = (),
        output_layers: Iterable[Any] | None = None,
    ):
        for name, value in {"interval": interval, "examples": examples}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Invalid value for `{name}`: expected a positive int, received {value!r}.")
        feedback = feedback_weights.Learned(initializer, scale, seed)
        super().__init__(feedback, last_layer, allow_backpropagation, output_layers)
        self.interval = interval
        self.examples = examples

    def make_network(self) -> keras.Model:
        network = super().make_network()
        self._mirrors = [layer for layer in self.feedback_layers if layer.feedback.learned]
        for layer in self._mirrors:
            if isinstance(layer, RecurrentFeedback):
                raise ValueError(
                    f"Invalid value for `model`: expected layers that can be driven with noise, received the recurrent "
                    f"cell {layer.layer.name!r}; pass allow_backpropagation=({layer.layer.name!r},)."
                )
            if None in layer.input_shape[1:]:
                raise ValueError(
                    f"Invalid value for `model`: a weight mirror needs inputs of a fixed size, received "
                    f"{layer.input_shape} at {layer.layer.name!r}. Give the model a fixed input shape."
                )
        return network

    def update(self, batch: Batch) -> Update:
        update = super().update(batch)
        # Every replica sees the same noise and contributes its share of the global batch: they sum to one update.
        estimates = [estimate for layer in self._mirrors for estimate in self._mirrored(layer)]
        learned = zip(estimates, self.feedback_variables, strict=True)
        return update._replace(feedback=[(b.value - w) * tf.cast(batch.share, b.dtype) for w, b in learned])

    def _mirrored(self, layer: Feedback) -> list[tf.Tensor]:
        """$\\hat W$ for each of a layer's kernels."""

        def draw(number: int, shape: tuple[int, ...]) -> tf.Tensor:
            words = [tf.constant(((self.feedback.seed or 0) << 32) + number, tf.int64), tf.convert_to_tensor(self.step)]
            return noise(shape, tf.stack(words))

        weights = kernels(layer.layer)
        others = [draw(_STAND_INS + 2 * layer.index + n, kernel.shape) for n, kernel in enumerate(weights)]
        return layer.mirrored(draw(layer.index, (self.examples, *layer.input_shape[1:])), others)

    @property
    def phases(self) -> tuple[tuple[str, ...], ...]:
        everything = ("forward", "feedback")
        return (everything,) if self.interval == 1 else (everything, ("forward",))

    def phase(self, epoch: tf.Tensor) -> tf.Tensor:
        return tf.minimum(tf.cast(tf.convert_to_tensor(self.step) % self.interval, tf.int32), 1)

    def get_config(self) -> dict[str, Any]:
        return {
            **self.feedback.get_config(),
            "interval": self.interval,
            "examples": self.examples,
            **super().get_config(),
        }
