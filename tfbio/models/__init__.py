"""Networks of the literature: functions that return plain, built `keras.Model`s.

Nothing here knows of learning rules, and none is needed: any Keras model will do. These are the ones that published
results were measured on. All end in **logits**: the output activation belongs to the loss.
"""

from tfbio.models.bartunov import (
    bartunov_cifar10_conv,
    bartunov_cifar10_fc,
    bartunov_cifar10_lc,
    bartunov_imagenet_conv,
    bartunov_imagenet_lc,
    bartunov_mnist_conv,
    bartunov_mnist_fc,
    bartunov_mnist_lc,
)
from tfbio.models.networks import convolutional, fully_connected, locally_connected

__all__ = [
    "bartunov_cifar10_conv",
    "bartunov_cifar10_fc",
    "bartunov_cifar10_lc",
    "bartunov_imagenet_conv",
    "bartunov_imagenet_lc",
    "bartunov_mnist_conv",
    "bartunov_mnist_fc",
    "bartunov_mnist_lc",
    "convolutional",
    "fully_connected",
    "locally_connected",
]
