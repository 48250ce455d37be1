r"""Fans: how many inputs a unit sums over, and how many outputs an input reaches.

The scale of initial weights follows from them: Glorot's variance is $2 / (n_{in} + n_{out})$. Keras reads them off a
kernel's shape, `(…window, in, out)`. Where a kernel holds one window for each position, as a locally connected layer's
does, this counts the positions as part of the window, and weights come out too small by up to the root of their number;
such a layer must say its fans itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

__all__ = ["fans_of", "with_fans"]


def fans_of(shape: Sequence[int]) -> tuple[float, float]:
    """Fan-in and fan-out of a kernel `(…window, in, out)`, as Keras counts them."""
    if len(shape) < 2:
        return (float(math.prod(shape)),) * 2
    window = math.prod(shape[:-2])
    return float(window * shape[-2]), float(window * shape[-1])


def with_fans(initializer: Callable, fans: tuple[float, float]) -> Callable:
    """`initializer`, drawing weights of the scale that `fans` asks for, whatever the kernel's shape says.

    Args:
        initializer: a Keras initializer, or a function `(shape, dtype) -> tensor`.
        fans: (fan-in, fan-out) of one unit.

    Returns:
        A function `(shape, dtype) -> tensor`. Only the variance-scaling family (Glorot, He, LeCun) depends on fans;
        others draw as ever. When called, it raises a `ValueError` for an orthogonal initializer, whose scale depends on
        the shape in another way, unless `fans` are the shape's own.
    """

    def draw(shape: Sequence[int], dtype: Any = None) -> Any:
        own = fans_of(shape)
        if own != fans and isinstance(initializer, keras.initializers.Orthogonal):
            raise ValueError(
                "Invalid value for `initializer`: expected one of independent weights, received Orthogonal for a "
                f"kernel {tuple(shape)} that holds a window for each position. Use, say, 'glorot_uniform'."
            )
        if own == fans or not isinstance(initializer, keras.initializers.VarianceScaling):
            return initializer(shape, dtype=dtype)
        counts = {"fan_in": lambda i, o: i, "fan_out": lambda i, o: o, "fan_avg": lambda i, o: (i + o) / 2}
        count = counts[initializer.mode]
        scale = initializer.scale * count(*own) / count(*fans)
        scaled = keras.initializers.VarianceScaling(scale, initializer.mode, initializer.distribution, initializer.seed)
        return scaled(shape, dtype=dtype)

    return draw
