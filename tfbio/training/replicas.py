"""Sums over replicas."""

from typing import Any

import tensorflow as tf

__all__ = ["sum_over_replicas"]


def sum_over_replicas(tensors: Any) -> Any:
    """The sums over all replicas of nested tensors, on each of them. Called on a replica; one collective a dtype."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return tensors
    flat = tf.nest.flatten(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in flat):  # collectives pack what they are given
        places = [place for place, tensor in enumerate(flat) if tensor.dtype == dtype]
        sums = context.all_reduce("sum", [flat[place] for place in places])
        for place, total in zip(places, sums, strict=True):
            flat[place] = total
    return tf.nest.pack_sequence_as(tensors, flat)
