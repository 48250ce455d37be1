"""Several worker processes that train one model: who writes, and what they must agree on.

Workers run the same Python on the same seeds, so they need not talk, but for what depends on the clock or on the
outside of a process: how many steps the next loop takes, whether a checkpoint is due, whether a signal came. They take
the largest of their answers.
"""

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["Workers"]


class Workers:
    """The worker processes of a strategy; most strategies have one.

    Args:
        strategy: the strategy.

    Attributes:
        several: whether there are more than one.
        chief: whether this is the one that writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self._strategy = strategy
        self.several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and _count(strategy) > 1
        resolver = strategy.cluster_resolver if self.several else None
        # A cluster without a worker called chief is led by its first.
        self.chief = resolver is None or (resolver.task_type, resolver.task_id) in (("chief", 0), _first(resolver))
        self._largest = tf.function(self._gathered)

    def agree(self, *values: int) -> list[int]:
        """The largest of each value over all workers; every worker must call it at the same place of its program."""
        if not self.several:
            return list(values)
        return self._largest(tf.constant(values, tf.int64)).numpy().tolist()

    def _gathered(self, values: tf.Tensor) -> tf.Tensor:
        def gather(values: tf.Tensor) -> tf.Tensor:
            everyone = tf.distribute.get_replica_context().all_gather(values[tf.newaxis], axis=0)
            return tf.reduce_max(everyone, axis=0)

        return self._strategy.experimental_local_results(self._strategy.run(gather, (values,)))[0]


def _count(strategy: tf.distribute.Strategy) -> int:
    return len(_tasks(strategy.cluster_resolver))


def _tasks(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> Sequence[str]:
    cluster = resolver.cluster_spec().as_dict()
    return [*cluster.get("chief", []), *cluster.get("worker", [])]


def _first(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> tuple[str, int] | None:
    return None if "chief" in resolver.cluster_spec().as_dict() else ("worker", 0)
