"""What a learning rule is: a function from a batch to an update for each variable.

A rule is built once for a model and a loss, and then only computes: it reads variables and writes none (the running
statistics of batch normalisation aside), so that a trainer may call it in a graph, compile it, and run it on any number
of replicas. To add one, subclass `LearningRule`; CONTRIBUTING.md has a complete example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfbio import losses

__all__ = ["Batch", "FeedbackLoop", "LearningRule", "Update", "regularization", "weighted_loss"]

# Layers that pass values on as they are, `Activation` only with a linear one.
_LINEAR = keras.activations.linear
_PASSING = (keras.layers.Activation, keras.layers.Flatten, keras.layers.Identity, keras.layers.Reshape)


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
        weights: `(batch,)`: the factor of each example in all sums. A trainer passes one over the number of terms of
            the **global** batch, so that updates are summed over replicas.
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
    def of(cls, x: Any, y: Any, weights: tf.Tensor | None = None) -> "Batch":
        """A batch of examples with these weights; None for those of a mean."""
        if weights is None:
            count = tf.shape(tf.nest.flatten(x)[0])[0]
            weights = tf.fill([count], 1.0 / tf.cast(count, tf.float32))
        weights = tf.convert_to_tensor(weights)
        return cls(x, y, weights, tf.reduce_sum(weights))


def weighted_loss(loss: losses.Loss, batch: Batch, outputs: Any) -> tf.Tensor:
    """$\\sum_b w_b \\ell_b$: a scalar of the loss's dtype."""
    per_example = loss.per_example(batch.y, outputs)
    return tf.reduce_sum(tf.cast(batch.weights, per_example.dtype) * per_example)


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
            model: a built Keras model that ends in logits.
            loss: a `tfbio.losses` loss, name or config.

        Raises:
            ValueError: the rule is built already, the model isn't, or it ends in the activation that the loss contains.
        """
        if self.model is not None:
            raise ValueError(
                f"Invalid call: this {type(self).__name__} is already built for {self.model.name!r}. Make a new one "
                "for another model: type(rule).from_config(rule.get_config())."
            )
        loss = losses.get(loss)
        check_logits(model, loss)
        self.model, self.loss = model, loss
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
            weights: `(batch,)`: each example's factor in all sums; None averages over this batch.
        """
        return self.update(Batch.of(x, y, weights))

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


def check_logits(model: keras.Model, loss: losses.Loss) -> None:
    """Refuses a model that is not built or whose last activation the loss contains already.

    Raises:
        ValueError: says what to pass instead.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"Invalid value for `model`: expected a keras.Model, received {model!r}.")
    if not model.built:
        raise ValueError(
            f"Invalid value for `model`: expected a built model, received {model.name!r}, which has no variables yet. "
            "Give it a keras.Input, or call it on a batch, first."
        )
    if not getattr(model, "outputs", None):
        return  # a subclassed model shows no last layer
    layer = _output_layer(model)
    activation = getattr(layer, "activation", layer)  # a layer may have another one as its activation, or be one
    activation = getattr(activation, "__name__", type(activation).__name__).lower().removesuffix("_v2")  # tf.nn's
    if activation.replace("_", "") in {name.replace("_", "") for name in loss.contains}:  # keras.ops say LogSoftmax
        raise ValueError(
            f"Invalid value for `model`: expected logits as output, for {type(loss).__name__} contains the output "
            f"activation; layer {layer.name!r} of {model.name!r} ends in {activation}. Build it without: activation="
            "None (in keras.applications: classifier_activation=None)."
        )


def _output_layer(model: keras.Model) -> Any:
    """The layer whose values the model returns, looking into nested models and through what only passes them on."""
    tensor = model.outputs[0]
    while True:
        history = tensor._keras_history
        layer = history.operation
        if isinstance(layer, keras.Model) and getattr(layer, "outputs", None):
            tensor = layer.outputs[history.tensor_index]
        elif isinstance(layer, _PASSING) and getattr(layer, "activation", _LINEAR) is _LINEAR:
            tensor = layer._inbound_nodes[history.node_index].input_tensors[0]
        else:
            return layer
