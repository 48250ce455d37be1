"""Step time of learning rules, as a ratio to Keras's own `train_step` on the unwrapped model.

    python benchmarks/step_time.py --network bartunov_cifar10_conv --rules bp fa dfa --batch_size 128 --json out.json

    python benchmarks/step_time.py --network ernoult_lenet --steps 1 --rounds 5 --rules bp '{"class_name": "ldrl",
        "config": {"feedback_iterations": [1, 20, 30, 35], "inverse": {"pooling": "strided", "kernel_size": 6}}}'

Every contender is a step in a graph loop of the same form: Keras's is `model.train_step` after `compile`, a rule's is
`tfbio.Learner(model, rule).train_step`, or, where the rule gives its feedback several updates a batch, the loop of
`tfbio.Trainer` on a batch that stays. Each has a model of its own with the same initial weights, Adam, the same batch,
and reports loss and accuracy. All run in turn, round by round, in this process; ratios are of the same round, to the
first network's Keras step where there are several (of one input shape and as many classes).
"""

import argparse
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported
import tensorflow as tf
from timing import FixedBatch, interleaved, machine, ratios, table, write

import tfbio


def attention_encoder(blocks: int = 4, tokens: int = 32, units: int = 64) -> keras.Model:
    """A transformer's encoder: feedback enters within its `MultiHeadAttention` layers, 25 weighted layers in all."""
    layers = keras.layers
    x = inputs = keras.Input((tokens, units))
    for _ in range(blocks):
        h = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(4, units // 4)(h, h)
        h = layers.Dense(4 * units, "gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(units)(h)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def network(name: str) -> keras.Model:
    """`attention_encoder`, or a network of `tfbio.models` or `keras.applications`, with its default shape."""
    keras.utils.set_random_seed(0)
    if name == "attention_encoder":
        return attention_encoder()
    if hasattr(tfbio.models, name):
        return getattr(tfbio.models, name)()
    return getattr(keras.applications, name)(weights=None, classifier_activation=None)


def loop(model: keras.Model, x: tf.Tensor, y: tf.Tensor, steps: int, jit_compile: bool):
    """A function that takes `steps` training steps on one batch, in one graph."""
    step = tf.function(model.train_step, jit_compile=jit_compile)

    @tf.function
    def run():
        for _ in tf.range(steps):
            step((x, y))

    return run


def learner_loop(model: keras.Model, rule: str, x: tf.Tensor, y: tf.Tensor, steps: int, jit_compile: bool):
    """As `loop`, with a learning rule."""
    rule = tfbio.rules.get(json.loads(rule) if rule.startswith("{") else rule)
    if getattr(rule, "feedback_iterations", 1) == 1:
        learner = tfbio.Learner(model, rule)
        learner.compile("adam", "softmax_cross_entropy")
        return loop(learner, x, y, steps, jit_compile)
    trainer = tfbio.Trainer(model, rule, "adam", jit_compile=jit_compile)
    feed = FixedBatch(x, y)
    return lambda: trainer._loop(feed, None, 0, 0, steps).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network",
        nargs="+",
        default=["bartunov_mnist_fc"],
        help="functions of tfbio.models or keras.applications, or attention_encoder",
    )
    parser.add_argument("--rules", nargs="+", default=["bp", "fa", "dfa"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps in one timed call")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--jit_compile", action="store_true", help="compile all steps, Keras's too, with XLA")
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()

    shapes = network(arguments.network[0])
    x = tf.random.stateless_uniform((arguments.batch_size, *shapes.input_shape[1:]), seed=(0, 0))
    y = tf.random.stateless_uniform((arguments.batch_size,), (0, 1), 0, shapes.output_shape[-1], tf.int32)
    options = (x, y, arguments.steps, arguments.jit_compile)
    contenders = {}
    for name in arguments.network:
        prefix = f"{name} " if len(arguments.network) > 1 else ""
        plain = network(name)
        plain.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        plain.train_on_batch(x, y)  # builds optimizer and metrics
        contenders[f"{prefix}keras"] = loop(plain, *options)
        for rule in arguments.rules:
            contenders[prefix + rule] = learner_loop(network(name), rule, *options)

    seconds = interleaved(contenders, arguments.rounds, arguments.steps)
    rows = ratios(seconds, next(iter(contenders)))
    print(f"{' '.join(arguments.network)}, batch {arguments.batch_size}, XLA {arguments.jit_compile}, {machine()}")
    print(table(rows))
    write(arguments.json, {"arguments": vars(arguments), "machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
