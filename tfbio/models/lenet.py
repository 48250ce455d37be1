"""LeNet-5 as it is trained today: rectified units and max pooling.

LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition"; in the sizes of
BioTorch's benchmarks (Sanfiz & Akrout 2021, arXiv:2108.13446).
"""

from collections.abc import Sequence

import keras

__all__ = ["lenet"]


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
