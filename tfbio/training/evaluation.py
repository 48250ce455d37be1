"""Evaluation and prediction: the network as it is, on data that are only read."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.data import memory_of, stream_of
from tfbio.losses import Loss
from tfbio.training.averages import Averages
from tfbio.training.checks import translate_data_errors
from tfbio.training.feeds import StreamFeed
from tfbio.training.loops import NO_STRATEGY, EvaluationLoop
from tfbio.training.metrics import Metrics
from tfbio.training.preprocessing import Preprocessing

__all__ = ["Evaluator", "prediction_feed"]


class Evaluator:
    """Evaluates a network, and predicts with it. Create it in the strategy's scope.

    Args:
        model: the network.
        loss: what is averaged.
        metrics: Keras metrics, which an evaluation leaves as they were.
        strategy: where it runs.
        jit_compile: compile with XLA.
        preprocessing: applied to inputs on the device.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Loss,
        metrics: Metrics,
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        preprocessing: Preprocessing,
    ):
        self._metrics, self._strategy = metrics, strategy
        self._averages = Averages(loss, accuracy="accuracy")

        def record(y, outputs, sample_weight):
            self._averages.update_state(y, outputs, sample_weight)
            metrics.add(y, outputs, sample_weight)

        def forward(x):
            return model(preprocessing(x, training=False), training=False)

        self._loop = EvaluationLoop(model, strategy, jit_compile, preprocessing, record)
        jit_forward = jit_compile and isinstance(strategy, NO_STRATEGY)
        self._forward = tf.function(forward, autograph=False, jit_compile=jit_forward)
        self._predict = tf.function(self._predict_batch, autograph=False, reduce_retracing=True)

    def evaluate(self, feed: Any, hooks: keras.callbacks.CallbackList) -> dict[str, float]:
        """Averages over all examples of a feed: `loss`, `error` and `accuracy` of a loss that classifies, the metrics.

        Raises:
            ValueError: no example has any weight.
        """
        hooks.on_test_begin()
        self._averages.reset_state()
        faults = functools.partial(feed.faults, 0, 0, None)
        with self._metrics.separately(), translate_data_errors("evaluation", faults):
            hooks.on_test_batch_begin(0)
            self._loop(feed, feed.open(0, 0), 0, feed.steps_per_epoch)
            figures = {**self._averages.read("evaluation"), **self._metrics.result()}
        hooks.on_test_batch_end(feed.steps_per_epoch - 1, figures)
        hooks.on_test_end(figures)
        return figures

    @property
    def directions(self) -> dict[str, str]:
        """ "up" or "down" by the names of figures, as far as it is known which is better."""
        return {**self._averages.directions, **self._metrics.directions}

    def predict(self, feed: StreamFeed, hooks: keras.callbacks.CallbackList) -> Any:
        """The network's outputs for all examples of a feed that `prediction_feed` made, in their order."""
        hooks.on_predict_begin()
        handle, batches = feed.open(0, 0), []
        for index in range(feed.steps_per_epoch):
            hooks.on_predict_batch_begin(index)
            with translate_data_errors("prediction", list):
                outputs, rows, weights = tf.nest.map_structure(np.asarray, self._predict(handle))
            order = np.argsort(rows, kind="stable")  # replicas, and workers, have their own
            order = order[weights[order] > 0]
            batches.append(tf.nest.map_structure(lambda values, order=order: values[order], outputs))
            hooks.on_predict_batch_end(index, {"outputs": batches[-1]})
        hooks.on_predict_end()
        return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *batches)

    def _predict_batch(self, handle: Any) -> Any:
        def of_replica(element: tuple) -> tuple:
            x, rows, weights = element
            return self._forward(x), rows, weights

        results = self._strategy.run(of_replica, (next(handle),))
        if self._strategy.num_replicas_in_sync == 1:
            return self._strategy.experimental_local_results(results)[0]
        return tf.nest.map_structure(lambda values: self._strategy.gather(values, axis=0), results)


def prediction_feed(data: Any, strategy: tf.distribute.Strategy, steps: int | None) -> StreamFeed:
    """A feed of inputs, the numbers of their rows in the batch, and weights that leave out what only fills a batch up.

    Args:
        data: what `make_feed` takes; elements may be inputs alone.
        strategy: batches are split over its replicas.
        steps: the first so many batches; None for all.
    """
    stream, memory = (None, None) if callable(data) else (stream_of(data), memory_of(data))

    def numbered(*element: Any) -> tuple:
        x, *rest = element
        count = tf.shape(tf.nest.flatten(x)[0])[0]
        weights = tf.cast(rest[1], tf.float32) if stream else tf.ones([count])
        return x, tf.range(count), weights

    source: Callable[[int], tf.data.Dataset]
    if stream or memory:
        source = (stream or memory).batches
    else:
        source = data if callable(data) else lambda epoch: data
    return StreamFeed(lambda epoch: source(epoch).map(numbered), strategy, steps)
