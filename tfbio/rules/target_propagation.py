r"""Target propagation: every stage gets a target for its output, sent down through learned inverses.

With the network cut into stages $h_l = f_l(h_{l-1}; \theta_l)$, $h_L = \text{predict}(f_L(h_{L-1}))$, and inverses
$g_l(h_l) \approx h_{l-1}$ of the stages above the first, all learning is local:

$$ \theta_l: \; \lVert f_l(h_{l-1}) - t_l \rVert^2 \;(l < L), \quad \ell \;(l = L), \qquad
   g_l: \; \lVert g_l(f_l(\tilde h)) - \tilde h \rVert^2, \quad \tilde h = h_{l-1} + \sigma \varepsilon,
   \; \varepsilon \sim N(0, 1) . $$

Inputs and targets are constants of each loss. The inverse loss is *noise-preserving* as it stands; *de-noising*, it
asks for $h_{l-1}$ in the place of $\tilde h$. The rules of the family differ in how targets come about, and in that
alone. This file has the core, and the plain way: from $t_L = t$, the loss's own minimum (the one-hot label under
softmax),

$$ t_l = g_{l+1}(t_{l+1}) . $$

Bengio 2014, "How auto-encoders could provide credit assignment in deep networks via target propagation"
(arXiv:1407.7906); Lee, Zhang, Fischer & Bengio 2015, "Difference Target Propagation" (arXiv:1412.7525).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio import inverses
from tfbio.feedback.bits import stateless_normal
from tfbio.network import stages
from tfbio.rules.backpropagation import regularization, weighted_loss
from tfbio.rules.base import LearningRule, Update, example_weights
from tfbio.rules.target_diagnostics import diagnose
from tfbio.serialization import register

__all__ = ["Map", "TargetPropagation", "one_of"]

Map = Callable[[tf.Tensor], tf.Tensor]


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


def local_loss(a: tf.Tensor, b: tf.Tensor, weights: tf.Tensor, reduction: str) -> tf.Tensor:
    """$\\sum_b w_b \\lVert a_b - b_b \\rVert^2$, or with the mean over units in the norm's place: a scalar."""
    return tf.reduce_sum(_by_example(weights, a) * _scale(a, reduction) * tf.square(a - b))


def local_signal(h: tf.Tensor, target: tf.Tensor, weights: tf.Tensor, reduction: str) -> tf.Tensor:
    """The derivative of `local_loss` at $h$, in its shape."""
    return 2.0 * _by_example(weights, h) * _scale(h, reduction) * (h - target)


def _by_example(weights: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.cast(weights, like.dtype), [-1, *[1] * (len(like.shape) - 1)])


def _scale(like: tf.Tensor, reduction: str) -> float:
    return 1.0 if reduction == "sum" else 1.0 / math.prod(like.shape[1:])


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """`tensor` in float32 at least: targets differ little from activations."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """`value`, if it is one of those known for the argument `name`.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(f"Invalid value for `{name}`: expected one of {tuple(known)}, received {value!r}.")
    return value


@register
class TargetPropagation(LearningRule):
    """Targets are the inverses' images of the targets above; the core that the whole family shares.

    Args:
        noise: $\\sigma$ of the inverse losses; one number, or one for each stage (those of stages without an inverse
            are not used).
        reconstruction: `"preserve"` (the inverse returns the noisy activation) or `"denoise"` (the clean one).
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
        inverses: $g_l$ for each stage, None where none is needed: at the first.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    #: Whether targets go through an inverse of the last stage.
    inverts_output = True

    def __init__(
        self,
        noise: float | Sequence[float] = 0.1,
        reconstruction: str = "preserve",
        reduction: str = "sum",
        schedule: str = "parallel",
        period: int | None = None,
        inverse: dict[str, Any] | Callable[..., keras.Model] | None = None,
        cuts: Sequence[str] | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        self.noise = noise if isinstance(noise, (int, float)) else tuple(noise)
        if min(self._sigmas(1)) < 0:
            raise ValueError(f"Invalid value for `noise`: expected numbers of at least 0, received {noise}.")
        self.reconstruction = one_of("reconstruction", reconstruction, ("preserve", "denoise"))
        self.reduction = one_of("reduction", reduction, ("sum", "mean"))
        self.schedule = one_of("schedule", schedule, ("parallel", "alternating"))
        if period is not None and (period < 1 or schedule == "parallel"):
            raise ValueError(
                f"Invalid value for `period`: expected a positive number of steps, with schedule='alternating', "
                f"received {period} with {schedule!r}."
            )
        self.period = period
        if isinstance(inverse, dict) and "class_name" in inverse:
            inverse = keras.saving.deserialize_keras_object(inverse)
        self.inverse = inverse
        self.cuts = None if cuts is None else tuple(cuts)
        self.seed = seed

    # Setup

    def setup(self) -> None:
        self.stages = stages(self.model, self.cuts)
        if len(self.stages) < 2:
            raise ValueError(
                f"Invalid value for `model`: expected one that can be cut into two stages or more, received "
                f"{self.model.name!r}, which is a single one: there is no target to propagate."
            )
        count = len(self.stages)
        if len(self._sigmas(count)) != count:
            raise ValueError(
                f"Invalid value for `noise`: expected one number or {count}, one for each stage, received {self.noise}."
            )
        inverted = range(1, count if self.inverts_output else count - 1)
        self.inverses = [self._make_inverse(number) if number in inverted else None for number in range(count)]

    def _sigmas(self, count: int) -> tuple[float, ...]:
        return (self.noise,) * count if isinstance(self.noise, (int, float)) else self.noise

    def _make_inverse(self, number: int, **options: Any) -> keras.Model:
        """The inverse of stage `number` (from 0), by the user's function or as its mirror image."""
        make = self.inverse
        if make is None or isinstance(make, dict):
            make = functools.partial(inverses.inverse, **(make or {}))
        stage, below = self.stages[number], self.stages[number - 1]
        result = make(stage, activation=inverses.output_activation(below), **options)
        if result.output_shape[1:] != stage.input_shape[1:]:
            raise ValueError(
                f"Invalid value for `inverse`: expected a model that returns the input of {stage.name!r}, of shape "
                f"{stage.input_shape}, received one that returns {result.output_shape}."
            )
        return result

    # What the members of the family differ in

    def find_targets(
        self, activations: list[tf.Tensor], target: tf.Tensor, gradient: Callable[[], tf.Tensor], weights: tf.Tensor
    ) -> list[tf.Tensor]:
        r"""The stages' targets.

        Args:
            activations: $h_1, …, h_L$.
            target: $t$, the shape of $h_L$.
            gradient: returns $\partial \ell / \partial h_{L-1}$ of each example.
            weights: `(batch,)`.

        Returns:
            $t_1, …, t_L$.
        """
        return plain_targets(target, self.inverses[1:])

    def _image(self, number: int, h: tf.Tensor) -> tf.Tensor:
        """What the inverse of stage `number` (from 0) takes, for an input $h$ of the stage."""
        return self._activation(number, h)

    # The core

    def _activation(self, number: int, h: tf.Tensor) -> tf.Tensor:
        """The activation of stage `number` (from 0) for an input $h$; the last one's is the prediction."""
        outputs = self.stages[number](h, training=True)
        return _wide(outputs) if number < len(self.stages) - 1 else self.loss.predict(outputs)

    def _forward(self, x: tf.Tensor, tape: tf.GradientTape) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """The stages' inputs, constants all, and their outputs; the tape watches the last input."""
        inputs, outputs = [], [x]
        for stage in self.stages:
            inputs.append(tf.nest.map_structure(tf.stop_gradient, outputs[-1]))
            if stage is self.stages[-1]:
                tape.watch(inputs[-1])
            outputs.append(stage(inputs[-1], training=True))
        return inputs, outputs[1:]

    def _targets(self, tape, inputs, outputs, y, weights) -> list[tuple[tf.Tensor, tf.Tensor]]:
        *hidden, logits = outputs
        activations = [*map(_wide, hidden), self.loss.predict(logits)]

        def gradient() -> tf.Tensor:
            return _wide(tape.gradient(logits, inputs[-1], tf.cast(self.loss.error(y, logits), logits.dtype)))

        targets = self.find_targets(activations, self.loss.target(y, logits), gradient, weights)
        return [(tf.stop_gradient(h), tf.stop_gradient(t)) for h, t in zip(activations, targets, strict=True)]

    def targets(self, x: tf.Tensor, y: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """`(activation, target)` of each stage on a batch; the last one's are the prediction and the loss's target."""
        with keras.StatelessScope(), tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            inputs, outputs = self._forward(tf.nest.map_structure(tf.convert_to_tensor, x), tape)
        return self._targets(tape, inputs, outputs, y, example_weights(x, None))

    def compute(self, x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor | None = None) -> Update:
        weights = example_weights(x, weights)
        variables = self.forward_variables
        values = [variable.value for variable in variables]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(values)
            inputs, outputs = self._forward(x, tape)
            *hidden, logits = outputs
            loss = weighted_loss(self.loss, y, logits, weights)
            penalty = regularization(self.model, weights, loss.dtype)
        pairs = self._targets(tape, inputs, outputs, y, weights)
        signals = [
            tf.cast(local_signal(h, t, weights, self.reduction), output.dtype)
            for (h, t), output in zip(pairs[:-1], hidden, strict=True)
        ]
        ones = [tf.ones_like(loss), tf.ones_like(penalty)]
        gradients = tape.gradient([*hidden, loss, penalty], values, [*signals, *ones], "zero")
        forward = [(tf.convert_to_tensor(g), v) for g, v in zip(gradients, variables, strict=True)]
        return Update(logits, loss + penalty, forward, self._learn_inverses(inputs, weights))

    def _learn_inverses(self, inputs: list[tf.Tensor], weights: tf.Tensor) -> list[tuple[tf.Tensor, keras.Variable]]:
        variables = self.feedback_variables
        values = [variable.value for variable in variables]
        losses = [tf.zeros((), tf.float32)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            for number, (g, sigma) in enumerate(zip(self.inverses, self._sigmas(len(self.inverses)), strict=True)):
                if g is None:
                    continue
                clean = _wide(inputs[number])
                noisy = clean + sigma * self._draw(number, clean) if sigma else clean
                with keras.StatelessScope():  # running statistics do not move for the noise
                    image = tf.stop_gradient(self._image(number, noisy))
                wanted = noisy if self.reconstruction == "preserve" else clean
                losses.append(local_loss(_wide(g(image, training=True)), wanted, weights, self.reduction))
        gradients = tape.gradient(losses, values, unconnected_gradients="zero")
        return [(tf.convert_to_tensor(g), v) for g, v in zip(gradients, variables, strict=True)]

    def _draw(self, number: int, like: tf.Tensor) -> tf.Tensor:
        """Standard normal noise, a function of the seed, the stage, the replica and the step."""
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        name = tf.constant(((self.seed or 0) << 32) + (number << 16), tf.int64) + tf.cast(replica, tf.int64)
        key = tf.stack([name, tf.convert_to_tensor(self.step)])
        return tf.cast(stateless_normal(tf.shape(like), key), like.dtype)

    # What others ask for

    def diagnostics(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        """The figures of `tfbio.rules.target_diagnostics`, by the name of each stage's first weighted layer."""
        pairs = self.targets(x, y)
        below = [None, *(h for h, _ in pairs[:-1])]
        with keras.StatelessScope():
            returned = [
                None if g is None else _wide(g(self._image(number, below[number]), training=True))
                for number, g in enumerate(self.inverses)
            ]
            reached = [self._activation(number, t) for number, (_, t) in enumerate(pairs[:-1], 1)]
        names = [next((layer.name for layer in stage.layers if layer.weights), stage.name) for stage in self.stages]
        return diagnose(names, pairs, returned, reached)

    @property
    def phases(self) -> tuple[tuple[str, ...], ...]:
        return (("feedback",), ("forward",)) if self.schedule == "alternating" else super().phases

    def phase(self, epoch: tf.Tensor) -> tf.Tensor:
        turn = epoch if self.period is None else tf.convert_to_tensor(self.step) // self.period
        return tf.cast(turn, tf.int32) % 2

    @property
    def variables(self) -> list[keras.Variable]:
        return [variable for g in self.inverses if g is not None for variable in g.variables]

    def get_config(self) -> dict[str, Any]:
        names = ("noise", "reconstruction", "reduction", "schedule", "period", "cuts", "seed")
        inverse = self.inverse
        if callable(inverse):
            inverse = keras.saving.serialize_keras_object(inverse)
        return {**{name: getattr(self, name) for name in names}, "inverse": inverse}
