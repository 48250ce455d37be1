"""Run by test_updates.py in a process of its own: one update path on two virtual CPUs, for `Trainer` and `Learner`."""

import sys

import keras
import numpy as np
import same_numbers
import tensorflow as tf

import tfbio

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
ONE = tf.distribute.get_strategy()
TWO = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def same(rules: list[str]) -> None:
    for rule in rules:
        for setting in ("clipvalue", "float16") if rule == "bp" else ("global_clipnorm",):
            expected = same_numbers.by_trainer(ONE, rule, setting)
            for make in (same_numbers.by_trainer, same_numbers.by_learner):
                found = make(TWO, rule, setting)
                if setting == "float16":  # in which the halves of a sum are rounded otherwise than the sum
                    np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-2)
                else:
                    said = f"{make.__name__} {rule} {setting}"
                    same_numbers.assert_same(expected, found, said, rtol=2e-4, atol=2e-5)


class Overflowing(tfbio.rules.KolenPollack):
    """The gradients of the second step are infinite on the second replica."""

    def update(self, batch):
        update = super().update(batch)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        bad = (tf.convert_to_tensor(self.step) == 1) & (replica == 1)
        return update._replace(forward=[tf.where(bad, np.inf, gradient) for gradient in update.forward])


class Noting(keras.callbacks.Callback):
    """Each replica's variables, the loss scale and the number of steps taken, after each step."""

    def __init__(self):
        super().__init__()
        self.states = []

    def on_train_batch_end(self, batch, logs=None):
        values = [variable.value for variable in [*self.rule.model.variables, *self.rule.variables]]
        local = [[own.numpy() for own in TWO.experimental_local_results(value)] for value in values]
        scale, taken = self.optimizer.dynamic_scale, self.optimizer.iterations
        self.states.append((local, float(scale.numpy()), int(taken.numpy())))


def overflow(kind: str) -> None:
    """No replica takes the step, nor do followers, though clipping would hide the infinity; the next one is taken."""
    model, _, optimizer = same_numbers.parts(TWO, "bp", "float16")
    noting = Noting()
    if kind == "trainer":
        made = tfbio.Trainer(model, Overflowing(seed=3), optimizer, strategy=TWO, jit_compile=False, steps_per_loop=1)
    else:
        with TWO.scope():
            made = tfbio.Learner(model, Overflowing(seed=3))
            made.compile(optimizer, jit_compile=False)
    noting.rule, noting.optimizer = made.rule, made.optimizer
    made.fit(same_numbers.data(), callbacks=[noting], verbose=0)
    assert [state[1:] for state in noting.states] == [(2.0**15, 1), (2.0**14, 1), (2.0**14, 2)], kind
    (first, *_), (second, *_), (third, *_) = noting.states
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(after, before, err_msg=kind)
    assert all(np.all(np.isfinite(after)) for after in third)
    assert any(np.any(np.not_equal(after, before)) for before, after in zip(second, third, strict=True))
    for after in third:
        np.testing.assert_array_equal(after[0], after[1], err_msg=kind)


if __name__ == "__main__":
    same(sys.argv[1:])
    if "kp" in sys.argv:
        for kind in ("trainer", "learner"):
            overflow(kind)
    print("replicas agree")
