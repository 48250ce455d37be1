"""Takes a step of every feedback rule on networks of `keras.applications`, as they are, and prints a table of it.

    python tests/stress/keras_applications.py --networks MobileNet EfficientNetB0 --rules fa dfa

Two random images of 96 × 96 pixels, ten classes, random weights. A cell is "yes" if every gradient of the step is
finite, every kernel's is not zero, and the last kernel's is backpropagation's; "by name" if the rule names the layers
that it has no feedback for and takes the step once these are allowed exact feedback; otherwise what was raised. Not in
the default test run: all take half an hour.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # TensorFlow reads the log level when it is imported
import numpy as np

import tfbio

NETWORKS = ["VGG16", "ResNet50", "ResNet50V2", "InceptionV3", "Xception", "DenseNet121", "MobileNet", "MobileNetV2"]
NETWORKS += ["MobileNetV3Small", "NASNetMobile", "EfficientNetB0", "EfficientNetV2B0", "ConvNeXtTiny"]
RULES = ["fa", "usf", "brsf", "frsf", "kp", "wm", "dfa", "dfa_shared", "dfa_regenerated", "dfa_broadcast", "drtp"]


def step(model: keras.Model, rule: str, x: np.ndarray, y: np.ndarray, **options) -> str:
    """What a step says of itself, and a ValueError of a layer without feedback."""
    rule = tfbio.rules.get(rule)
    rule = type(rule).from_config({**rule.get_config(), **options})
    rule.build(model, "softmax_cross_entropy")
    exact = tfbio.rules.Backpropagation()
    exact.build(model, "softmax_cross_entropy")
    before = [variable.numpy() for variable in model.variables]
    gradients = [(np.asarray(g), v) for g, v in zip(rule.compute(x, y).forward, model.trainable_variables, strict=True)]
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)  # dropout's state: the same units again
    exact_gradients = zip(exact.compute(x, y).forward, model.trainable_variables, strict=True)
    last = {variable.path: np.asarray(gradient) for gradient, variable in exact_gradients}
    if not all(np.isfinite(gradient).all() for gradient, _ in gradients):
        return "not finite"
    kernels = [(gradient, variable) for gradient, variable in gradients if "kernel" in variable.name]
    zero = [variable.path for gradient, variable in kernels if not gradient.any()]
    if zero:
        return f"no gradient: {zero[0]} and {len(zero) - 1} more"
    gradient, variable = kernels[-1]
    close = np.allclose(gradient, last[variable.path], rtol=1e-3, atol=1e-5 * np.abs(gradient).max())
    return "yes" if close else "the last layer's is not exact"


def cell(network: str, rule: str) -> str:
    size = (96, 96, 3)
    keras.utils.set_random_seed(1)
    options = {"include_preprocessing": False} if network.startswith(("MobileNetV3", "ConvNeXt")) else {}
    model = getattr(keras.applications, network)(
        weights=None, input_shape=size, classes=10, classifier_activation=None, **options
    )
    x, y = np.random.default_rng(0).normal(size=(2, *size)).astype("float32"), np.array([1, 7])
    try:
        return step(model, rule, x, y)
    except ValueError as error:
        if "allow_backpropagation" not in str(error):
            return f"refused: {error}"
    kinds = ("LayerScale", "Normalization")
    allowed = [layer.name for layer in model.layers if type(layer).__name__ in kinds]
    return "by name" if step(model, rule, x, y, allow_backpropagation=allowed) == "yes" else "no"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES)
    arguments = parser.parse_args()
    print(f"| | {' | '.join(f'`{rule}`' for rule in arguments.rules)} |\n|---|{'---|' * len(arguments.rules)}")
    for network in arguments.networks:
        print(f"| {network}", end="", flush=True)
        for rule in arguments.rules:
            try:
                outcome = cell(network, rule)
            except Exception as error:  # the table says what happened and goes on
                outcome = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f" | {outcome}", end="", flush=True)
            keras.backend.clear_session(free_memory=True)
        print(" |", flush=True)


if __name__ == "__main__":
    main()
