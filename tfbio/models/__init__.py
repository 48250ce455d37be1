"""Networks of the literature: functions that return plain, built `keras.Model`s.

Nothing here knows of learning rules, and none is needed: any Keras model will do. These are the ones that published
results were measured on. All end in **logits**: the output activation belongs to the loss.
"""

from tfbio.models.alexnet import alexnet
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
from tfbio.models.lenet import ernoult_lenet, lenet
from tfbio.models.networks import convolutional, fully_connected, locally_connected
from tfbio.models.resnet import resnet18, resnet20, resnet50, resnet56

__all__ = [
    "alexnet",
    "bartunov_cifar10_conv",
    "bartunov_cifar10_fc",
    "bartunov_cifar10_lc",
    "bartunov_imagenet_conv",
    "bartunov_imagenet_lc",
    "bartunov_mnist_conv",
    "bartunov_mnist_fc",
    "bartunov_mnist_lc",
    "convolutional",
    "ernoult_lenet",
    "fully_connected",
    "lenet",
    "locally_connected",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet56",
]
