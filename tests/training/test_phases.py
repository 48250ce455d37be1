"""Rules whose forward and feedback variables take turns, and the two optimizers that serve them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 12)


def network():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((4,)), L.Dense(6, "tanh"), L.Dense(5, "tanh"), L.Dense(3)])


def make(jit_compile=False, optimizers=("adam", "adam"), **options):
    rule = tfbio.rules.SimplifiedDifferenceTargetPropagation(noise=0.3, **options)
    optimizer, feedback_optimizer = optimizers
    return tfbio.Trainer(
        network(), rule, optimizer, feedback_optimizer=feedback_optimizer, jit_compile=jit_compile, steps_per_loop=2
    )


def groups(trainer):
    """Values of all that learns, and of its optimizer, by group."""
    variables = {
        "forward": [*trainer.rule.forward_variables, *trainer.optimizer.variables],
        "feedback": [*trainer.rule.feedback_variables, *trainer.feedback_optimizer.variables],
    }
    return {name: [variable.numpy() for variable in group] for name, group in variables.items()}


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def moved(before, after):
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_who_rests_keeps_weights_and_moments(jit_compile):
    trainer = make(jit_compile, schedule="alternating")
    states = [groups(trainer)]
    for epochs in (1, 2, 3):
        trainer.fit(data(), epochs=epochs, verbose=False)
        states.append(groups(trainer))
    for epoch, learner, resting in ((0, "feedback", "forward"), (1, "forward", "feedback"), (2, "feedback", "forward")):
        assert not any(moved(states[epoch][resting], states[epoch + 1][resting]))
        assert sum(moved(states[epoch][learner], states[epoch + 1][learner])) > 3 * 4  # all but the learning rate
    assert int(trainer.step.numpy()) == 9
    assert int(trainer.optimizer.iterations) == 3 and int(trainer.feedback_optimizer.iterations) == 6


def test_turns_of_some_steps_are_the_updates_by_hand():
    trainer = make(schedule="alternating", period=2, optimizers=("adam", keras.optimizers.Adam(0.01)))
    hand = make(schedule="alternating", period=2, optimizers=("adam", keras.optimizers.Adam(0.01)))
    trainer.fit(data(), epochs=3, verbose=False)
    for step in range(9):
        x, y = X[4 * (step % 3) :][:4], Y[4 * (step % 3) :][:4]
        update = hand.rule.compute(x, y)
        if step // 2 % 2 == 0:
            hand.feedback_optimizer.apply(update.feedback, hand.rule.feedback_variables)
        else:
            hand.optimizer.apply(update.forward, hand.rule.forward_variables)
        hand.rule.step.assign_add(1)
    for name, values in groups(trainer).items():
        for a, b in zip(values, groups(hand)[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_second_optimizer_is_made_if_none_is_given():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.5)
    trainer = make(schedule="alternating", optimizers=(keras.optimizers.SGD(schedule, momentum=0.5), None))
    assert trainer.feedback_optimizer is not trainer.optimizer
    own, other = (o.get_config() for o in (trainer.optimizer, trainer.feedback_optimizer))
    assert own == other and other["momentum"] == 0.5
    assert make(optimizers=("adam", None)).feedback_optimizer is None  # one for both, where all learn at once


def test_each_optimizer_has_its_settings():
    one, both = make(optimizers=("adam", keras.optimizers.SGD(0.0))), make(optimizers=("adam", "adam"))
    before = groups(one)["feedback"][:4]
    for trainer in (one, both):
        trainer.fit(data(), epochs=1, verbose=False)
    assert not any(moved(before, groups(one)["feedback"][:4]))
    assert all(moved(before, groups(both)["feedback"][:4]))


def test_each_optimizer_s_loss_scale_is_its_own():
    keras.config.set_dtype_policy("mixed_float16")
    results = []
    for scale in (2.0**15, 2.0**10):
        trainer = make(optimizers=("sgd", keras.optimizers.SGD(0.1)))
        trainer.feedback_optimizer.dynamic_scale.assign(scale)
        trainer.fit(data(), epochs=1, verbose=False)
        results.append([variable.numpy() for variable in trainer.rule.feedback_variables])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_keras_s_own_loop_can_t():
    for name, option in (("dtp", {"schedule": "alternating"}), ("ldrl", {"feedback_iterations": 2})):
        with pytest.raises(ValueError, match="take turns.*Trainer"):
            tfbio.Learner(network(), {"class_name": name, "config": option}).compile()
