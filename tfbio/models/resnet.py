"""Residual networks: ResNet-18 and -50 for ImageNet, ResNet-20 and -56 for CIFAR.

He, Zhang, Ren & Sun 2015, "Deep residual learning for image recognition" (arXiv:1512.03385).

| | blocks | filters | shortcuts | parameters |
|---|---|---|---|---|
| `resnet20` | 3, 3, 3 of two 3 × 3 convolutions | 16, 32, 64 | A | 0.27 M |
| `resnet56` | 9, 9, 9 of two 3 × 3 convolutions | 16, 32, 64 | A | 0.85 M |
| `resnet18` | 2, 2, 2, 2 of two 3 × 3 convolutions | 64 … 512 | B | 11.69 M |
| `resnet50` | 3, 4, 6, 3 bottlenecks, to 4 × the filters | 64 … 512 | B | 25.56 M |

Where a block changes the shape, shortcut A skips positions and pads with channels of zeros; B is a 1 × 1 convolution.
A bottleneck has its stride in the 3 × 3 convolution, as is usual since. Every block ends in a layer `block_<n>_out`: a
place to cut at (`tfbio.stages`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras

__all__ = ["resnet18", "resnet20", "resnet50", "resnet56"]


def resnet20(input_shape: Sequence[int] = (32, 32, 3), classes: int = 10, synchronized: bool = False) -> keras.Model:
    """ResNet-20 for small images.

    Args:
        input_shape: shape of one image, `(height, width, channels)`.
        classes: number of outputs.
        synchronized: take batch normalisation's statistics over all replicas.

    Returns:
        a built model from images to logits, `(batch, classes)`.
    """
    return _cifar("resnet20", 3, input_shape, classes, synchronized)


def resnet56(input_shape: Sequence[int] = (32, 32, 3), classes: int = 10, synchronized: bool = False) -> keras.Model:
    """ResNet-56 for small images; arguments as in `resnet20`."""
    return _cifar("resnet56", 9, input_shape, classes, synchronized)


def resnet18(
    input_shape: Sequence[int] = (224, 224, 3), classes: int = 1000, synchronized: bool = False
) -> keras.Model:
    """ResNet-18 for ImageNet; arguments as in `resnet20`."""
    return _imagenet("resnet18", _basic, (2, 2, 2, 2), input_shape, classes, synchronized)


def resnet50(
    input_shape: Sequence[int] = (224, 224, 3), classes: int = 1000, synchronized: bool = False
) -> keras.Model:
    """ResNet-50 for ImageNet; arguments as in `resnet20`."""
    return _imagenet("resnet50", _bottleneck, (3, 4, 6, 3), input_shape, classes, synchronized)


def _convolution(x: Any, name: str, filters: int, size: int, stride: int = 1, *, relu: bool, synchronized: bool) -> Any:
    """Convolution, batch normalisation and, if asked for, the rectifier."""
    options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    x = keras.layers.Conv2D(filters, size, stride, name=f"{name}_conv", **options)(x)
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized, name=f"{name}_norm")
    x = norm(x)
    return keras.layers.Activation("relu", name=f"{name}_relu")(x) if relu else x


def _basic(x: Any, name: str, filters: int, stride: int, convolution: Callable) -> Any:
    """A block's residual branch of two 3 × 3 convolutions."""
    x = convolution(x, f"{name}_a", filters, 3, stride, relu=True)
    return convolution(x, f"{name}_b", filters, 3, relu=False)


def _bottleneck(x: Any, name: str, filters: int, stride: int, convolution: Callable) -> Any:
    """A block's residual branch of a 1 × 1, a 3 × 3 and a 1 × 1 convolution to four times the filters."""
    x = convolution(x, f"{name}_a", filters, 1, relu=True)
    x = convolution(x, f"{name}_b", filters, 3, stride, relu=True)
    return convolution(x, f"{name}_c", 4 * filters, 1, relu=False)


def _padded(x: Any, name: str, filters: int, stride: int) -> Any:
    """Shortcut A: each `stride`-th position, and channels of zeros on both sides."""
    x = keras.layers.AveragePooling2D(1, stride, name=f"{name}_shortcut")(x)
    missing = filters - x.shape[-1]
    return keras.ops.pad(x, [(0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)])


def _block(x: Any, name: str, filters: int, stride: int, branch: Callable, padded: bool, convolution: Callable) -> Any:
    y = branch(x, name, filters, stride, convolution)
    if x.shape != y.shape:
        if padded:
            x = _padded(x, name, y.shape[-1], stride)
        else:
            x = convolution(x, f"{name}_shortcut", y.shape[-1], 1, stride, relu=False)
    x = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.Activation("relu", name=f"{name}_out")(x)


def _network(name: str, inputs: Any, x: Any, blocks: Sequence[tuple[int, int]], classes: int, block: Callable) -> Any:
    for number, (filters, stride) in enumerate(blocks, start=1):
        x = block(x, f"block_{number}", filters, stride)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(x), name=name)


def _blocks(counts: Sequence[int], filters: int) -> list[tuple[int, int]]:
    """Filters and stride of each block: filters double and images halve from group to group."""
    return [(filters << g, 2 if g and not n else 1) for g, count in enumerate(counts) for n in range(count)]


def _cifar(name: str, count: int, input_shape: Sequence[int], classes: int, synchronized: bool) -> keras.Model:
    convolution = partial(_convolution, synchronized=synchronized)
    inputs = keras.Input(input_shape)
    x = convolution(inputs, "stem", 16, 3, relu=True)
    block = partial(_block, branch=_basic, padded=True, convolution=convolution)
    return _network(name, inputs, x, _blocks((count,) * 3, 16), classes, block)


def _imagenet(
    name: str,
    branch: Callable,
    counts: Sequence[int],
    input_shape: Sequence[int],
    classes: int,
    synchronized: bool,
) -> keras.Model:
    convolution = partial(_convolution, synchronized=synchronized)
    inputs = keras.Input(input_shape)
    x = convolution(inputs, "stem", 64, 7, 2, relu=True)
    x = keras.layers.MaxPooling2D(3, 2, "same", name="stem_pool")(x)
    block = partial(_block, branch=branch, padded=False, convolution=convolution)
    return _network(name, inputs, x, _blocks(counts, 64), classes, block)
