"""Learning-rate schedules in epochs, as Keras schedules.

Keras's schedules count steps. `InEpochs` lets them count epochs, so that a setting does not depend on the sizes of the
data set and of its batches.
"""

from typing import Any

import keras
import tensorflow as tf

from tfbio.serialization import register

__all__ = ["InEpochs"]


@register
class InEpochs(keras.optimizers.schedules.LearningRateSchedule):
    r"""A schedule whose steps are epochs, behind a linear warm-up.

    With $n$ steps an epoch, a schedule $α$ and $w$ epochs of warm-up, step $k = 0, 1, …$ has the learning rate

    $$ α(k / n) \cdot \min\left(1, \frac{k + 1}{w n}\right) . $$

    Goyal et al. 2017 (arXiv:1706.02677) warm up so for large batches.

    Args:
        schedule: $α$: a Keras schedule that is given epochs and parts of them, such as
            `keras.optimizers.schedules.CosineDecay(0.1, decay_steps=90)`, or its configuration; or a number.
        warmup: $w$, from 0 epochs.
        steps_per_epoch: $n$. A run of the console command knows it: None there.

    Raises:
        ValueError: a number out of range; `steps_per_epoch` is None when the schedule is called.
    """

    def __init__(self, schedule: Any, warmup: float = 0.0, steps_per_epoch: int | None = None):
        super().__init__()
        if isinstance(schedule, dict):
            schedule = keras.optimizers.schedules.deserialize(schedule)
        if not callable(schedule) and not isinstance(schedule, (int, float)):
            raise ValueError(
                f"Invalid value for `schedule`: expected a Keras schedule or a number, received {schedule!r}."
            )
        if warmup < 0:
            raise ValueError(f"Invalid value for `warmup`: expected a number of epochs from 0, received {warmup!r}.")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(
                f"Invalid value for `steps_per_epoch`: expected a positive int or None, received {steps_per_epoch!r}."
            )
        self.schedule = schedule
        self.warmup = warmup
        self.steps_per_epoch = steps_per_epoch

    def __call__(self, step: Any) -> tf.Tensor:
        if self.steps_per_epoch is None:
            raise ValueError(
                "Invalid value for `steps_per_epoch` of InEpochs: expected the number of batches in an epoch, received "
                "None. Pass it; a run of the console command knows it where its data set does."
            )
        step = tf.cast(step, tf.float32)
        rate = self.schedule(step / self.steps_per_epoch) if callable(self.schedule) else self.schedule
        if not self.warmup:
            return tf.convert_to_tensor(rate, tf.float32)
        return rate * tf.minimum(1.0, (step + 1.0) / (self.warmup * self.steps_per_epoch))

    def get_config(self) -> dict[str, Any]:
        schedule = self.schedule
        return {
            "schedule": keras.optimizers.schedules.serialize(schedule) if callable(schedule) else schedule,
            "warmup": self.warmup,
            "steps_per_epoch": self.steps_per_epoch,
        }
