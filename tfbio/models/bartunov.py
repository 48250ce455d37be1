"""The networks of Bartunov et al. 2018, Table 3.

"Assessing the Scalability of Biologically-Motivated Deep Learning Algorithms and Architectures",
https://arxiv.org/abs/1807.04587.

All have tanh units and Glorot initialisation (the paper doesn't say which; uniform here), pad with zeros so that stride
1 keeps the shape, and have strides in place of pooling, which target propagation can't invert. The `…_lc` networks
share no weights between positions; the `…_conv` networks, the paper's "BP ConvNet", are the same with shared ones.

| `bartunov_…` | hidden layers, as (kernel, filters, stride) or units | parameters |
|---|---|---|
| `mnist_fc` | 256, 256, 256, 256, 256 | 466,698 |
| `mnist_lc`, `mnist_conv` | (3, 32, 2), (3, 64, 2), 1024 | 4,191,562 and 3,241,354 |
| `cifar10_fc` | 1024, 1024, 1024 | 5,256,202 |
| `cifar10_lc`, `cifar10_conv` | (5, 64, 2), (5, 128, 2), (3, 256, 1), 1024 | 50,039,818 and 17,293,450 |
| `imagenet_lc`, `imagenet_conv` | see `_IMAGENET` below | 259,859,368 and 20,209,816 |

The stride of CIFAR-10's third layer is not printed in the paper; 1 is implied.
"""

from collections.abc import Sequence

import keras

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
]

_MNIST = {"filters": ((3, 32, 2), (3, 64, 2)), "units": (1024,)}
_CIFAR10 = {"filters": ((5, 64, 2), (5, 128, 2), (3, 256, 1)), "units": (1024,)}
_IMAGENET = {
    "filters": ((9, 48, 4), (3, 48, 2), (5, 96, 1), (3, 96, 2), (3, 192, 1), (3, 192, 2), (3, 384, 1)),
    "units": (),
}


def bartunov_mnist_fc(input_shape: Sequence[int] = (28, 28, 1), classes: int = 10) -> keras.Sequential:
    """The fully connected network for MNIST: five layers of 256 units.

    Args:
        input_shape: shape of one example.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return fully_connected(input_shape, classes, units=(256,) * 5, name="bartunov_mnist_fc")


def bartunov_mnist_lc(input_shape: Sequence[int] = (28, 28, 1), classes: int = 10) -> keras.Sequential:
    """The locally connected network for MNIST.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return locally_connected(input_shape, classes, **_MNIST, name="bartunov_mnist_lc")


def bartunov_mnist_conv(input_shape: Sequence[int] = (28, 28, 1), classes: int = 10) -> keras.Sequential:
    """The convolutional network for MNIST.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return convolutional(input_shape, classes, **_MNIST, name="bartunov_mnist_conv")


def bartunov_cifar10_fc(input_shape: Sequence[int] = (32, 32, 3), classes: int = 10) -> keras.Sequential:
    """The fully connected network for CIFAR-10: three layers of 1,024 units.

    Args:
        input_shape: shape of one example.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return fully_connected(input_shape, classes, units=(1024,) * 3, name="bartunov_cifar10_fc")


def bartunov_cifar10_lc(input_shape: Sequence[int] = (32, 32, 3), classes: int = 10) -> keras.Sequential:
    """The locally connected network for CIFAR-10.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return locally_connected(input_shape, classes, **_CIFAR10, name="bartunov_cifar10_lc")


def bartunov_cifar10_conv(input_shape: Sequence[int] = (32, 32, 3), classes: int = 10) -> keras.Sequential:
    """The convolutional network for CIFAR-10.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return convolutional(input_shape, classes, **_CIFAR10, name="bartunov_cifar10_conv")


def bartunov_imagenet_lc(input_shape: Sequence[int] = (224, 224, 3), classes: int = 1000) -> keras.Sequential:
    """The locally connected network for ImageNet; its last such layer feeds the output layer directly.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return locally_connected(input_shape, classes, **_IMAGENET, name="bartunov_imagenet_lc")


def bartunov_imagenet_conv(input_shape: Sequence[int] = (224, 224, 3), classes: int = 1000) -> keras.Sequential:
    """The convolutional network for ImageNet; its last convolution feeds the output layer directly.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.

    Returns:
        a built model that outputs logits of shape `(batch, classes)`.
    """
    return convolutional(input_shape, classes, **_IMAGENET, name="bartunov_imagenet_conv")
