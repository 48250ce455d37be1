"""Run by test_updates.py in a process of its own: one update path on two virtual CPUs, for `Trainer` and `Learner`."""

import sys
from typing import Any

import keras
import numpy as np
import same_numbers
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints

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


def figures(strategy: tf.distribute.Strategy, folder: str | None = None, **options) -> tuple[dict, dict, np.ndarray]:
    """Of an epoch, saved and read in its middle if there is a folder; of an evaluation; and predictions."""

    def made(seed: int) -> tfbio.Trainer:
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            model = same_numbers.parts(strategy, "bp", "plain")[0]
            metrics = [keras.metrics.AUC(num_thresholds=20, name="auc"), keras.metrics.R2Score(name="r2"), "mse"]
            optimizer = keras.optimizers.SGD(0.1)
        return tfbio.Trainer(model, "bp", optimizer, strategy=strategy, metrics=metrics, jit_compile=False, **options)

    data = same_numbers.data().map(lambda x, y, w: (x, tf.one_hot(y, 4), w))
    trainer = made(1)
    if folder:
        try:
            saving, stop = (
                Checkpoints(folder, every_steps=1),
                keras.callbacks.LambdaCallback(on_train_batch_end=stopped),
            )
            trainer.fit(data, callbacks=[stop], checkpoints=saving, verbose=False)
        except KeyboardInterrupt:
            trainer = made(2)
            assert trainer.restore(Checkpoints(folder)) == 1
    history = trainer.fit(data, verbose=False).history
    return history, trainer.evaluate(data), trainer.predict(data)


def stopped(batch: int, logs: dict) -> None:
    if batch == 1:
        raise KeyboardInterrupt


def metrics(folder: str) -> None:
    expected = figures(ONE)
    for found in (
        figures(TWO, folder),
        figures(TWO, accumulation_steps=2),
        figures(ONE, accumulation_steps=3),
    ):
        for name in ("auc", "r2", "mse", "loss"):
            np.testing.assert_allclose(found[0][name], expected[0][name], rtol=1e-5, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(found[1][name], expected[1][name], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-6)


class Largest(keras.metrics.Metric):
    """The largest probability: no sum."""

    def __init__(self, aggregation):
        super().__init__(name="largest")
        self.value = self.add_variable((), "zeros", name="value", aggregation=aggregation)

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(tf.maximum(tf.convert_to_tensor(self.value), tf.reduce_max(y_pred)))

    def result(self):
        return self.value


def refused(made: Any, message: str, **options) -> None:
    """`made()` is refused as a metric, or as whatever `options` say."""
    try:
        model, rule, optimizer = same_numbers.parts(TWO, "bp", "plain")
        options = {"metrics": [made()]} if not options else options
        trainer = tfbio.Trainer(model, rule, optimizer, strategy=TWO, **options)
        trainer.evaluate(same_numbers.data())
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"{message}: was taken")


def refusals() -> None:
    def in_scope(aggregation: str) -> Largest:
        with TWO.scope():
            return Largest(aggregation)

    refused(lambda: in_scope("sum"), "'largest' (Largest) can't be exact")
    refused(lambda: in_scope("none"), "'largest' (Largest) can't be exact")
    refused(lambda: keras.metrics.SparseTopKCategoricalAccuracy(2), "made outside the strategy's scope")
    refused(None, "made outside the strategy's scope", preprocessing=keras.layers.Dropout(0.5))


if __name__ == "__main__":
    if sys.argv[1] == "metrics":
        metrics(sys.argv[2])
        refusals()
    same([rule for rule in sys.argv[1:] if rule in same_numbers.RULES])
    if "kp" in sys.argv:
        for kind in ("trainer", "learner"):
            overflow(kind)
    print("replicas agree")
