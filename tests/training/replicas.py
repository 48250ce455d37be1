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


def network(normalized=True):
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


def train(strategy, rule, stream, jit_compile, parts=1, **clipping):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (27, 6, 6, 2), np.uint8), rng.integers(0, 4, 27).astype(np.int32)
    data = tfbio.data.from_arrays(images, labels, 8, augmentation=None if stream else "flip_crop", shuffle=not stream)
    if stream:
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    with strategy.scope():
        model = network(normalized=not jit_compile and parts == 1)
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
        accumulation_steps=parts if strategy.num_replicas_in_sync > 1 else 1,
    )
    held_out = None if stream else data  # the last batch has 3 examples
    history = trainer.fit(data, epochs=2, validation_data=held_out, verbose=False).history
    return trainer, history


def main(rules: list[str]) -> None:
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # a second one in the process would clash with its keys
    for rule in rules:
        compare(RULES.get(rule, rule), two)
    refuse(rules[0], two)
    print("replicas agree")


def compare(rule: Any, two: tf.distribute.Strategy) -> None:
    one = tf.distribute.get_strategy()
    options = [
        {"stream": False, "jit_compile": True},
        {"stream": True, "jit_compile": False, "global_clipnorm": 0.1},
    ]
    if rule in ("usf", "frsf", "brsf", "drtp", "dfa_shared", "tp", "sdtp"):  # a step as others have it: one way will do
        options = options[:1]
    if rule == "bp":  # clipping knows nothing of rules
        options += [
            {"stream": False, "jit_compile": False, "clipnorm": 0.02},
            {"stream": False, "jit_compile": False, "clipvalue": 1e-3},
        ]
    if rule == "fa":  # two replicas, each of which takes its share in parts, against one with whole batches
        options += [{"stream": False, "jit_compile": True, "parts": 3}]
    for option in options:
        (single, expected), (double, history) = (train(strategy, rule, **option) for strategy in (one, two))
        for group in ("variables", "trainable_variables"):
            pairs = zip(getattr(single.model, group), getattr(double.model, group), strict=True)
            for a, b in pairs:
                message = f"{rule} {option} {a.path}"
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-5, err_msg=message)
        for name, values in expected.items():
            if name != "seconds":
                np.testing.assert_allclose(history[name], values, rtol=1e-3, err_msg=f"{rule} {option} {name}")
        variables = [*double.model.variables, *double.rule.variables, *double.optimizer.variables]
        variables += double.feedback_optimizer.variables if double.feedback_optimizer else []
        for variable in variables:
            replicas = [value.numpy() for value in two.experimental_local_results(variable.value)]
            assert len(replicas) == 2, variable.path
            np.testing.assert_array_equal(replicas[0], replicas[1], err_msg=variable.path)


def refuse(rule: str, two: tf.distribute.Strategy) -> None:
    try:
        with two.scope():
            tfbio.Trainer(network(), rule, accumulation_steps=2)
    except ValueError as error:
        assert "synchronized" in str(error), error
    else:
        raise AssertionError("replicas can't meet within a part of a step")
    for wrong in (lambda: tfbio.Trainer(network(), rule, strategy=two), lambda: outside(two, rule)):
        try:
            wrong()
        except ValueError as error:
            assert "scope" in str(error), error
        else:
            raise AssertionError("something made outside the scope was taken")


def outside(strategy, rule):
    with strategy.scope():
        model = network()
    tfbio.Trainer(model, rule, keras.optimizers.SGD(0.1), strategy=strategy)


if __name__ == "__main__":
    main(sys.argv[1:])
