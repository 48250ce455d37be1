"""Keras metrics of a trainer: exact under replicas and workers, weighted, in checkpoints.

A metric's variables are sums: each replica adds to its own, and who reads them gets the total. So a metric is exact
under replicas if its state for a batch is the sum of its states for the batch's parts. That is tried once, on numbers,
and a metric for which it does not hold (a maximum, a correlation within the batch) is refused by name.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.keras_internals import CompileMetrics, build_metrics, directions, pythonify_logs
from tfbio.losses import Loss

__all__ = ["ACCURACY", "Metrics", "checked_metrics"]

#: Keras tells the kinds of accuracy apart by shapes. A loss that classifies knows what a mistake is.
ACCURACY = ("accuracy", "acc")


class Metrics:
    """Keras metrics of `(y, loss.predict(outputs))`, weighted by the data's sample weights.

    Args:
        metrics: what `keras.Model.compile` takes as `weighted_metrics`: objects, names, functions; for several outputs,
            a dict or list of them by output.
        loss: says what predictions are.
        model: the network.
        strategy: where it trains.
        microbatches: in how many parts a replica takes its examples of a batch.
    """

    def __init__(
        self, metrics: Any, loss: Loss, model: keras.Model, strategy: tf.distribute.Strategy, microbatches: int = 1
    ):
        self._loss, self._strategy = loss, strategy
        self._whole = strategy.num_replicas_in_sync == 1 and microbatches == 1
        self.variables: list[tf.Variable] = []
        #: Trackable; what a checkpoint holds of variables that are not made yet is read when they are.
        self.state = tf.train.Checkpoint()
        self.accuracy = None  # what the share of right decisions is called, if it is asked for
        metrics = checked_metrics(metrics)
        if isinstance(metrics, (list, tuple)) and loss.classifies:
            asked = [metric for metric in metrics if isinstance(metric, str) and metric in ACCURACY]
            self.accuracy = asked[0] if asked else None
            metrics = [metric for metric in metrics if not (isinstance(metric, str) and metric in ACCURACY)]
        self._metrics = None
        if metrics:
            self._metrics = CompileMetrics(None, metrics, output_names=getattr(model, "output_names", None))

    @property
    def keras_metrics(self) -> list[keras.metrics.Metric]:
        """What `Model.metrics` would hold of them."""
        return [] if self._metrics is None else [self._metrics]

    @property
    def directions(self) -> dict[str, str]:
        """ "up" or "down" by the names of those that know which is better."""
        own = {self.accuracy: "up"} if self.accuracy else {}
        return own if self._metrics is None else {**own, **directions(self._metrics)}

    @property
    def needs_building(self) -> bool:
        """Whether `build` must be called before the first batch."""
        return self._metrics is not None and not self._metrics.built

    def build(self, y: Any, outputs: Any) -> None:
        """Makes the metrics' variables.

        Args:
            y: labels of a batch, eager.
            outputs: the network's outputs for some examples, eager.

        Raises:
            ValueError: a metric can't be weighted, or not be summed over replicas or microbatches.
        """
        y = tf.nest.map_structure(_four_rows, y)
        rng = np.random.default_rng(0)
        outputs = tf.nest.map_structure(
            lambda tensor: tf.constant(rng.normal(size=(4, *tensor.shape[1:])), tensor.dtype), outputs
        )
        predictions, weight = self._predict(outputs), tf.ones(4)
        with self._strategy.scope():
            self._metrics.build(y, predictions)
            for metric in self._metrics.metrics:
                _check_weighted(metric)
            self._check_variables()
            build_metrics(self._metrics, y, predictions, weight)
            self._check_variables()
            if not self._whole:
                self._check_sums(y, predictions, weight)
            self.variables = [variable.value for variable in self._metrics.variables]
            self._aside = [
                tf.Variable(
                    tf.zeros(variable.shape, variable.dtype),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for variable in self.variables
            ]
        self._set_aside = self._copying(self.variables, self._aside)
        self._take_back = self._copying(self._aside, self.variables)
        self.state.variables = self.variables

    def add(self, y: Any, outputs: Any, sample_weight: tf.Tensor) -> None:
        """Counts a replica's examples. Called on a replica, in the graph."""
        if self._metrics is not None:
            self._metrics.update_state(y, self._predict(outputs), sample_weight)

    def result(self) -> dict[str, float]:
        """The metrics so far. A host read, by all workers."""
        figures = pythonify_logs(self._metrics.result()) if self._metrics is not None else {}
        for name, value in figures.items():
            if np.ndim(value):
                raise ValueError(
                    f"Invalid value for `metrics`: expected metrics that are one number each, received {name!r}, whose "
                    f"result has shape {np.shape(value)}. Average it (average='macro' of Keras's metrics)."
                )
        return figures

    def reset(self) -> None:
        """Starts anew."""
        if self._metrics is not None:
            self._metrics.reset_state()

    @contextlib.contextmanager
    def separately(self) -> Iterator[None]:
        """Within, the metrics start anew; afterwards they are as they were: for an evaluation within an epoch."""
        if self._metrics is None:
            yield
            return
        self._set_aside()
        self.reset()
        try:
            yield
        finally:
            self._take_back()

    def _predict(self, outputs: Any) -> Any:
        return self._loss.predict(outputs)

    def _copying(self, sources: list[tf.Variable], targets: list[tf.Variable]) -> Any:
        """A function that copies variables, each replica its own."""

        def copy() -> None:
            for source, target in zip(sources, targets, strict=True):
                target.assign(tf.convert_to_tensor(source))

        return tf.function(lambda: self._strategy.run(copy), autograph=False)

    def _check_variables(self) -> None:
        """Refuses variables that are not of this strategy, or no sums over its replicas."""
        for metric in self._metrics.metrics:
            for variable in metric.variables:
                if not self._strategy.extended.variable_created_in_scope(variable.value):
                    raise ValueError(
                        f"Invalid value for `metrics`: {metric.name!r} was made outside the strategy's scope. Make it "
                        "within `with strategy.scope():`, or pass its name."
                    )
                if not self._whole and variable.aggregation != "sum":
                    raise _inexact(metric)

    def _check_sums(self, y: Any, predictions: Any, weight: tf.Tensor) -> None:
        """Refuses metrics whose state for a batch is not the sum of its states for the batch's parts."""
        start = [np.asarray(variable) for variable in self._metrics.variables]

        def states(rows: slice) -> list[np.ndarray]:
            part = tf.nest.map_structure(lambda tensor: tensor[rows], (y, predictions, weight))
            found = self._metrics.stateless_update_state([tf.constant(value) for value in start], *part)
            return [np.asarray(state) for state in found]

        whole, first, second = states(slice(None)), states(slice(3)), states(slice(3, None))
        owners = [metric for metric in self._metrics.metrics for _ in metric.variables]
        for metric, begin, total, *parts in zip(owners, start, whole, first, second, strict=True):
            if np.any(begin) or not np.allclose(total, sum(parts), rtol=1e-4, atol=1e-5):
                raise _inexact(metric)


def checked_metrics(metrics: Any) -> Any:
    """Metrics as Keras takes them: one alone is put into a list.

    Raises:
        ValueError: a name that Keras does not know.
    """
    for name in keras.tree.flatten(metrics):
        if isinstance(name, str) and name not in (*ACCURACY, "crossentropy", "ce"):  # Keras asks the loss about these
            try:
                keras.metrics.get(name)
            except ValueError as error:
                raise ValueError(
                    f"Invalid value for `metrics`: expected metrics of Keras, as objects, names or functions, received "
                    f"{name!r}, which names none."
                ) from error
    return metrics if metrics is None or isinstance(metrics, (list, tuple, dict)) else [metrics]


def _four_rows(label: tf.Tensor) -> tf.Tensor:
    """The first four, over and over again if there are fewer; of none, zeros."""
    if not label.shape[0]:
        label = tf.zeros((1, *label.shape[1:]), label.dtype)
    return tf.gather(label, [row % label.shape[0] for row in range(4)])


def _inexact(metric: keras.metrics.Metric) -> ValueError:
    return ValueError(
        f"Invalid value for `metrics`: {metric.name!r} ({type(metric).__name__}) can't be exact under replicas or "
        "microbatches: its state for a batch is not the sum of its states for the batch's parts. Leave it out, or "
        "measure it on the outputs of `Trainer.predict`."
    )


def _check_weighted(metric: keras.metrics.Metric) -> None:
    try:
        inspect.signature(metric.update_state).bind(None, None, None)
    except TypeError:
        raise ValueError(
            f"Invalid value for `metrics`: {metric.name!r} ({type(metric).__name__}) takes no `sample_weight` in "
            "`update_state`, and examples are weighted here. Add that argument."
        ) from None
