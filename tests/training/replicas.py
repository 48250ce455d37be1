"""Run by test_replicas.py in a process of its own: one replica against two on virtual CPUs."""

import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfbio

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


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


def main(rules: list[str]) -> None:
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # a second one in the process would clash with its keys
    for rule in rules:
        compare(RULES.get(rule, rule), two)
    refuse(rules[0], two)
    print("replicas agree")


def compare(rule: Any, two: tf.distribute.Strategy) -> None:
    # What one replica does, and what two do. A graph without XLA stands for both where there is one: that they agree is
    # another test's business, and compiling a rule takes ten seconds.
    cases = [({"evaluate": rule == "bp"}, {})]
    if rule in ("bp", "kp", "dfa", "dtp"):  # the kinds of rules; the others' steps are made of the same parts
        cases += [({"stream": True, "global_clipnorm": 0.1}, {}), ({"normalized": False}, {"jit_compile": True})]
    if rule == "bp":  # clipping knows nothing of rules
        cases += [({"clipnorm": 0.02}, {}), ({"clipvalue": 1e-3}, {})]
    if rule == RULES["fa"]:  # two replicas, each of which takes its share in parts
        cases += [({"normalized": False}, {"jit_compile": True, "parts": 3})]
    for both, twice in cases:
        single, expected = train(tf.distribute.get_strategy(), rule, **both)
        double, history = train(two, rule, **both, **twice)
        said = f"{rule} {both} {twice}"
        for group in ("variables", "trainable_variables"):
            pairs = zip(getattr(single.model, group), getattr(double.model, group), strict=True)
            for a, b in pairs:
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-5, err_msg=f"{said} {a.path}")
        for name, values in expected.items():
            if name != "seconds":
                np.testing.assert_allclose(history[name], values, rtol=1e-3, err_msg=f"{said} {name}")
        variables = [*double.model.variables, *double.rule.variables, *double.optimizer.variables]
        variables += double.feedback_optimizer.variables if double.feedback_optimizer else []
        for variable in variables:
            replicas = [value.numpy() for value in two.experimental_local_results(variable.value)]
            assert len(replicas) == 2, variable.path
            np.testing.assert_array_equal(replicas[0], replicas[1], err_msg=variable.path)


def refuse(rule: str, two: tf.distribute.Strategy) -> None:
    try:
        with two.scope():
            tfbio.Trainer(network(True), rule, accumulation_steps=2)
    except ValueError as error:
        assert "synchronized" in str(error), error
    else:
        raise AssertionError("replicas can't meet within a part of a step")
    for wrong in (lambda: tfbio.Trainer(network(True), rule, strategy=two), lambda: outside(two, rule)):
        try:
            wrong()
        except ValueError as error:
            assert "scope" in str(error), error
        else:
            raise AssertionError("something made outside the scope was taken")


def outside(strategy, rule):
    with strategy.scope():
        model = network(True)
    tfbio.Trainer(model, rule, keras.optimizers.SGD(0.1), strategy=strategy)


if __name__ == "__main__":
    main(sys.argv[1:])
