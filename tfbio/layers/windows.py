"""The windows of a convolution: which inputs each output position sees, with any stride, dilation and padding.

Locally connected layers take them apart (`patches`) and put them together again (`fold`). Both work on the layout
`(pixels, channels, batch)`, in which a window is a few long rows of memory: taking it is copying rows, and its rows
stacked are the left operand of a matrix product for each position, with nothing to transpose but the input itself.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

__all__ = ["IMPLEMENTATIONS", "Windows"]

IMPLEMENTATIONS = ("auto", "gather", "slices")


@dataclass(frozen=True)
class Windows:
    """Windows on an image with any number of spatial axes; every field but the last two has a number for each.

    Args:
        size: the image's, in pixels.
        kernel: of a window, in taps.
        strides: from one window to the next, in pixels.
        dilation: from one tap to the next, in pixels.
        padding: `"valid"`, or `"same"` (zeros, so that stride 1 keeps the size), as Keras's convolutions pad.
        implementation: `"gather"` copies all rows at once, and adds them up by a scatter in its gradient; `"slices"`
            takes one strided slice a tap, and needs no scatter; `"auto"` is what was measured to be best: the first,
            on CPUs with and without XLA. Their numbers are the same.

    Raises:
        ValueError: the image is smaller than a window.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str
    implementation: str = "auto"

    def __post_init__(self):
        if min(self.positions) < 1:
            raise ValueError(
                f"Invalid value for `input_shape`: expected an image of at least {self._extents} pixels (the window "
                f"with its dilation), received {self.size}. Make the kernel smaller, or pad with padding='same'."
            )

    @property
    def _extents(self) -> tuple[int, ...]:
        """What a window spans, in pixels."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def positions(self) -> tuple[int, ...]:
        """How many windows there are along each axis: the output's size."""
        if self.padding == "same":
            return tuple(-(-n // s) for n, s in zip(self.size, self.strides, strict=True))
        return tuple((n - e) // s + 1 for n, e, s in zip(self.size, self._extents, self.strides, strict=True))

    @property
    def taps(self) -> int:
        """Pixels in a window."""
        return math.prod(self.kernel)

    def _margins(self) -> list[tuple[int, int]]:
        """Zeros before and behind each axis, so that every window is inside."""
        margins = []
        for n, e, s, p in zip(self.size, self._extents, self.strides, self.positions, strict=True):
            total = max((p - 1) * s + e - n, 0)
            margins.append((total // 2, total - total // 2))
        return margins

    def index(self) -> np.ndarray:
        """`(positions, taps)`: the pixel under each tap, in row-major order; the number of pixels where there is none.

        Taps are in the order of a convolution's kernel.
        """
        rank, pixels, inside = len(self.size), 0, True
        for axis, (n, k, s, d, p) in enumerate(
            zip(self.size, self.kernel, self.strides, self.dilation, self.positions, strict=True)
        ):
            coordinate = np.arange(p)[:, None] * s + np.arange(k) * d - self._margins()[axis][0]
            shape = [1] * (2 * rank)
            shape[axis], shape[rank + axis] = p, k
            coordinate = coordinate.reshape(shape)
            pixels = pixels * n + coordinate
            inside = inside & (coordinate >= 0) & (coordinate < n)
        index = np.where(inside, pixels, math.prod(self.size))
        return index.reshape(math.prod(self.positions), self.taps).astype(np.int32)

    def patches(self, pixels: tf.Tensor) -> tf.Tensor:
        """All windows.

        Args:
            pixels: `(pixels, channels, batch)`.

        Returns:
            `(positions, taps * channels, batch)`, of the same dtype.
        """
        channels, batch = pixels.shape[1], tf.shape(pixels)[2]
        windows = self._sliced(pixels) if self.implementation == "slices" else self._gathered(pixels)
        return tf.reshape(windows, [math.prod(self.positions), self.taps * channels, batch])

    def _gathered(self, pixels: tf.Tensor) -> tf.Tensor:
        index = self.index()
        if index.max() == math.prod(self.size):
            pixels = tf.pad(pixels, [[0, 1], [0, 0], [0, 0]])  # one row of zeros, for all taps outside
        return tf.gather(pixels, index.reshape(-1))

    def _sliced(self, pixels: tf.Tensor) -> tf.Tensor:
        image = tf.reshape(pixels, [*self.size, pixels.shape[1], tf.shape(pixels)[2]])
        image = tf.pad(image, [*self._margins(), (0, 0), (0, 0)])
        slices = []
        for tap in np.ndindex(*self.kernel):
            starts = [t * d for t, d in zip(tap, self.dilation, strict=True)]
            axes = zip(starts, self.positions, self.strides, strict=True)
            slices.append(image[tuple(slice(start, start + (p - 1) * s + 1, s) for start, p, s in axes)])
        return tf.concat(slices, axis=-2)

    def fold(self, patches: tf.Tensor) -> tf.Tensor:
        """The adjoint of `patches`: every window's values are added to the pixels that they stand for.

        Args:
            patches: `(positions, taps * channels, batch)`.

        Returns:
            `(pixels, channels, batch)`.
        """
        with tf.GradientTape() as tape:
            shape = [math.prod(self.size), patches.shape[1] // self.taps, tf.shape(patches)[2]]
            pixels = tf.zeros(shape, patches.dtype)
            tape.watch(pixels)
            windows = self.patches(pixels)
        return tf.convert_to_tensor(tape.gradient(windows, pixels, patches))
