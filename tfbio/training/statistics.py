r"""Moving statistics of batch normalisation, which each replica moves on its own unless the layer is synchronised.

Whoever reads such a variable, a checkpoint, an export or a callback, gets the first replica's. So the replicas' copies
are replaced by their mean before an evaluation and before a checkpoint. Training doesn't look at them, and moving is
linear, $m \leftarrow μ m + (1 - μ) s$: but for rounding, the mean is the same however often it was taken before.
"""

import keras
import tensorflow as tf

from tfbio.keras_internals import all_layers

__all__ = ["MovingStatistics"]


class MovingStatistics:
    """The moving statistics of a network's layers that are not synchronised.

    Batch renormalisation is left alone: it trains by its statistics.

    Args:
        model: the network.
        strategy: where it trains.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy):
        layers = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
        moved = [layer for layer in layers if layer.trainable and not getattr(layer, "renorm", False)]
        pairs = [(layer.moving_mean, layer.moving_variance) for layer in moved if not layer.synchronized]
        self._variables = sum(pairs, ()) if strategy.num_replicas_in_sync > 1 else ()
        self._strategy = strategy
        self._averaged = tf.function(lambda: self._strategy.run(self._mean))

    def average(self) -> None:
        """Gives every replica the mean of all; each of several workers must call it at the same place."""
        if self._variables:
            self._averaged()

    def _mean(self) -> None:
        values = [tf.identity(variable.value) for variable in self._variables]  # on the replica's device
        means = tf.distribute.get_replica_context().all_reduce("mean", values)
        for variable, mean in zip(self._variables, means, strict=True):
            variable.assign(mean)
