"""The part of training that runs on devices: one step, and the graph loop over many of them.

A loop is one `tf.function` that runs as many steps as it is told, so that Python and the host take no part in them; a
training loop ends early at the step whose loss is not finite.

Without a strategy the whole step is compiled by XLA: gradients, optimizer and averages. A strategy's optimizer steps
meet the other replicas outside the compiled code, so there, one replica or more, only the rule's computation is.

A rule whose groups of variables take turns has a step for each phase; what only the others need is not computed.
A rule whose feedback gets several updates from a batch makes all but the last before the step, in feedback loops.

A step may take its batch in microbatches (`tfbio.training.accumulation`): one update of their summed gradients.

Graphs belong to the loops and not to feeds: those whose readers are equal and whose elements have the same types share
one, and a loop holds no data.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfbio.keras_internals import all_layers
from tfbio.rules import LearningRule
from tfbio.rules.base import Batch, FeedbackLoop
from tfbio.training.accumulation import sum_over_microbatches
from tfbio.training.batches import Examples, Totals, at_least_one, make_batch, make_totals, shape_of_outputs
from tfbio.training.preprocessing import Preprocessing
from tfbio.training.updater import Updater

__all__ = ["NO_STRATEGY", "EvaluationLoop", "TrainingLoop"]

#: The type of the strategy that is in force where none is: everything in a step can be compiled under it.
NO_STRATEGY = type(tf.distribute.get_strategy())

# Without AutoGraph, as Keras has its steps: neither has an `if` or `while` that had to be rewritten for tensors, and to
# look for one in all that a step calls makes a run slower to start.
_graph = functools.partial(tf.function, autograph=False)


class TrainingLoop:
    """Training steps of a rule, in one graph.

    Args:
        rule: a built rule.
        updater: applies its updates.
        strategy: where the steps run.
        jit_compile: compile with XLA.
        preprocessing: applied to inputs on the device.
        record: called on a replica with labels, outputs, sample weights and the rule's logs of each (micro)batch.
        microbatches: in how many parts a replica takes its examples of a batch, one after the other.
    """

    def __init__(
        self,
        rule: LearningRule,
        updater: Updater,
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        preprocessing: Preprocessing,
        record: Callable[..., None],
        microbatches: int = 1,
    ):
        self._rule, self._updater, self._strategy = rule, updater, strategy
        self._jit_step = jit_compile and isinstance(strategy, NO_STRATEGY)
        self._jit_compute = jit_compile and not self._jit_step
        self._preprocessing, self._record, self._microbatches = preprocessing, record, microbatches
        # Batch normalisation that is synchronised takes no harm from a replica without examples, and would count zeros.
        normalized = {layer.synchronized for layer in all_layers(rule.model) if hasattr(layer, "synchronized")}
        self._may_lack_examples = strategy.num_replicas_in_sync == 1 or normalized == {True}
        self._loops: dict[Any, Callable] = {}

    def __call__(self, feed: Any, handle: Any, epoch: int, first: int, count: int) -> tf.Tensor:
        """Takes `count` steps from batch `first` of an epoch on.

        Args:
            feed: where batches come from.
            handle: what its `open` returned.
            epoch: the epoch, from 0.
            first: the batch that comes next.
            count: number of steps.

        Returns:
            The last step's loss: a scalar, the first that is not finite.
        """
        if feed.reader not in self._loops:
            self._loops[feed.reader] = self._make_loop(feed.reader)
        return self._loops[feed.reader](handle, tf.constant(epoch), tf.constant(first), tf.constant(count))

    def _make_loop(self, reader: Any) -> Callable:
        steps = [(phase, self.step(phase)) for phase in self._rule.phases]
        run_feedback_loops = self._feedback_loops(reader) if self._rule.feedback_loops else None

        def run(phase: tuple[str, ...], step: Callable, handle: Any, taken: tuple) -> tf.Tensor:
            if run_feedback_loops and "feedback" in phase:
                run_feedback_loops(handle, taken)
            losses = self._strategy.run(lambda *args: step(*self._examples(reader, handle, args)), taken)
            return self._strategy.experimental_local_results(losses)[0]  # the same on all replicas

        @_graph
        def loop(handle, epoch, first, count):
            def body(index, _):
                taken = reader.take(handle, epoch, index)
                branches = [functools.partial(run, *step, handle, taken) for step in steps]
                loss = branches[0]() if len(steps) == 1 else tf.switch_case(self._rule.phase(epoch), branches)
                self._rule.step.assign_add(1)
                return index + 1, loss

            def goes_on(index, loss):
                return (index < first + count) & tf.math.is_finite(loss)

            return tf.while_loop(goes_on, body, [first, tf.zeros(())])[1]

        return loop

    def _examples(self, reader: Any, handle: Any, taken: tuple) -> Examples:
        """A replica's examples of a batch."""
        examples = reader.unpack(handle, *taken)
        return examples if self._may_lack_examples else at_least_one(examples)

    def step(self, phase: tuple[str, ...]) -> Callable:
        """A step `(x, y, sample_weight, total) -> loss` in which the groups of a phase learn; of `Examples`."""
        compute = functools.partial(self._compute, phase)
        if self._jit_compute:
            compute = _graph(compute, jit_compile=True)

        def step(x, y, sample_weight, total):
            return self._train(phase, compute, Examples(x, y, sample_weight, total))

        return _graph(step, jit_compile=True) if self._jit_step else step

    def _train(self, phase: tuple[str, ...], compute: Callable, examples: Examples) -> tf.Tensor:
        scale, totals = self._updater.loss_scale, self._totals(examples)

        def microbatch(number: Any, examples: Examples) -> tuple:
            x = self._preprocessing(examples.x, training=True)
            batch = make_batch(
                examples._replace(x=x, total=None), totals, self._rule.loss, scale, number, self._microbatches
            )
            outputs, loss, gradients, logs = compute(batch)
            self._record(examples.y, outputs, examples.sample_weight, logs)
            return tf.cast(loss, tf.float32), gradients

        variables = {group: getattr(self._rule, f"{group}_variables") for group in phase}
        zeros = tf.nest.map_structure(lambda variable: tf.zeros(variable.shape, variable.dtype), variables)
        start = (tf.zeros(()), zeros)
        loss, gradients = sum_over_microbatches(microbatch, self._microbatches, start, examples)
        (loss,) = self._updater.apply(gradients, loss)
        return loss / scale

    def _totals(self, examples: Examples) -> Totals:
        shape = shape_of_outputs(self._rule.model, self._preprocessing, examples.x)
        return make_totals(examples, self._rule.loss, shape)

    def _compute(self, phase: tuple[str, ...], batch: Batch) -> tuple:
        """The rule's update as tensors alone: gradients of the phase's groups, in the order of the rule's variables."""
        update = self._rule.update(batch)
        for group in ("forward", "feedback"):
            expected = [tf.TensorShape(variable.shape) for variable in getattr(self._rule, f"{group}_variables")]
            received = [gradient.shape for gradient in getattr(update, group)]
            if len(expected) != len(received) or not all(map(tf.TensorShape.is_compatible_with, expected, received)):
                raise ValueError(
                    f"{type(self._rule).__name__}.update must return one gradient for each of `{group}_variables`, in "
                    f"their order; expected shapes {expected}, received {received}."
                )
        if set(update.logs) != set(self._rule.logs):
            raise ValueError(
                f"{type(self._rule).__name__}.update must return a scalar for each of `logs`; expected "
                f"{sorted(self._rule.logs)}, received {sorted(update.logs)}."
            )
        return update.outputs, update.loss, {group: getattr(update, group) for group in phase}, update.logs

    def _feedback_loop(self, loop: FeedbackLoop) -> Callable:
        """One update `(inputs, sample_weight, totals, iteration)` of a part of the feedback."""
        compute = loop.gradients
        if self._jit_compute:
            compute = _graph(compute, jit_compile=True)

        def update(inputs: Any, sample_weight: tf.Tensor, totals: Totals, iteration: tf.Tensor) -> None:
            examples, scale = Examples(None, None, sample_weight), self._updater.feedback_loss_scale
            batch = make_batch(examples, totals, self._rule.loss, scale)
            self._updater.apply_feedback(compute(inputs, batch, iteration), loop.variables)

        return _graph(update, jit_compile=True) if self._jit_step else update

    def _feedback_loops(self, reader: Any) -> Callable:
        """A function that runs all feedback loops on a batch, given what the reader takes for it."""
        updates = [(loop.count, self._feedback_loop(loop)) for loop in self._rule.feedback_loops]

        def observe(handle: Any, taken: tuple) -> tuple:
            examples = self._examples(reader, handle, taken)
            inputs = self._rule.feedback_loop_inputs(self._preprocessing(examples.x, training=True))
            return inputs, examples.sample_weight, self._totals(examples)

        def run(handle: Any, taken: tuple) -> None:
            seen = self._strategy.run(lambda *args: observe(handle, args), taken)
            for count, update in updates:

                def body(iteration, update=update):
                    self._strategy.run(update, (*seen, iteration))
                    return iteration + 1

                tf.while_loop(lambda iteration, count=count: iteration <= count, body, [1])

        return run


class EvaluationLoop:
    """Evaluation of a network on batches, in one graph.

    Args:
        model: the network.
        strategy: where it runs.
        jit_compile: compile with XLA.
        preprocessing: applied to inputs on the device.
        record: called on a replica with labels, outputs and sample weights of each batch.
    """

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        preprocessing: Preprocessing,
        record: Callable[..., None],
    ):
        self._strategy = strategy

        def evaluate(x, y, sample_weight):
            record(y, model(preprocessing(x, training=False), training=False), sample_weight)

        # A function of its own, so that the network is traced once for all splits of the same types.
        self._evaluate = _graph(evaluate, jit_compile=jit_compile and isinstance(strategy, NO_STRATEGY))
        self._loops: dict[Any, Callable] = {}

    def __call__(self, feed: Any, handle: Any, first: int, count: int) -> None:
        """Evaluates `count` batches from batch `first` on; `feed` and `handle` as for a `TrainingLoop`."""
        if feed.reader not in self._loops:
            self._loops[feed.reader] = self._make_loop(feed.reader)
        self._loops[feed.reader](handle, tf.constant(first), tf.constant(count))

    def _make_loop(self, reader: Any) -> Callable:
        @_graph(reduce_retracing=True)
        def loop(handle, first, count):
            def body(index):
                taken = reader.take(handle, tf.constant(0), index)
                self._strategy.run(lambda *args: self._evaluate(*reader.unpack(handle, *args)[:3]), taken)
                return [index + 1]

            tf.while_loop(lambda index: index < first + count, body, [first])

        return loop
