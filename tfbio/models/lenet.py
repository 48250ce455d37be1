"""LeNets as they are trained today: max pooling, and other units than the sigmoids of their time.

LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition". `lenet` is LeNet-5 in
the sizes of BioTorch's benchmarks (Sanfiz & Akrout 2021, arXiv:2108.13446), `ernoult_lenet` the wider network of the
literature on difference reconstruction losses (Meulemans et al. 2020, Ernoult et al. 2022).
"""

from collections.abc import Sequence

import keras

__all__ = ["ernoult_lenet", "lenet"]


def lenet(input_shape: Sequence[int] = (28, 28, 1), classes: int = 10, activation: str = "relu") -> keras.Sequential:
    """Convolutions of 6 and 16 filters, then 120 and 84 units: 61,706 parameters with one channel and ten classes.

    Args:
        input_shape: shape of one image, `(height, width, channels)`; smaller ones are padded with zeros to 32 × 32.
        classes: number of outputs.
        activation: of all hidden layers, as Keras accepts it.

    Returns:
        a built model from images to logits, `(batch, classes)`.
    """
    missing = [max(32 - side, 0) for side in input_shape[:2]]
    layers = [keras.Input(input_shape)]
    if any(missing):
        layers.append(keras.layers.ZeroPadding2D([(m // 2, m - m // 2) for m in missing], name="padding"))
    for number, filters in enumerate((6, 16), start=1):
        layers.append(keras.layers.Conv2D(filters, 5, activation=activation, name=f"conv_{number}"))
        layers.append(keras.layers.MaxPooling2D(name=f"pool_{number}"))
    layers.append(keras.layers.Flatten(name="flatten"))
    for number, units in enumerate((120, 84), start=1):
        layers.append(keras.layers.Dense(units, activation=activation, name=f"dense_{number}"))
    return keras.Sequential([*layers, keras.layers.Dense(classes, name="logits")], name="lenet")


def ernoult_lenet(
    input_shape: Sequence[int] = (28, 28, 1), classes: int = 10, activation: str = "elu"
) -> keras.Sequential:
    """5 × 5 convolutions of 32 and 64 filters, each with max pooling 3 / 2, then 512 units; zeros around, no cropping.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.
        activation: of all hidden layers, as Keras accepts it; Meulemans et al. take tanh.

    Returns:
        a built model from images to logits, `(batch, classes)`.
    """
    layers = [keras.Input(input_shape)]
    for number, filters in enumerate((32, 64), start=1):
        layers.append(keras.layers.Conv2D(filters, 5, padding="same", activation=activation, name=f"conv_{number}"))
        layers.append(keras.layers.MaxPooling2D(3, 2, padding="same", name=f"pool_{number}"))
    layers.append(keras.layers.Flatten(name="flatten"))
    layers.append(keras.layers.Dense(512, activation, name="dense_1"))
    return keras.Sequential([*layers, keras.layers.Dense(classes, name="logits")], name="ernoult_lenet")
