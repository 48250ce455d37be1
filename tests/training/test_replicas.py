"""Two replicas, on virtual devices, take the same steps as one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfbio
from tfbio.training import Checkpoints
from tfbio.training.strategies import make_strategy

ONE = tf.distribute.get_strategy()
# Rules whose defaults would leave a part of them untried.
RULES = {
    "fa": {"class_name": "fa", "config": {"signed_init": True}},
    "ldrl": {"class_name": "ldrl", "config": {"feedback_iterations": (1, 2, 3)}},
    "wm": {"class_name": "wm", "config": {"interval": 3}},
    "ao_sdtp": {
        "class_name": "ao_sdtp",
        "config": {"auxiliary_units": 3, "schedule": "alternating", "period": 5},
    },
}
#: What one replica and two do, and what two do alone. A graph without XLA stands for both where there is one: that they
#: agree is another test's business, and compiling a rule takes ten seconds.
SETTINGS = {
    "plain": ({}, {}),
    "streamed": ({"stream": True, "global_clipnorm": 0.1}, {}),
    "compiled": ({"normalized": False}, {"jit_compile": True}),
}
#: A rule of each kind; tests/stress/test_every_rule.py has all in all settings, test_updates.py some on streams.
CASES = {
    "bp": ("bp", {"evaluate": True}, {}),
    "bp clipped": ("bp", {"clipnorm": 0.02}, {}),  # clipping knows nothing of rules
    "fa in parts": ("fa", {"normalized": False}, {"jit_compile": True, "parts": 3}),  # each replica's share in parts
    **{rule: (rule, *SETTINGS["plain"]) for rule in ("brsf", "kp", "wm", "dfa", "dtp", "ao_sdtp", "ldrl")},
    **{f"{rule} compiled": (rule, *SETTINGS["compiled"]) for rule in ("kp", "dfa_regenerated")},
}


def network(normalized):
    keras.utils.set_random_seed(7)
    layers = [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(3, 3, activation="tanh", kernel_regularizer=keras.regularizers.L2(1e-2)),
        *([keras.layers.BatchNormalization(synchronized=True)] if normalized else []),
        keras.layers.Flatten(),
        keras.layers.Dense(5, "tanh"),
        keras.layers.Dense(4),
    ]
    return keras.Sequential(layers)


def train(strategy, rule, stream=False, jit_compile=False, parts=1, normalized=True, evaluate=False, **clipping):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (27, 6, 6, 2), np.uint8), rng.integers(0, 4, 27).astype(np.int32)
    data = tfbio.data.from_arrays(images, labels, 8, augmentation=None if stream else "flip_crop", shuffle=not stream)
    if stream:
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    with strategy.scope():
        model = network(normalized)
        optimizer = keras.optimizers.AdamW(1e-2, **clipping)
    rule = tfbio.rules.get(rule)
    if hasattr(rule, "_draw"):  # noise is each replica's own; here, a function of the example
        rule._draw = lambda number, like, *_: tf.sin(5 * like)
    trainer = tfbio.Trainer(
        model,
        rule,
        optimizer,
        strategy=strategy,
        jit_compile=jit_compile,
        preprocessing=keras.layers.Rescaling(1 / 255),
        accumulation_steps=parts,
    )
    held_out = data if evaluate else None  # the last batch has 3 examples
    history = trainer.fit(data, epochs=2, validation_data=held_out, verbose=False).history
    return trainer, history


@pytest.mark.parametrize(("rule", "both", "twice"), CASES.values(), ids=CASES)
def test_two_replicas_equal_one(rule, both, twice, two_replicas):
    rule = RULES.get(rule, rule)
    single, expected = train(ONE, rule, **both)
    double, history = train(two_replicas, rule, **both, **twice)
    for group in ("variables", "trainable_variables"):
        pairs = zip(getattr(single.model, group), getattr(double.model, group), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-5, err_msg=a.path)
    for name, values in expected.items():
        if name != "seconds":
            np.testing.assert_allclose(history[name], values, rtol=1e-3, err_msg=name)
    assert_equal_replicas(double, two_replicas)


def assert_equal_replicas(trainer, strategy):
    variables = [*trainer.model.variables, *trainer.rule.variables, *trainer.optimizer.variables]
    variables += trainer.feedback_optimizer.variables if trainer.feedback_optimizer else []
    for variable in variables:
        replicas = [value.numpy() for value in strategy.experimental_local_results(variable.value)]
        assert len(replicas) == 2, variable.path
        np.testing.assert_array_equal(replicas[0], replicas[1], err_msg=variable.path)


def test_strategies_of_the_same_devices_are_one(two_replicas):
    """Synchronised layers of a second strategy would meet those of the first one, whatever their shapes."""
    assert make_strategy("mirrored") is two_replicas


@pytest.mark.parametrize("rule", ["bp", "kp"])
def test_what_replicas_can_not_do_is_refused(rule, two_replicas):
    with two_replicas.scope(), pytest.raises(ValueError, match="synchronized"):  # they can't meet within a part
        tfbio.Trainer(network(True), rule, accumulation_steps=2)
    with pytest.raises(ValueError, match="scope"):
        tfbio.Trainer(network(True), rule, strategy=two_replicas)
    with two_replicas.scope():
        model = network(True)
    with pytest.raises(ValueError, match="scope"):
        tfbio.Trainer(model, rule, keras.optimizers.SGD(0.1), strategy=two_replicas)


def noisy(strategy, rule, seed=1, **options):
    """A trainer of a rule with noise; batch normalisation comes first, so that its statistics are no weight's."""
    keras.utils.set_random_seed(1)
    rule = tfbio.rules.get({"class_name": rule, "config": {"noise": 0.5, "seed": seed}})
    with strategy.scope():
        layers = [keras.layers.BatchNormalization()] * bool(options.pop("normalized", False))
        layers += [keras.layers.Dense(30, "tanh"), keras.layers.Dense(20, "tanh"), keras.layers.Dense(2)]
        model = keras.Sequential([keras.Input((3,)), *layers])
    optimizers = {"optimizer": "sgd", "feedback_optimizer": {"class_name": "Adam", "config": {"learning_rate": 1e-2}}}
    return tfbio.Trainer(model, rule, strategy=strategy, jit_compile=False, **optimizers, **options)


RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(2, 3, (16, 3)).astype("float32"), RANDOM.integers(0, 2, 16)


def draws(trainer):
    """The noise of an update: `(replica, number of the stage, count)` → values."""
    rule, found, draw = trainer.rule, {}, trainer.rule._draw

    def noting(number, *arguments):
        noise = draw(number, *arguments)
        replica = int(tf.distribute.get_replica_context().replica_id_in_sync_group)
        found[replica, number] = noise.numpy()
        return noise

    rule._draw = noting
    trainer.strategy.run(rule.compute, (tf.constant(X), tf.constant(Y), tf.fill([16], 1 / 16)))
    del rule._draw
    return found


def test_noise_is_a_function_of_seed_step_and_replica(two_replicas):
    two, one = noisy(two_replicas, "sdtp"), noisy(ONE, "sdtp")
    first, alone = draws(two), draws(one)
    numbers = {number for _, number in alone}
    assert len(numbers) == 2 and set(first) == {(replica, number) for replica in (0, 1) for number in numbers}
    for key in alone:
        np.testing.assert_array_equal(first[key], alone[key])  # the first replica's is that of a single one
    two.step.assign_add(1)
    others = [draws(two), draws(noisy(two_replicas, "sdtp", seed=2))]
    two.step.assign_sub(1)
    for key, value in draws(two).items():
        np.testing.assert_array_equal(first[key], value)
    for number in numbers:
        kinds = [
            first[0, number],
            first[1, number],
            *(other[replica, number] for other in others for replica in (0, 1)),
        ]
        assert np.abs(np.corrcoef([kind.ravel() for kind in kinds]) - np.eye(6)).max() < 0.2  # of 320 values or more
        assert all(abs(kind.mean()) < 0.2 and abs(kind.std() - 1) < 0.15 for kind in kinds)


def test_two_replicas_equal_one_that_takes_its_batches_in_two_parts_with_noise(two_replicas):
    """Parts and replicas number their noise alike, and take the same halves of a full batch of a stream."""
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    one, two = trainers = [noisy(ONE, "sdtp", accumulation_steps=2), noisy(two_replicas, "sdtp")]
    before = inverse_losses(two)
    for trainer in trainers:
        trainer.fit(data, epochs=20, verbose=False)
    for a, b in zip(*([*t.model.variables, *t.rule.variables] for t in trainers), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-5, err_msg=a.path)
    assert_equal_replicas(two, two_replicas)
    after = inverse_losses(two)
    assert len(before) == 2 and all(after[name] < 0.6 * loss for name, loss in before.items())  # 0.13 and 0.51


def inverse_losses(trainer):
    figures = trainer.rule.diagnostics(X, Y)
    return {name: float(value) for name, value in figures.items() if name.startswith("reconstruction/")}


class Dies(keras.callbacks.Callback):
    every_steps = 1

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def test_moving_statistics_are_those_of_all_replicas_and_a_run_with_noise_resumes(tmp_path, two_replicas):
    def make(strategy):
        return noisy(strategy, "sdtp", normalized=True)

    def data():
        return tfbio.data.from_arrays(X, Y, 4)

    one, whole, first, second = make(ONE), make(two_replicas), make(two_replicas), make(two_replicas)
    one.fit(data(), epochs=2, verbose=False)
    figures = whole.fit(data(), epochs=2, validation_data=data(), verbose=False).history
    with pytest.raises(KeyboardInterrupt):
        saving = Checkpoints(str(tmp_path), every_steps=2)
        first.fit(data(), epochs=2, checkpoints=saving, callbacks=[Dies()], verbose=False)
    assert second.restore(Checkpoints(str(tmp_path))) == 2
    second.fit(data(), epochs=2, checkpoints=Checkpoints(str(tmp_path)), verbose=False)
    for trainer in (whole, second):
        for variable in trainer.model.variables:
            replicas = [value.numpy() for value in two_replicas.experimental_local_results(variable.value)]
            np.testing.assert_array_equal(*replicas, err_msg=variable.path)
    pairs = zip(*([*trainer.model.variables, *trainer.rule.variables] for trainer in (whole, second)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6 if "moving" in a.path else 0, err_msg=a.path)
    means = [trainer.model.layers[0].moving_mean.numpy() for trainer in (one, whole)]
    np.testing.assert_allclose(*means, rtol=1e-5)  # halves of a batch have its mean on average
    last = figures["val_loss"][-1]
    assert abs(second.evaluate(data())["loss"] - last) < 1e-6 * last
