r"""The inverses of target propagation: what they are made from, and how they learn.

Each stage $f_l$ above the first may have an inverse $g_l$, a model of its own, which learns from noise sent through the
stage: `tfbio.rules.local_losses` has the losses. `LearnedInverses` is the half of `TargetPropagation` that has to do
with this; the other half says what targets are made of them.

A batch may give an inverse several updates. The last comes with that of the forward weights, from one snapshot as
everywhere; those before it are a *feedback loop*, by the optimizer, on activations that are computed once, with new
noise each time.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.feedback.bits import stateless_normal
from tfbio.keras_internals import mask
from tfbio.network import inverses
from tfbio.network.graph import check_graph, check_one_output
from tfbio.network.stages import run, stages
from tfbio.rules.base import Batch, FeedbackLoop, LearningRule
from tfbio.rules.local_losses import OF_DIFFERENCES, RECONSTRUCTIONS, weighted_sum, wide

__all__ = ["LearnedInverses", "one_of"]


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """`value`, if it is one of those known for the argument `name`.

    Raises:
        ValueError: it is not.
    """
    if value not in known:
        raise ValueError(f"Invalid value for `{name}`: expected one of {tuple(known)}, received {value!r}.")
    return value


class LearnedInverses(LearningRule):
    """A rule with a learned inverse of each stage above the first. Arguments and attributes: `TargetPropagation`'s."""

    needs_canonical_loss = True
    #: Whether targets go through an inverse of the last stage.
    inverts_output = True
    #: Whether $h_L$ is the logits, and the last stage learns from a target, as the others do, not from the loss.
    targets_logits = False
    #: Makes the inverses, given what is inverted and the activation of what lies below.
    make_inverse = staticmethod(inverses.inverse)

    def __init__(
        self,
        noise: float | Sequence[float] = 0.1,
        reconstruction: str = "preserve",
        feedback_iterations: int | Sequence[int] = 1,
        reduction: str = "sum",
        schedule: str = "parallel",
        period: int | None = None,
        inverse: dict[str, Any] | Callable[..., keras.Model] | None = None,
        cuts: Sequence[str] | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        self.noise = noise if isinstance(noise, (int, float)) else tuple(noise)
        if min(_each(self.noise, 1)) < 0:
            raise ValueError(f"Invalid value for `noise`: expected numbers of at least 0, received {noise}.")
        self.reconstruction = one_of("reconstruction", reconstruction, RECONSTRUCTIONS)
        if reconstruction in OF_DIFFERENCES and 0 in _each(self.noise, 2)[1:]:
            raise ValueError(
                f"Invalid value for `noise`: reconstruction={reconstruction!r} needs some, received {noise}."
            )
        self.feedback_iterations = (
            feedback_iterations if isinstance(feedback_iterations, int) else tuple(feedback_iterations)
        )
        if min(_each(self.feedback_iterations, 1)) < 1:
            raise ValueError(
                f"Invalid value for `feedback_iterations`: expected positive numbers, received {feedback_iterations}."
            )
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
        check_graph(self.model)
        check_one_output(self.model)
        self.stages = stages(self.model, self.cuts)
        count = len(self.stages)
        if count < 2:
            raise ValueError(
                f"Invalid value for `model`: expected one that can be cut into two stages or more, received "
                f"{self.model.name!r}, which is a single one: there is no target to propagate."
            )
        for stage in self.stages[:-1]:
            if mask(stage.outputs[0]) is not None:
                raise ValueError(
                    f"Invalid value for `model`: expected stages without masks between them, because targets have "
                    f"none; received one behind {stage.name!r}. Leave out mask_zero=True and Masking layers."
                )
        for name in ("noise", "feedback_iterations"):
            if len(_each(getattr(self, name), count)) != count:
                raise ValueError(
                    f"Invalid value for `{name}`: expected one number or {count}, one for each stage, received "
                    f"{getattr(self, name)}."
                )
        self.inverted = self.find_inverted()
        needed = range(1, count if self.inverts_output else count - 1)
        self.inverses = [self._make_inverse(number) if number in needed else None for number in range(count)]

    def find_inverted(self) -> list[keras.Model | None]:
        """What the inverses invert, one for each stage: a model from the stage's input."""
        return self.stages

    def _make_inverse(self, number: int, **options: Any) -> keras.Model:
        """The inverse of stage `number` (from 0), by the user's function or by `tfbio.inverse`."""
        make = self.inverse
        stage, below = self.inverted[number], self.stages[number - 1]
        activation = inverses.output_activation(below)
        if make is None or isinstance(make, dict):
            make, options = self.make_inverse, {**(make or {}), **options}
        result = make(stage, **{"activation": activation, **options})
        if result.output_shape[1:] != stage.input_shape[1:]:
            raise ValueError(
                f"Invalid value for `inverse`: expected a model that returns the input of {stage.name!r}, of shape "
                f"{stage.input_shape}, received one that returns {result.output_shape}."
            )
        return result

    # Learning

    def _activations(self, outputs: list[tf.Tensor]) -> list[tf.Tensor]:
        """$h_1, …, h_L$."""
        return [self._activation(number, output) for number, output in enumerate(outputs)]

    def _activation(self, number: int, output: tf.Tensor) -> tf.Tensor:
        """What $h$ is, for what stage `number` (from 0) puts out."""
        predicts = number == len(self.stages) - 1 and not self.targets_logits
        return self.loss.predict(output) if predicts else wide(output)

    def _examples(self, inputs: list[tf.Tensor], activations: list[tf.Tensor]) -> dict[int, tuple]:
        """What each inverse learns from: an input $h$ of what it inverts, and the image $u$ of that, as it takes it."""
        pairs = {n: (wide(inputs[n]), activations[n]) for n, g in enumerate(self.inverses) if g is not None}
        return tf.nest.map_structure(tf.stop_gradient, {n: (h, self._seen(n, h, u)) for n, (h, u) in pairs.items()})

    def _seen(self, number: int, h: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        """What inverse `number` (from 0) takes, for an input of what it inverts and the image of that."""
        return image

    def _image(self, number: int, h: tf.Tensor) -> tf.Tensor:
        """What inverse `number` takes, for an input $h$ of what it inverts: a constant."""
        with keras.StatelessScope():  # running statistics do not move for the noise
            outputs = self.inverted[number](h, training=True)
        return tf.stop_gradient(self._seen(number, h, self._activation(number, outputs)))

    def inverse_loss(self, number: int, h: tf.Tensor, u: tf.Tensor, batch: Batch, iteration: Any) -> tf.Tensor:
        """The loss of an inverse on a batch: a scalar."""
        inverse, count = self.inverses[number], len(self.stages)
        if self.reconstruction in OF_DIFFERENCES and _is_random(self.inverted[number]):
            u = self._image(number, h)  # of the noisy input's dropout: only what its noise makes of it shall differ
        error = RECONSTRUCTIONS[self.reconstruction](
            functools.partial(self._image, number),
            lambda image: wide(inverse(image, training=True)),
            h,
            u,
            _each(self.noise, count)[number],
            lambda like, other=0: self._draw(number + other * count, like, batch, iteration),
        )
        return weighted_sum(error, batch.weights, self.reduction)

    def learn_inverses(self, examples: dict[int, tuple], batch: Batch, iteration: Any = 0) -> list[tf.Tensor]:
        """Gradients of the losses of those inverses for which there are examples, for their trainable variables."""
        values = [v.value for number in examples for v in self.inverses[number].trainable_variables]
        losses = [tf.zeros((), tf.float32)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            losses += [self.inverse_loss(n, *pair, batch, iteration) for n, pair in examples.items()]
        gradients = tape.gradient(losses, values, unconnected_gradients="zero")
        return [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _draw(self, number: int, like: tf.Tensor, batch: Batch, iteration: Any = 0) -> tf.Tensor:
        """Standard normal noise of the seed, a number, the replica, microbatch, the step and the iteration in it."""
        context = tf.distribute.get_replica_context()
        replica = 0 if context is None else context.replica_id_in_sync_group
        share = tf.cast(replica, tf.int64) * batch.microbatches + tf.cast(batch.microbatch, tf.int64)
        name = tf.constant(((self.seed or 0) << 32) + (number << 16), tf.int64) + share
        key = tf.stack([name, tf.convert_to_tensor(self.step) + tf.cast(iteration, tf.int64) * 2**40])
        return tf.cast(stateless_normal(tf.shape(like), key), like.dtype)

    # What the trainer asks for

    @property
    def feedback_loops(self) -> tuple[FeedbackLoop, ...]:
        iterations = enumerate(_each(self.feedback_iterations, len(self.stages)))
        return tuple(
            FeedbackLoop(count - 1, self.inverses[number].trainable_variables, functools.partial(self._iterate, number))
            for number, count in iterations
            if count > 1 and self.inverses[number] is not None
        )

    def feedback_loop_inputs(self, x: tf.Tensor) -> dict[int, tuple]:
        with keras.StatelessScope():
            ran = run(self.stages, x)
        return self._examples(ran.inputs, self._activations(ran.outputs))

    def _iterate(self, number: int, inputs: dict[int, tuple], batch: Batch, iteration: tf.Tensor) -> list[tf.Tensor]:
        return self.learn_inverses({number: inputs[number]}, batch, iteration)

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
        names = ("noise", "reconstruction", "feedback_iterations", "reduction", "schedule", "period", "cuts", "seed")
        inverse = self.inverse
        if callable(inverse):
            inverse = keras.saving.serialize_keras_object(inverse)
        return {**{name: getattr(self, name) for name in names}, "inverse": inverse}


def _is_random(path: keras.Model) -> bool:
    """True if the model draws random numbers, as dropout does."""
    return any(variable.name == "seed_generator_state" for variable in path.non_trainable_variables)


def _each(value: Any, count: int) -> tuple:
    """A number for each of `count` stages: `value` itself if it has one for each."""
    return (value,) * count if isinstance(value, (int, float)) else value
