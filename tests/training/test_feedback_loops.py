"""Rules whose feedback gets several updates from a batch before its step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L

import tfbio
from tfbio.rules.base import Batch

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 12)


def make(jit_compile=False, optimizer="adam", feedback_optimizer="adam", **options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), L.Dense(6, "tanh"), L.Dense(5, "tanh"), L.Dense(3)])
    rule = tfbio.rules.LocalDifferenceTargetPropagation(noise=0.3, **options)
    return tfbio.Trainer(
        model, rule, optimizer, feedback_optimizer=feedback_optimizer, jit_compile=jit_compile, steps_per_loop=2
    )


def data():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


def by_hand(trainer, steps):
    """What the trainer shall do, step by step."""
    rule, optimizer = trainer.rule, trainer.feedback_optimizer
    for step in range(steps):
        x, y = X[4 * (step % 3) :][:4], Y[4 * (step % 3) :][:4]
        feedback = "feedback" in rule.phases[int(rule.phase(step // 3))] if len(rule.phases) > 1 else True
        inputs = rule.feedback_loop_inputs(x)  # of the weights before the step
        for number in (1, 2) if feedback else ():
            for iteration in range(1, rule.feedback_iterations[number]):
                gradients = rule.learn_inverses({number: inputs[number]}, Batch.of(x, y), iteration)
                optimizer.apply(gradients, rule.inverses[number].trainable_variables)
        update = rule.compute(x, y)
        if feedback:
            optimizer.apply(update.feedback, rule.feedback_variables)
        if not feedback or len(rule.phases) == 1:
            trainer.optimizer.apply(update.forward, rule.forward_variables)
        rule.step.assign_add(1)


@pytest.mark.parametrize(
    ("jit_compile", "options"),
    [(False, {}), (True, {}), (False, {"schedule": "alternating"})],
    ids=["graph", "xla", "alternating"],
)
def test_feedback_loops_are_the_updates_by_hand(jit_compile, options):
    trainers = [
        make(each, feedback_optimizer=keras.optimizers.Adam(0.01), feedback_iterations=(1, 4, 3), **options)
        for each in (jit_compile, False)
    ]
    trainers[0].fit(data(), epochs=2, verbose=False)
    by_hand(trainers[1], 6)
    counts = [(int(t.optimizer.iterations), int(t.feedback_optimizer.iterations)) for t in trainers]
    assert counts == ([(6, 36)] * 2 if not options else [(3, 18)] * 2)
    for a, b in zip(*([*t.model.variables, *t.rule.variables] for t in trainers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)


def test_one_iteration_needs_no_loop():
    assert make(feedback_iterations=1).rule.feedback_loops == ()
    trainer = make(feedback_iterations=(9, 1, 3), feedback_optimizer=None)  # the first stage has no inverse
    assert [(r.count, len(r.variables)) for r in trainer.rule.feedback_loops] == [(2, 2)]
    assert trainer.feedback_optimizer is not None


def test_feedback_loops_need_no_float32():
    """The loss scale is a factor that each update's optimizer takes out again."""
    keras.config.set_dtype_policy("mixed_float16")
    results = []
    for scale in (2.0**15, 2.0**10):
        trainer = make(optimizer="sgd", feedback_optimizer=keras.optimizers.SGD(0.1), feedback_iterations=3)
        trainer.feedback_optimizer.dynamic_scale.assign(scale)
        trainer.fit(data(), epochs=1, verbose=False)
        results.append([variable.numpy() for variable in trainer.rule.variables])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("iterations", "message"), [(0, "positive"), ((1, 0, 2), "positive"), ((2, 2), "one number or 3")]
)
def test_bad_numbers_are_named(iterations, message):
    with pytest.raises(ValueError, match=message):
        make(feedback_iterations=iterations)
