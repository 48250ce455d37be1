"""One update path on two replicas, for `Trainer` and `Learner`; metrics, predictions and what is refused."""

import keras
import numpy as np
import pytest
import same_numbers
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints

ONE = tf.distribute.get_strategy()
MAKERS = {"trainer": same_numbers.by_trainer, "learner": same_numbers.by_learner}


# In float16 the halves of a sum are rounded otherwise than the sum. The other rules are in tests/stress/.
@pytest.mark.parametrize(
    ("rule", "setting"),
    [("bp", "clipvalue"), ("bp", "float16"), ("kp", "global_clipnorm"), ("dtp", "global_clipnorm")],
)
def test_two_replicas_equal_one_by_trainer_and_learner(rule, setting, two_replicas):
    expected = same_numbers.by_trainer(ONE, rule, setting)
    for name, make in MAKERS.items():
        found = make(two_replicas, rule, setting)
        if setting == "float16":
            np.testing.assert_allclose(found[1]["loss"], expected[1]["loss"], rtol=1e-2)
        else:
            same_numbers.assert_same(expected, found, name, rtol=2e-4, atol=2e-5)


class Overflowing(tfbio.rules.KolenPollack):
    """The gradients of the second step are infinite on the second replica."""

    def update(self, batch):
        update = super().update(batch)
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        bad = (tf.convert_to_tensor(self.step) == 1) & (replica == 1)
        return update._replace(forward=[tf.where(bad, np.inf, gradient) for gradient in update.forward])


class Noting(keras.callbacks.Callback):
    """Each replica's variables, the loss scale and the number of steps taken, after each step."""

    def __init__(self, strategy, made):
        super().__init__()
        self.strategy, self.made, self.states = strategy, made, []

    def on_train_batch_end(self, batch, logs=None):
        values = [variable.value for variable in [*self.made.rule.model.variables, *self.made.rule.variables]]
        local = [[own.numpy() for own in self.strategy.experimental_local_results(value)] for value in values]
        scale, taken = self.made.optimizer.dynamic_scale, self.made.optimizer.iterations
        self.states.append((local, float(scale.numpy()), int(taken.numpy())))


@pytest.mark.parametrize("kind", MAKERS)
def test_an_overflow_on_one_replica_skips_the_step_on_both(kind, two_replicas):
    """No replica takes the step, nor do followers, though clipping would hide the infinity; the next one is taken."""
    model, _, optimizer = same_numbers.parts(two_replicas, "bp", "float16")
    if kind == "trainer":
        made = tfbio.Trainer(
            model, Overflowing(seed=3), optimizer, strategy=two_replicas, jit_compile=False, steps_per_loop=1
        )
    else:
        with two_replicas.scope():
            made = tfbio.Learner(model, Overflowing(seed=3))
            made.compile(optimizer, jit_compile=False)
    noting = Noting(two_replicas, made)
    made.fit(same_numbers.data(), callbacks=[noting], verbose=0)
    assert [state[1:] for state in noting.states] == [(2.0**15, 1), (2.0**14, 1), (2.0**14, 2)]
    (first, *_), (second, *_), (third, *_) = noting.states
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(after, before)
    assert all(np.all(np.isfinite(after)) for after in third)
    assert any(np.any(np.not_equal(after, before)) for before, after in zip(second, third, strict=True))
    for after in third:
        np.testing.assert_array_equal(after[0], after[1])


def figures(strategy, folder=None, **options):
    """Of an epoch, saved and read in its middle if there is a folder; of an evaluation; and predictions."""

    def made(seed):
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


def stopped(batch, logs):
    if batch == 1:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def of_one():
    return figures(ONE)


@pytest.mark.parametrize("case", ["two, resumed", "two in parts", "one in parts"])
def test_metrics_and_predictions_are_those_of_one_replica(case, of_one, two_replicas, tmp_path):
    folder = str(tmp_path) if "resumed" in case else None
    parts = {"two in parts": 2, "one in parts": 3}.get(case, 1)
    found = figures(two_replicas if "two" in case else ONE, folder, accumulation_steps=parts)
    for name in ("auc", "r2", "mse", "loss"):
        np.testing.assert_allclose(found[0][name], of_one[0][name], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found[1][name], of_one[1][name], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found[2], of_one[2], rtol=1e-4, atol=1e-6)


class Largest(keras.metrics.Metric):
    """The largest probability: no sum."""

    def __init__(self, aggregation):
        super().__init__(name="largest")
        self.value = self.add_variable((), "zeros", name="value", aggregation=aggregation)

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(tf.maximum(tf.convert_to_tensor(self.value), tf.reduce_max(y_pred)))

    def result(self):
        return self.value


def in_scope(strategy, aggregation):
    with strategy.scope():
        return Largest(aggregation)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda two: {"metrics": [in_scope(two, "sum")]}, r"'largest' \(Largest\) can't be exact"),
        (lambda two: {"metrics": [in_scope(two, "none")]}, r"'largest' \(Largest\) can't be exact"),
        (lambda _: {"metrics": [keras.metrics.SparseTopKCategoricalAccuracy(2)]}, "made outside the strategy's scope"),
        (lambda _: {"preprocessing": keras.layers.Dropout(0.5)}, "made outside the strategy's scope"),
    ],
)
def test_what_can_not_be_exact_is_refused(make, message, two_replicas):
    model, rule, optimizer = same_numbers.parts(two_replicas, "bp", "plain")
    with pytest.raises(ValueError, match=message):
        trainer = tfbio.Trainer(model, rule, optimizer, strategy=two_replicas, **make(two_replicas))
        trainer.evaluate(same_numbers.data())
