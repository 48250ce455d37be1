r"""A worker's share of global batches: the rows that its own replicas take.

A batch of $B$ examples is cut into one part for each of $R$ replicas, $\lfloor B / R \rfloor$ rows long or one more. A
last batch that is not full ends in the middle of a part; those behind it have no rows. A worker's replicas have
neighbouring parts. Who takes which row does not change what a batch holds, so any number of workers sees the same
batches.
"""

from dataclasses import dataclass

import tensorflow as tf

__all__ = ["Share"]


@dataclass(frozen=True)
class Share:
    """One worker's rows.

    Args:
        batch_size: $B$, examples in a global batch.
        replicas: $R$, of all workers.
        first: the worker's first replica.
        parts: the number of its replicas.
    """

    batch_size: int
    replicas: int = 1
    first: int = 0
    parts: int = 1

    @classmethod
    def of(cls, context: tf.distribute.InputContext, batch_size: int) -> "Share":
        """The share of the worker that TensorFlow describes."""
        parts = context.num_replicas_in_sync // context.num_input_pipelines
        return cls(batch_size, context.num_replicas_in_sync, context.input_pipeline_id * parts, parts)

    def bounds(self, part: int | tf.Tensor = 0, parts: int | None = None) -> tuple:
        """The first row of one of the worker's parts, or of several that follow one another, and the row after them."""
        parts = self.parts if parts is None else parts
        return tuple(p * self.batch_size // self.replicas for p in (self.first + part, self.first + part + parts))

    def count(self, examples: int) -> int:
        """How many rows of a batch are the worker's, if the batch holds `examples`."""
        begin, end = self.bounds()
        return min(max(examples, begin), end) - begin

    def select(self, records: tf.data.Dataset, first: int = 0, rows: int | None = None) -> tf.data.Dataset:
        """The worker's own records.

        Args:
            records: of batches that follow one another; of each, `rows` (None: all) from the `first` on.
        """
        rows = self.batch_size if rows is None else rows
        begin, end = self.bounds()
        if begin <= first and end >= first + rows:
            return records

        def own(place: tf.Tensor, record: tuple) -> tf.Tensor:
            row = first + place % rows
            return (row >= begin) & (row < end)

        return records.enumerate().filter(own).map(lambda place, record: record)

    def batches(self, examples: tf.data.Dataset, count: int | tf.Tensor, last: int) -> tf.data.Dataset:
        """A part for each of the worker's replicas in turn, batch after batch.

        Args:
            examples: the worker's own.
            count: number of global batches.
            last: examples in the last of them.

        Returns:
            a dataset of `count` times `parts` elements. Shapes are static where all parts are equally long.
        """
        if last == self.batch_size and self.batch_size % self.replicas == 0:
            return examples.batch(self.batch_size // self.replicas, drop_remainder=True)
        whole = self.count(self.batch_size)
        batches = examples.batch(max(whole, 1))
        if self.count(last) == 0:  # replicas meet in every step, so those without an example take part too
            nothing = [tf.zeros([0, *spec.shape], spec.dtype) for spec in examples.element_spec]
            batches = batches.concatenate(tf.data.Dataset.from_tensors(tuple(nothing)).repeat(1 if whole else count))
        if self.parts == 1:
            return batches

        def rows(part: tf.Tensor) -> slice:
            return slice(*(bound - self.bounds()[0] for bound in self.bounds(part, 1)))

        def cut(*batch: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.range(self.parts).map(lambda part: tuple(column[rows(part)] for column in batch))

        return batches.flat_map(cut)
