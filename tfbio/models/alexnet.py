"""AlexNet, which Xiao et al. 2018 (arXiv:1811.03567) trained with sign symmetry, in its one-column form.

Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks" (arXiv:1404.5997): five convolutions
and three dense layers, 61.1 million parameters for ImageNet.
"""

from collections.abc import Sequence

import keras

__all__ = ["alexnet"]


def alexnet(
    input_shape: Sequence[int] = (224, 224, 3),
    classes: int = 1000,
    batch_normalization: bool = False,
    synchronized: bool = False,
) -> keras.Sequential:
    """The network, for images of 63 × 63 pixels or more.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.
        batch_normalization: normalise before each rectifier, in place of dropout. Asymmetric feedback needs it more
            than backpropagation does (Liao et al. 2016).
        synchronized: take batch normalisation's statistics over all replicas.

    Returns:
        a built model from images to logits, `(batch, classes)`.
    """
    normalization = {"momentum": 0.9, "epsilon": 1e-5, "synchronized": synchronized}
    layers = [keras.Input(input_shape)]

    def add(kind: type, name: str, *arguments, **options) -> None:
        layers.append(kind(*arguments, use_bias=not batch_normalization, name=name, **options))
        if batch_normalization:
            layers.append(keras.layers.BatchNormalization(name=f"{name}_norm", **normalization))
        layers.append(keras.layers.Activation("relu", name=f"{name}_relu"))

    layers.append(keras.layers.ZeroPadding2D(2, name="padding"))
    convolutions = ((64, 11, 4, "valid"), (192, 5, 1, "same"), (384, 3, 1, "same"), (256, 3, 1, "same"))
    for number, (filters, size, stride, padding) in enumerate((*convolutions, (256, 3, 1, "same")), start=1):
        add(keras.layers.Conv2D, f"conv_{number}", filters, size, stride, padding, kernel_initializer="he_normal")
        if number in (1, 2, 5):
            layers.append(keras.layers.MaxPooling2D(3, 2, name=f"pool_{number}"))
    layers.append(keras.layers.Flatten(name="flatten"))
    for number in (1, 2):
        if not batch_normalization:
            layers.append(keras.layers.Dropout(0.5, name=f"dropout_{number}"))
        add(keras.layers.Dense, f"dense_{number}", 4096, kernel_initializer="he_normal")
    return keras.Sequential([*layers, keras.layers.Dense(classes, name="logits")], name="alexnet")
