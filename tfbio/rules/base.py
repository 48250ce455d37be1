"""What a learning rule is: a function from a batch to an update for each variable.

A rule is built once for a model and a loss, and then only computes: it reads variables and writes none (the running
statistics of batch normalisation aside), so that a trainer may call it in a graph, compile it, and run it on any number
of replicas. To add one, subclass `LearningRule`; CONTRIBUTING.md has a complete example.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio import losses
from tfbio.network.instrumented import walk
from tfbio.optimizers import mark_kernels
from tfbio.rules.checks import build_layers, check_logits, check_model

__all__ = [
    "Batch",
    "FeedbackLoop",
    "LearningRule",
    "Update",
    "output_shape",
    "regularization",
    "weighted_loss",
]

_LOG = logging.getLogger("tfbio")


class Update(NamedTuple):
    """What a rule computes from one batch (or one replica's share of it).

    Attributes:
        outputs: the network's logits, `(batch, …)`.
        loss: scalar, float32: the weighted sum of the examples' losses, and the network's regularisation losses.
        forward: a gradient for each of `LearningRule.forward_variables`, in their order: what an optimizer subtracts.
        feedback: the same for `LearningRule.feedback_variables`, for an optimizer of their own.
        logs: scalars to report, for each name in `LearningRule.logs` a mean over the batch's examples, whatever the
            scale of the batch's weights.
    """

    outputs: Any
    loss: tf.Tensor
    forward: list[tf.Tensor]
    feedback: list[tf.Tensor] = []
    logs: dict[str, tf.Tensor] = {}


class Batch(NamedTuple):
    """What a rule computes an update from: a batch, or a replica's part of it.

    Attributes:
        x: inputs, nested tensors `(batch, …)`.
        y: labels as the loss takes them.
        weights: `(batch,)`: the factor of each example in all sums, `loss.factors`. A trainer passes sample weights
            over the number of terms of the **global** batch, so that updates are summed over replicas. Of several
            outputs, `(batch, columns)`: a factor for each output's loss (`tfbio.losses.base`).
        share: scalar: the part of the global batch that is here, the factor of what belongs to no single example, such
            as penalties on weights.
        microbatch: which part of the replica's share of the global batch this is, an integer scalar from 0. Noise is a
            function of it too.
        microbatches: how many parts there are; 1 but where gradients are accumulated.
    """

    x: Any
    y: Any
    weights: tf.Tensor
    share: tf.Tensor
    microbatch: int | tf.Tensor = 0
    microbatches: int = 1

    @classmethod
    def of(cls, x: Any, y: Any, weights: tf.Tensor | None = None, share: Any = None) -> "Batch":
        """A batch of examples with these weights; None for those of a mean over examples.

        Args:
            x, y, weights: as above.
            share: None for the sum of the weights: that of a loss with one term for each example.
        """
        if weights is None:
            count = tf.shape(tf.nest.flatten(x)[0])[0]
            weights = tf.fill([count], 1.0 / tf.cast(count, tf.float32))
        weights = tf.convert_to_tensor(weights)
        return cls(x, y, weights, tf.reduce_sum(weights) if share is None else tf.convert_to_tensor(share))


def weighted_loss(loss: losses.Loss, batch: Batch, outputs: Any) -> tf.Tensor:
    """$\\sum_b w_b \\ell_b$, over all outputs' losses if there are several: a scalar of the loss's dtype.

    An example of weight 0 adds nothing, even where its loss is NaN.
    """
    per_example = loss.per_example(batch.y, outputs)
    return tf.reduce_sum(tf.math.multiply_no_nan(per_example, tf.cast(batch.weights, per_example.dtype)))


def output_shape(model: keras.Model, x: Any) -> Any:
    """The shape of what the model returns, nested as that is, the batch axis included.

    Keras's `model.output_shape` is a flat list of the shapes in a dict.

    Args:
        model: functional ones know it; others are traced.
        x: inputs of a batch, as the model takes them.
    """
    outputs = losses.output_structure(model)
    if outputs is None:
        inputs = keras.tree.map_structure(lambda part: keras.KerasTensor((None, *part.shape[1:]), part.dtype), x)
        outputs = model.compute_output_spec(inputs)
    return keras.tree.map_structure(lambda output: tuple(output.shape), outputs)


def regularization(network: keras.Model, batch: Batch, dtype: tf.DType) -> tf.Tensor:
    """The network's own penalties, times the batch's share of the global one, so that replicas sum to one."""
    if not network.losses:
        return tf.zeros((), dtype)
    # Under mixed precision, penalties on outputs and on weights differ in dtype.
    return tf.add_n([tf.cast(loss, dtype) for loss in network.losses]) * tf.cast(batch.share, dtype)


class FeedbackLoop(NamedTuple):
    """Updates of a part of the feedback alone that come before a batch's step, each applied before the next.

    Attributes:
        count: how many.
        variables: those of `LearningRule.feedback_variables` that take part.
        gradients: `(inputs, batch, iteration) -> ` a gradient for each of them: of the batch's `feedback_loop_inputs`,
            of the batch as for `update`, and of the number of the iteration, an integer scalar that counts from 1.
    """

    count: int
    variables: list[keras.Variable]
    gradients: Callable[[Any, Batch, tf.Tensor], list[tf.Tensor]]


class LearningRule:
    """Base of all rules. Subclasses define `update`, and `setup` if they need variables or a rewired network.

    Attributes:
        model: what `build` was given; None before.
        loss: the same.
        step: number of updates taken so far, int64. Whoever applies updates counts them here; what is random in a rule
            is a stateless function of it.
    """

    #: Which groups of variables ("forward", "feedback") learn together, phase by phase. Most rules have one phase.
    phases: tuple[tuple[str, ...], ...] = (("forward", "feedback"),)

    #: Whether the loss has to say what the output should be (`target`). Most rules need its derivative alone.
    needs_canonical_loss = False

    #: What a batch's step is preceded by. Most rules have nothing of the kind.
    feedback_loops: tuple[FeedbackLoop, ...] = ()

    #: Names of the scalars in `Update.logs`. Their averages over an epoch stand beside its loss.
    logs: tuple[str, ...] = ()

    def __init__(self):
        self.model: keras.Model | None = None
        self.loss: losses.Loss | None = None
        self.step: tf.Variable | None = None

    def build(self, model: keras.Model, loss: Any) -> None:
        """Binds the rule to a model, creating all its variables. Call it inside the strategy's scope.

        Args:
            model: a built Keras model; of canonical losses, one that ends in logits.
            loss: whatever `tfbio.losses.get` takes.

        Raises:
            ValueError: the rule is built already, the model isn't, it ends in the activation that the loss contains, it
                lacks an output that the loss is for, or the rule needs another kind of loss.
        """
        if self.model is not None:
            raise ValueError(
                f"Invalid call: this {type(self).__name__} is already built for {self.model.name!r}. Make a new one "
                "for another model: type(rule).from_config(rule.get_config())."
            )
        check_model(model)
        build_layers(model)
        loss = losses.get(loss, model)
        if self.needs_canonical_loss and not loss.canonical:
            raise ValueError(
                f"Invalid value for `loss`: {type(self).__name__} needs a canonical loss, which says what the output "
                "should be (tfbio.losses.SoftmaxCrossEntropy, SigmoidCrossEntropy or MeanSquaredError), received "
                f"{loss.described()}."
            )
        check_logits(model, loss)
        self.model, self.loss = model, loss
        mark_kernels(place[-1] for _, place in walk(model))
        self.step = tf.Variable(
            0, dtype=tf.int64, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name="step"
        )
        try:
            self.setup()
        except BaseException:
            self.model = self.loss = None  # a refused model leaves the rule as it was
            raise

    def setup(self) -> None:
        """Creates what the rule needs beside `self.model` and `self.loss`; called once by `build`."""

    def compute(self, x: Any, y: Any, weights: tf.Tensor | None = None) -> Update:
        """The update from one batch: `update` for who has no `Batch` at hand.

        Args:
            x: inputs, `(batch, …)`.
            y: labels as the loss takes them.
            weights: each example's factor in all sums, as `Batch.weights`; None averages over this batch's terms.
        """
        if weights is not None:
            return self.update(Batch.of(x, y, weights))
        ones = tf.ones(tf.shape(tf.nest.flatten(x)[0])[:1])
        totals = self.loss.totals(y, output_shape(self.model, x), ones)
        return self.update(Batch.of(x, y, self.loss.factors(ones, totals), 1.0))

    def update(self, batch: Batch) -> Update:
        """The update from one batch.

        A trainer calls it in a graph and, as Keras does, without AutoGraph: what depends on a tensor's value is written
        with `tf.cond` and `tf.while_loop`, or in a function of its own under `tf.function`.

        Args:
            batch: a batch, or a part of it.

        Returns:
            An `Update`, linear in the batch's weights and share.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `update`.")

    def feedback_loop_inputs(self, x: Any) -> Any:
        """What the feedback loops need of a batch: nested tensors, computed once. Asked for only if there are loops."""
        raise NotImplementedError(f"{type(self).__name__} has no feedback loops.")

    def pathways(self, x: tf.Tensor) -> list[tuple[str, tf.Tensor, tf.Tensor]]:
        """What the rule's feedback stands in for, to measure how well it does.

        Args:
            x: inputs of a batch, `(batch, …)`.

        Returns:
            `(name, forward, feedback)`, two tensors of the same shape, for each part of the feedback pathway that is
            not exact; none by default.
        """
        return []

    def diagnostics(self, x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        """Figures of the rule's own, to follow in the course of training.

        Args:
            x: inputs of a batch, `(batch, …)`.
            y: its labels.

        Returns:
            Scalars by `<figure>/<layer or stage>`, functions of weights and batch alone; none by default.
        """
        return {}

    def phase(self, epoch: tf.Tensor) -> tf.Tensor:
        """The number of this step's phase in `phases`: a function of `epoch` and `step` alone, so that it resumes.

        Only the optimizers of the phase's groups take a step; the others keep their variables and moments untouched.

        Args:
            epoch: number of the epoch, from 0, an integer scalar.

        Returns:
            int32 scalar. Asked for only if there is more than one phase.
        """
        return tf.zeros((), tf.int32)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Says once where the rule does nothing with this optimizer. Whoever makes the optimizer calls it, once.

        Args:
            optimizer: of the forward variables, within what scales the loss, if that is around it.
        """

    def warn(self, message: str) -> None:
        """Logs a warning about what this rule is for this model, for who did not mean that."""
        _LOG.warning(f"{type(self).__name__} of {self.model.name!r}: {message}")

    @property
    def forward_variables(self) -> list[keras.Variable]:
        """The variables of `Update.forward`, in its order."""
        return self.model.trainable_variables

    @property
    def variables(self) -> list[keras.Variable]:
        """All variables that the rule owns beside the model's: fixed and learned feedback. Checkpoints hold them."""
        return []

    @property
    def followers(self) -> list[tuple[keras.Variable, keras.Variable]]:
        r"""`(b, w)`: variables $b$ of the rule's own that take the steps of the model's $w$; none by default.

        Whoever applies updates lets $b$ have the step that $w$'s optimizer makes, decay included, so that $w - b$
        shrinks by the optimizer's decay alone (`tfbio.training.updater`).
        """
        return []

    @property
    def feedback_variables(self) -> list[keras.Variable]:
        """The variables of `Update.feedback`, in its order: those of `variables` that learn."""
        return [variable for variable in self.variables if variable.trainable]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LearningRule":
        """The inverse of `get_config`: an unbuilt rule."""
        return cls(**config)
