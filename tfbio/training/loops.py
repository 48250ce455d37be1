"""The part of training that runs on devices: one step, and the graph loop over many of them.

A loop is one `tf.function` that runs as many steps as it is told, so that Python and the host take no part in them; it
ends early at the step whose loss is not finite.

Without a strategy the whole step is compiled by XLA: gradients, optimizer and averages. A strategy's optimizer steps
meet the other replicas outside the compiled code, so there, one replica or more, only the rule's computation is.

A rule whose groups of variables take turns has a step for each phase; what only the others need is not computed.
A rule whose feedback gets several updates from a batch makes all but the last before the step, in feedback loops.

A step may take its batch in parts (`tfbio.training.accumulation`): one update of the parts' summed gradients.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from tfbio.rules import LearningRule
from tfbio.rules.base import Batch, FeedbackLoop
from tfbio.training.accumulation import in_parts
from tfbio.training.averages import Averages
from tfbio.training.feeds import at_least_one
from tfbio.training.optimizing import follow, globally_clipped, remaining_gaps, together

__all__ = ["NO_STRATEGY", "Loops"]

#: The type of the strategy that is in force where none is: everything in a step can be compiled under it.
NO_STRATEGY = type(tf.distribute.get_strategy())

# Without AutoGraph, as Keras has its steps: neither has an `if` or `while` that had to be rewritten for tensors, and to
# look for one in all that a step calls makes a run slower to start.
_graph = functools.partial(tf.function, autograph=False)


class Loops:
    """The steps of a rule with its optimizers, and the loops over them, one for each feed.

    Args:
        rule: a built rule.
        optimizers: for the rule's forward and its feedback variables; without the second, the first has them all.
        strategy: where the steps run.
        jit_compile: compile with XLA.
        preprocessing: applied to inputs on the device, or None.
        averages: of training, and of evaluation.
        parts: in how many parts a replica takes its share of a batch, one after the other.
    """

    def __init__(
        self,
        rule: LearningRule,
        optimizers: tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer | None],
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        preprocessing: Any,
        averages: tuple[Averages, Averages],
        parts: int,
    ):
        self._rule = rule
        self._optimizer, self._feedback_optimizer = optimizers
        self._strategy = strategy
        self._replicas = strategy.num_replicas_in_sync
        self._jit_step = jit_compile and isinstance(strategy, NO_STRATEGY)
        self._jit_compute = jit_compile and not self._jit_step
        self._preprocessing = preprocessing
        self._averages, self._evaluation = averages
        self._parts = parts
        # Batch normalisation that is synchronised takes no harm from a replica without examples, and would count zeros.
        normalized = {layer.synchronized for layer in rule.model._flatten_layers() if hasattr(layer, "synchronized")}
        self._may_lack_examples = self._replicas == 1 or normalized == {True}
        self._made: dict[tuple, Any] = {}

    def training(self, feed: Any) -> Any:
        """The loop `(handle, epoch, first, count) -> last loss` that trains on a feed's batches."""
        return self._once(feed, self._training)

    def evaluation(self, feed: Any) -> Any:
        """The loop `(handle, epoch, first, count)` that adds a feed's batches to the averages of evaluation."""
        return self._once(feed, self._evaluating)

    def prepare(self, x: tf.Tensor) -> tf.Tensor:
        """Inputs as the model takes them."""
        return x if self._preprocessing is None else self._preprocessing(x)

    def _share(self, feed: Any, given: tuple) -> tuple:
        """A replica's `(x, y, weights, importance)` of a training batch."""
        share = feed.unpack(*given)
        return share if self._may_lack_examples else at_least_one(*share)

    def _once(self, feed: Any, make: Any) -> Any:
        key = (id(feed), make.__name__)
        if key not in self._made:
            self._made[key] = make(feed)
        return self._made[key]

    def _compute(self, phase: tuple[str, ...], part: Any, x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor) -> tuple:
        """The rule's update as tensors alone: gradients of the phase's groups, in the order of the rule's variables."""
        update = self._rule.update(Batch(x, y, weights, tf.reduce_sum(weights), part, self._parts))
        for group in ("forward", "feedback"):
            expected = [tuple(variable.shape) for variable in self._variables(group)]
            received = [tuple(gradient.shape) for gradient in getattr(update, group)]
            if expected != received:
                raise ValueError(
                    f"{type(self._rule).__name__}.update must return one gradient for each of `{group}_variables`, in "
                    f"their order; expected shapes {expected}, received {received}."
                )
        return update.outputs, update.loss, {group: getattr(update, group) for group in phase}

    def _variables(self, group: str) -> list[keras.Variable]:
        return getattr(self._rule, f"{group}_variables")

    def _train(
        self,
        phase: tuple[str, ...],
        compute: Any,
        x: tf.Tensor,
        y: tf.Tensor,
        weights: tf.Tensor,
        importance: tf.Tensor,
    ) -> tf.Tensor:
        def part(number: Any, x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor, importance: tf.Tensor) -> tuple:
            outputs, loss, gradients = compute(number, self.prepare(x), y, weights)
            self._averages.add(y, outputs, importance)
            return tf.cast(loss, tf.float32), gradients

        # Loss scaling, where float16 needs it, is a factor on every example: updates are linear in the weights.
        scaled = self._optimizer.scale_loss(weights)
        zeros = {group: [tf.zeros(v.shape, v.dtype) for v in self._variables(group)] for group in phase}
        loss, gradients = in_parts(part, self._parts, (tf.zeros(()), zeros), x, y, scaled, importance)
        gradients, gaps = together((gradients, remaining_gaps(self._optimizer, self._rule.followers)))
        for optimizer, own, variables in self._steps(gradients):
            optimizer.apply(globally_clipped(optimizer, own, self._replicas), variables)
        follow(self._rule.followers, gaps)
        return loss * tf.math.divide_no_nan(tf.reduce_sum(weights), tf.reduce_sum(scaled))

    def _steps(self, gradients: dict[str, list[tf.Tensor]]) -> list[tuple]:
        """`(optimizer, gradients, variables)` for each optimizer that takes a step."""
        variables = {group: self._variables(group) for group in ("forward", "feedback")}
        if self._feedback_optimizer is None:
            groups = [(self._optimizer, list(gradients))]
        else:
            gradients = {**gradients, "feedback": self._rescaled(gradients.get("feedback", []))}
            groups = [(self._optimizer, ["forward"]), (self._feedback_optimizer, ["feedback"])]
        steps = [
            (optimizer, sum((gradients.get(g, []) for g in names), []), sum((variables[g] for g in names), []))
            for optimizer, names in groups
        ]
        return [step for step in steps if step[1]]

    def _rescaled(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients under the first optimizer's loss scale, under the second's: each adapts its own."""
        factor = self._feedback_optimizer.scale_loss(1.0) / self._optimizer.scale_loss(1.0)
        if not tf.is_tensor(factor) and factor == 1.0:
            return gradients
        return [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]

    def _evaluate(self, x: tf.Tensor, y: tf.Tensor, importance: tf.Tensor) -> None:
        self._evaluation.add(y, self._rule.model(self.prepare(x), training=False), importance)

    def _step(self, phase: tuple[str, ...]) -> Any:
        """A step `(x, y, weights, importance) -> loss` in which the groups of a phase learn."""
        compute = functools.partial(self._compute, phase)
        if self._jit_compute:
            compute = _graph(compute, jit_compile=True)

        def step(x, y, weights, importance):
            return self._train(phase, compute, x, y, weights, importance)

        return _graph(step, jit_compile=True) if self._jit_step else step

    def _feedback_loop(self, loop: FeedbackLoop) -> Any:
        """One update `(inputs, weights, iteration)` of a part of the feedback."""
        optimizer, compute = self._feedback_optimizer, loop.gradients
        if self._jit_compute:
            compute = _graph(compute, jit_compile=True)

        def update(inputs, weights, iteration):
            gradients = compute(inputs, Batch.of(None, None, optimizer.scale_loss(weights)), iteration)
            gradients = globally_clipped(optimizer, together(gradients), self._replicas)
            optimizer.apply(gradients, loop.variables)

        return _graph(update, jit_compile=True) if self._jit_step else update

    def _feedback_loops(self, feed: Any) -> Any:
        """A function that runs all feedback loops on a batch, given what the feed takes for it."""
        updates = [(loop.count, self._feedback_loop(loop)) for loop in self._rule.feedback_loops]

        def observe(*given):
            x, _, weights, _ = self._share(feed, given)
            return self._rule.feedback_loop_inputs(self.prepare(x)), weights

        def iterate(arguments):
            seen = self._strategy.run(observe, arguments)
            for count, update in updates:

                def body(iteration, update=update):
                    self._strategy.run(update, (*seen, iteration))
                    return iteration + 1

                tf.while_loop(lambda iteration, count=count: iteration <= count, body, [1])

        return iterate

    def _training(self, feed: Any) -> Any:
        steps = [(phase, self._step(phase)) for phase in self._rule.phases]
        iterate = self._feedback_loops(feed) if self._rule.feedback_loops else None

        def run(phase, step, arguments):
            if iterate and "feedback" in phase:
                iterate(arguments)
            shares = self._strategy.run(lambda *given: step(*self._share(feed, given)), arguments)
            return self._strategy.reduce("sum", shares, axis=None)

        @_graph
        def loop(handle, epoch, first, count):
            def body(index, _):
                arguments = feed.take(handle, epoch, index)
                branches = [functools.partial(run, *step, arguments) for step in steps]
                loss = branches[0]() if len(steps) == 1 else tf.switch_case(self._rule.phase(epoch), branches)
                self._rule.step.assign_add(1)
                return index + 1, loss

            def goes_on(index, loss):
                return (index < first + count) & tf.math.is_finite(loss)

            return tf.while_loop(goes_on, body, [first, tf.zeros(())])[1]

        return loop

    def _evaluating(self, feed: Any) -> Any:
        evaluate = self._evaluate
        if self._jit_step:
            evaluate = _graph(evaluate, jit_compile=True)

        def step(*given):
            x, y, _, importance = feed.unpack(*given)
            evaluate(x, y, importance)

        @_graph
        def loop(handle, epoch, first, count):
            def body(index):
                self._strategy.run(step, feed.take(handle, epoch, index))
                return [index + 1]

            tf.while_loop(lambda index: index < first + count, body, [first])

        return loop
