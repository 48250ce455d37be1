"""The loop: the same numbers as Keras's own, as NumPy's, in whatever way the batches come."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints, NonFiniteLoss

RULES = ("bp", "fa", "dfa")


def arrays(count=50, shape=(6, 6, 2), classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), np.uint8), rng.integers(0, classes, count).astype(np.int32)


@functools.cache
def sixteens():
    """In memory and in batches of 16, the last of which has 2: a function of the epoch, so that one serves all."""
    return tfbio.data.from_arrays(*arrays(), 16)


def small_model(seed=1, dtype=None, **options):
    keras.utils.set_random_seed(seed)
    layers = [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(3, 3, activation="tanh", dtype=dtype, **options),
        keras.layers.Flatten(dtype=dtype),
        keras.layers.Dense(5, "tanh", dtype=dtype),
        keras.layers.Dense(4, dtype=dtype),
    ]
    return keras.Sequential(layers)


def trainer_for(rule="bp", optimizer="sgd", **options):
    options.setdefault("jit_compile", False)
    return tfbio.Trainer(small_model(), rule, optimizer, preprocessing=keras.layers.Rescaling(1 / 255), **options)


def assert_same_weights(first, second, **tolerance):
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), err_msg=a.path, **tolerance)


@pytest.mark.parametrize("rule", RULES)
def test_equals_learner_fit(rule):
    x, y = arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    trainer = trainer_for(rule, keras.optimizers.Adam(1e-2))
    history = trainer.fit(data, epochs=3, validation_data=data, verbose=False).history
    learner = tfbio.Learner(small_model(), rule, preprocessing=keras.layers.Rescaling(1 / 255))
    learner.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    expected = learner.fit(data, epochs=3, validation_data=data, shuffle=False, verbose=0).history
    assert_same_weights(trainer.model, learner.model, rtol=1e-5, atol=1e-6)
    for name in ("loss", "error", "val_loss", "val_error"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-4, err_msg=name)


def test_it_ends_with_the_moving_averages_and_resumes_without(tmp_path):
    x, y = arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)

    def averaging():
        return keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)

    learner = tfbio.Learner(small_model(), "fa", preprocessing=keras.layers.Rescaling(1 / 255))
    learner.compile(averaging(), jit_compile=False)
    learner.fit(data, epochs=3, shuffle=False, verbose=0)
    whole, first, second = (trainer_for("fa", averaging()) for _ in range(3))
    whole.fit(data, epochs=3, verbose=False)
    assert_same_weights(whole.model, learner.model, rtol=1e-5, atol=1e-6)
    first.fit(data, epochs=1, checkpoints=Checkpoints(tmp_path), verbose=False)
    second.restore(Checkpoints(tmp_path))
    second.fit(data, epochs=3, verbose=False)
    assert_same_weights(second.model, whole.model, rtol=0)
    assert np.abs(second.model.get_weights()[0] - first.model.get_weights()[0]).max() > 1e-3


def test_there_are_no_averages_before_the_first_step():
    """In turns, an epoch of inverses comes first, in which the forward weights' optimizer rests."""
    x, y = arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    rule = {"class_name": "dtp", "config": {"schedule": "alternating"}}
    trainer = trainer_for(rule, keras.optimizers.SGD(0.1, use_ema=True))
    before = trainer.model.get_weights()
    trainer.fit(data, epochs=1, verbose=False)
    for old, new in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_backpropagation_equals_keras_fit():
    x, y = arrays()
    model = small_model()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x / np.float32(255), y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    trainer = trainer_for("bp", keras.optimizers.SGD(0.1, momentum=0.9))
    trainer.fit(tfbio.data.from_arrays(x, y, 16, shuffle=False), epochs=3, verbose=False)
    assert_same_weights(trainer.model, model, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_xla_and_plain_graphs_agree(rule):
    x, y = arrays()
    plain, compiled = (trainer_for(rule, jit_compile=jit) for jit in (False, True))
    for trainer in (plain, compiled):
        if trainer is compiled:  # the same feedback in both
            for to, source in zip(compiled.rule.variables, plain.rule.variables, strict=True):
                to.assign(source)
        trainer.fit(sixteens(), epochs=2, verbose=False)
    assert_same_weights(plain.model, compiled.model, rtol=1e-4, atol=1e-5)


def test_memory_stream_and_function_feeds_agree():
    x, y = arrays()
    memory = tfbio.data.from_arrays(x, y, 16, seed=3)
    source = tfbio.data.memory_of(memory)

    def epoch_stream(epoch):
        order = source.order(epoch).numpy()
        return tf.data.Dataset.from_tensor_slices((x[order], y[order])).batch(16)

    fast, slow = trainer_for(), trainer_for()
    fast.fit(memory, epochs=3, verbose=False)
    slow.fit(epoch_stream, epochs=3, verbose=False)
    assert_same_weights(fast.model, slow.model, rtol=1e-6, atol=1e-7)


def test_a_partial_batch_counts_each_example_once():
    x, y = arrays(10)
    trainer = trainer_for("bp", keras.optimizers.SGD(0.5))
    reference = small_model()
    trainer.fit(tfbio.data.from_arrays(x, y, 4, shuffle=False), epochs=1, verbose=False)
    for part in (slice(0, 4), slice(4, 8), slice(8, 10)):  # the last one is the mean over two
        with tf.GradientTape() as tape:
            logits = reference(x[part] / np.float32(255), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y[part], logits))
        values = [variable.value for variable in reference.trainable_variables]
        for value, gradient in zip(values, tape.gradient(loss, values), strict=True):
            value.assign_sub(0.5 * gradient)
    assert_same_weights(trainer.model, reference, rtol=1e-5, atol=1e-6)


def test_sample_weights_are_normalised_over_the_batch():
    x, y = arrays(8)
    weights = np.array([1, 1, 1, 0, 1, 0, 0, 0], np.float32)
    weighted, plain = trainer_for(), trainer_for()
    weighted.fit(tf.data.Dataset.from_tensors((x, y, weights)), epochs=1, verbose=False)
    plain.fit(tf.data.Dataset.from_tensors((x[weights > 0], y[weights > 0])), epochs=1, verbose=False)
    assert_same_weights(weighted.model, plain.model, rtol=1e-5, atol=1e-7)


def test_evaluate_does_not_depend_on_batches():
    x, y = arrays()
    trainer = trainer_for()
    logits = trainer.model(x / np.float32(255)).numpy()
    shifted = logits - logits.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    for size in (50, 16, 7):
        figures = trainer.evaluate(tfbio.data.from_arrays(x, y, size))
        assert figures["loss"] == pytest.approx(-log_probabilities[np.arange(50), y].mean(), rel=1e-5)
        assert figures["error"] == pytest.approx((logits.argmax(1) != y).mean())
        assert figures["accuracy"] == pytest.approx(1 - figures["error"])


@pytest.mark.parametrize("endless", [False, True])
def test_each_number_of_steps_is_a_figure_of_its_own(endless):
    x, y = arrays(48)
    data = tfbio.data.from_arrays(x, y, 16, shuffle=False)
    if endless:
        data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(16)
    trainer = trainer_for()
    trainer.fit(data, epochs=1, steps_per_epoch=2, verbose=False)
    for steps, count in ((1, 16), (3, 48), (1, 16), *([] if endless else [(None, 48)])):
        expected = trainer.evaluate(tfbio.data.from_arrays(x[:count], y[:count], 16))
        assert trainer.evaluate(data, steps) == pytest.approx(expected)
    assert int(trainer.step.numpy()) == 2


@pytest.mark.parametrize("steps", [0, 4])
def test_steps_beyond_an_epoch_are_refused(steps):
    for data in (tfbio.data.from_arrays(*arrays(48), 16), tf.data.Dataset.from_tensor_slices(arrays(48)).batch(16)):
        with pytest.raises(ValueError, match=f"steps.*: expected .*1.* received {steps}"):
            trainer_for().fit(data, steps_per_epoch=steps, verbose=False)


def test_epochs_are_counted_over_calls():
    trainer = trainer_for()
    data = sixteens()
    assert len(trainer.fit(data, epochs=2, verbose=False).history["loss"]) == 2
    assert not trainer.fit(data, epochs=2, verbose=False).history
    assert len(trainer.fit(data, epochs=3, verbose=False).history["loss"]) == 1
    assert int(trainer.step.numpy()) == 3 * 4


def test_endless_data_go_on_from_epoch_to_epoch():
    x, y = arrays(48)
    endless = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(8)
    whole = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    first, second = trainer_for(), trainer_for()
    first.fit(endless, epochs=3, steps_per_epoch=2, verbose=False)  # three epochs of two steps are the set once
    second.fit(whole, epochs=1, verbose=False)
    assert_same_weights(first.model, second.model, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        trainer_for().fit(endless, verbose=False)


def test_callbacks_work_on_the_plain_model(tmp_path):
    trainer = trainer_for("fa", keras.optimizers.SGD(0.1))
    rates = []
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1)),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda e, logs: rates.append(float(trainer.optimizer.learning_rate))
        ),
        keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
        keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9),
    ]
    data = sixteens()
    history = trainer.fit(data, epochs=10, callbacks=callbacks, verbose=False)
    assert rates == pytest.approx([0.1, 0.05])
    assert len(history.history["loss"]) == 2
    saved = keras.models.load_model(tmp_path / "2.keras")
    assert type(saved) is keras.Sequential
    assert_same_weights(saved, trainer.model, rtol=0, atol=0)


def test_learning_rate_schedules_follow_the_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.0])
    trainer = trainer_for("bp", keras.optimizers.SGD(schedule))
    data = sixteens()
    trainer.fit(data, epochs=1, verbose=False)
    after = [v.numpy() for v in trainer.model.variables]
    trainer.fit(data, epochs=2, verbose=False)
    for now, before in zip(trainer.model.variables, after, strict=True):
        np.testing.assert_array_equal(now.numpy(), before)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("rule", RULES)
def test_mixed_precision_follows_float32(policy, rule):
    x, y = arrays()
    exact, mixed = (
        tfbio.Trainer(small_model(dtype=dtype), rule, keras.optimizers.SGD(0.05), jit_compile=False,
                      preprocessing=keras.layers.Rescaling(1 / 255))
        for dtype in (None, policy)
    )  # fmt: skip
    for to, source in zip(mixed.rule.variables, exact.rule.variables, strict=True):
        to.assign(source)
    for trainer in (exact, mixed):
        trainer.fit(tfbio.data.from_arrays(x, y, 25), epochs=4, verbose=False)
    moved = [(a.numpy(), b.numpy()) for a, b in zip(exact.model.variables, mixed.model.variables, strict=True)]
    start = [variable.numpy() for variable in small_model().variables]
    for (a, b), s in zip(moved, start, strict=True):
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a - s) + 1e-4
    assert isinstance(mixed.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    x, y = arrays(64)
    images = x.astype(np.float32)
    images[40] = np.inf  # the sixth batch of eight
    trainer = tfbio.Trainer(small_model(), "fa", "sgd", jit_compile=False)
    checkpoints = Checkpoints(str(tmp_path), every_steps=2)
    with pytest.raises(NonFiniteLoss) as caught:
        trainer.fit(tfbio.data.from_arrays(images, y, 8, shuffle=False), checkpoints=checkpoints, verbose=False)
    message = str(caught.value)
    assert "at step 6" in message and "step-4" in message and "kernel" in message
    assert [path.name for path in checkpoints.paths()] == ["step-2", "step-4"]


@pytest.mark.parametrize(("every", "bad", "kept"), [(2, 4, 2), (5, 8, 5)])  # a checkpoint is due; the end of all
def test_weights_that_are_not_finite_are_not_saved(tmp_path, every, bad, kept):
    """The loss of a step is that of the weights before it, and finite still where the update is not."""

    class Poisoned(tfbio.rules.Backpropagation):
        def update(self, batch):
            update = super().update(batch)
            factor = tf.where(tf.convert_to_tensor(self.step) == bad - 1, np.nan, 1.0)
            return update._replace(forward=[gradient * factor for gradient in update.forward])

    checkpoints = Checkpoints(str(tmp_path), every_steps=every)
    with pytest.raises(NonFiniteLoss, match=f"Weights became infinite or NaN at step {bad}.*step-{kept}"):
        trainer_for(Poisoned()).fit(tfbio.data.from_arrays(*arrays(64), 8), checkpoints=checkpoints, verbose=False)
    assert [path.name for path in checkpoints.paths()] == [f"step-{kept}"]


def test_a_rule_that_forgets_a_gradient_is_told():
    class Forgetful(tfbio.rules.Backpropagation):
        def update(self, batch):
            update = super().update(batch)
            return update._replace(forward=update.forward[1:])

    trainer = trainer_for(Forgetful())
    with pytest.raises(ValueError, match="one gradient for each"):
        trainer.fit(sixteens(), verbose=False)


def halved(gradient):
    """Half of it, by Python's control flow."""
    if tf.norm(gradient) > 0:
        gradient = gradient / 2
    return gradient


class Changed(tfbio.rules.Backpropagation):
    """Backpropagation with a function applied to each gradient."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def update(self, batch):
        update = super().update(batch)
        return update._replace(forward=[self.change(gradient) for gradient in update.forward])


def test_pythons_control_flow_in_a_rule_is_told_what_to_do():
    """A rule is called without AutoGraph, as Keras calls its training steps."""
    with pytest.raises(TypeError, match="tf.function"):
        trainer_for(Changed(halved)).fit(sixteens(), verbose=False)


def test_pythons_control_flow_in_a_function_of_its_own():
    data = sixteens()
    halving = trainer_for(Changed(tf.function(halved)), keras.optimizers.SGD(0.1))
    slower = trainer_for("bp", keras.optimizers.SGD(0.05))
    for trainer in (halving, slower):
        trainer.fit(data, verbose=False)
    assert_same_weights(halving.model, slower.model, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_feedback_that_learns_has_its_own_optimizer(jit_compile):
    class Learned(tfbio.rules.Backpropagation):
        def setup(self):
            super().setup()
            self.wanted = keras.Variable(np.zeros(3, "float32"), trainable=True, name="feedback")

        @property
        def variables(self):
            return [self.wanted]

        def update(self, batch):
            update = super().update(batch)
            return update._replace(feedback=[tf.ones(3) * batch.share])

    trainer = trainer_for(Learned(), "adam", feedback_optimizer=keras.optimizers.SGD(0.5), jit_compile=jit_compile)
    trainer.fit(sixteens(), epochs=1, verbose=False)
    np.testing.assert_allclose(trainer.rule.wanted.numpy(), -0.5 * 4 * np.ones(3), rtol=1e-6)
