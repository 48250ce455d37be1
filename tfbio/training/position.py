"""Where training stands: how many epochs are finished, and how many batches of the next one are taken."""

import tensorflow as tf

__all__ = ["Position"]


class Position:
    """A position in the course of epochs, in a variable that checkpoints hold. Create it in the strategy's scope.

    Epochs are counted as such, not in steps, since data sets may differ in how many steps an epoch has.

    Attributes:
        variable: int64: epochs finished, batches taken of the next one, and how many that one has.
    """

    def __init__(self):
        self.variable = tf.Variable(
            tf.zeros(3, tf.int64),
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name="position",
        )

    @property
    def epoch(self) -> int:
        """The number of epochs finished. A host read."""
        return int(self.variable.numpy()[0])

    def enter(self, steps_per_epoch: int) -> int:
        """The batch that comes next in an epoch of so many; 0 if what was begun is an epoch of another length."""
        epoch, batch, begun = self.variable.numpy().tolist()
        if begun != steps_per_epoch:
            batch = 0
        self.variable.assign([epoch, batch, steps_per_epoch])
        return batch

    def move(self, batch: int) -> None:
        """So many batches of the epoch are taken."""
        epoch, _, steps_per_epoch = self.variable.numpy().tolist()
        self.variable.assign([epoch, batch, steps_per_epoch])

    def finish_epoch(self) -> None:
        """The epoch is finished."""
        self.variable.assign([self.epoch + 1, 0, 0])
