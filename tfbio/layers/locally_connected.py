r"""Locally connected layers: convolutions that share no weights.

$$ y_p = s\left(\sum_{t} x_{p,t} W_{p,t} + b_p\right) $$

Each output position $p$ has a kernel $W_p$ and a bias of its own; $x_{p,t}$ is the input under tap $t$ of its window.
Weight sharing is what makes a convolution hard to imagine in a brain, so this literature trains these layers in its
place (Bartunov et al. 2018, arXiv:1807.04587). With all positions' weights equal, the layer *is* the convolution.

The transposed layer is the adjoint: $x_{p,t}$ gets $y_p W_{p,t}^\top$, summed over the windows that a pixel is in. It
has weights of its own, in the shape of the layer that it inverts, as target propagation needs them.

Kernels are `(…positions, taps * inputs, outputs)`, in Keras 2's order. Fans are those of one position. Computation is
one batched matrix product over positions, in the layout of `tfbio.layers.windows`.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.fans import fans_of, with_fans
from tfbio.layers.traits import register_traits
from tfbio.layers.windows import IMPLEMENTATIONS, Windows
from tfbio.serialization import register

__all__ = ["LocallyConnected", "LocallyConnected1D", "LocallyConnected2D", "LocallyConnected2DTranspose"]


class LocallyConnected(keras.layers.Layer):
    """What all locally connected layers share; subclasses set `rank`.

    Args:
        filters: number of output channels.
        kernel_size: of a window, in pixels; one number, or one for each axis.
        strides: from one window to the next, in pixels.
        padding: `"valid"`, or `"same"` (zeros, so that stride 1 keeps the size).
        data_format: `"channels_last"` or `"channels_first"`; None takes Keras's.
        dilation_rate: from one tap of a window to the next, in pixels.
        activation: as Keras accepts it.
        use_bias: whether to add a bias, of its own at each position.
        kernel_initializer: as Keras accepts it; the fans are those of one position.
        bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer, kernel_constraint,
            bias_constraint: as Keras accepts them.
        implementation: how windows are taken: `"gather"`, `"slices"`, or `"auto"` (see `Windows`). Same numbers.

    Raises:
        ValueError: a value that is out of range, or (when built) an input of another rank or of unknown size.
    """

    rank: int

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        implementation: str = "auto",
        **kwargs,
    ):
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        (self.filters,) = _counts("filters", filters, 1)
        self.kernel_size = _counts("kernel_size", kernel_size, self.rank)
        self.strides = _counts("strides", strides, self.rank)
        self.dilation_rate = _counts("dilation_rate", dilation_rate, self.rank)
        self.padding = _one_of("padding", padding, ("valid", "same"))
        data_format = data_format or keras.config.image_data_format()
        self.data_format = _one_of("data_format", data_format, ("channels_last", "channels_first"))
        self.implementation = _one_of("implementation", implementation, IMPLEMENTATIONS)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2)

    def build(self, input_shape: tuple) -> None:
        size, channels = self._split(input_shape)
        self.windows = self._windows_at(size)
        #: `(…window, in, out)`: the kernel's shape at one position, which says its fans.
        self.window_shape = (*self.kernel_size, *self._kernel_channels(channels))
        *_, inputs, outputs = self.window_shape
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.windows.positions, self.windows.taps * inputs, outputs),
            initializer=with_fans(self.kernel_initializer, fans_of(self.window_shape)),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(*self._output_size(self.windows), self.filters),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        # Weights belong to positions, so that no other size will do.
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        self.built = True

    def _windows_at(self, size: tuple[int, ...]) -> Windows:
        """The windows of the layer, for inputs of this size."""
        return Windows(size, self.kernel_size, self.strides, self.dilation_rate, self.padding, self.implementation)

    def _kernel_channels(self, channels: int) -> tuple[int, int]:
        """The kernel's channels at one tap, for inputs of so many channels."""
        return channels, self.filters

    def _output_size(self, windows: Windows) -> tuple[int, ...]:
        return windows.positions

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        kernel = tf.reshape(kernel, [math.prod(self.windows.positions), *kernel.shape[-2:]])
        outputs = self._product(self._flat(inputs), kernel)
        if self.bias is not None:
            outputs += tf.reshape(tf.convert_to_tensor(self.bias), outputs.shape[1:])
        outputs = self._image(outputs)
        return outputs if self.activation is None else self.activation(outputs)

    def _product(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """`(batch, pixels, inputs)` → `(batch, positions, filters)`."""
        patches = self.windows.patches(tf.transpose(inputs, [1, 2, 0]))
        return tf.transpose(tf.matmul(patches, kernel, transpose_a=True), [1, 0, 2])

    def _flat(self, images: tf.Tensor) -> tf.Tensor:
        """`(batch, pixels, channels)`, from images in the layer's data format."""
        size, channels = self._split(tuple(images.shape))
        batch, pixels = tf.shape(images)[0], math.prod(size)
        if self.data_format == "channels_first":
            return tf.transpose(tf.reshape(images, [batch, channels, pixels]), [0, 2, 1])
        return tf.reshape(images, [batch, pixels, channels])

    def _image(self, outputs: tf.Tensor) -> tf.Tensor:
        """The inverse of `_flat`, at the output's size."""
        batch, size = tf.shape(outputs)[0], self._output_size(self.windows)
        if self.data_format == "channels_first":
            return tf.reshape(tf.transpose(outputs, [0, 2, 1]), [batch, self.filters, *size])
        return tf.reshape(outputs, [batch, *size, self.filters])

    def _split(self, shape: tuple) -> tuple[tuple[int, ...], int]:
        """(spatial size, channels) of a shape in the layer's data format."""
        if len(shape) != self.rank + 2 or None in shape[1:]:
            raise ValueError(
                f"Invalid value for `input_shape`: expected (batch, …) with {self.rank} spatial axes and channels, of "
                f"fixed size since each position has its own weights, received {tuple(shape)} at {self.name!r}. Give "
                "the model a fixed input shape."
            )
        if self.data_format == "channels_first":
            return tuple(shape[2:]), shape[1]
        return tuple(shape[1:-1]), shape[-1]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        size = self._output_size(self._windows_at(self._split(input_shape)[0]))
        channels_first = self.data_format == "channels_first"
        return (input_shape[0], self.filters, *size) if channels_first else (input_shape[0], *size, self.filters)

    def get_config(self) -> dict[str, Any]:
        serialize = {
            "activation": keras.activations.serialize,
            **{f"{name}_initializer": keras.initializers.serialize for name in ("kernel", "bias")},
            **{f"{name}_regularizer": keras.regularizers.serialize for name in ("kernel", "bias", "activity")},
            **{f"{name}_constraint": keras.constraints.serialize for name in ("kernel", "bias")},
        }
        plain = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "use_bias")
        config = {name: getattr(self, name) for name in (*plain, "implementation")}
        return {**super().get_config(), **config, **{n: write(getattr(self, n)) for n, write in serialize.items()}}


@register
class LocallyConnected1D(LocallyConnected):
    """A 1D convolution whose weights are not shared between positions.

    Args: those of `LocallyConnected`.

    Input: `(batch, steps, channels)`; output: `(batch, new steps, filters)`; channels second if `"channels_first"`.
    """

    rank = 1


@register
class LocallyConnected2D(LocallyConnected):
    """A 2D convolution whose weights are not shared between positions.

    Args: those of `LocallyConnected`.

    Input: `(batch, rows, columns, channels)`; output: `(batch, new rows, new columns, filters)`; channels second if
    `"channels_first"`.
    """

    rank = 2


@register
class LocallyConnected2DTranspose(LocallyConnected):
    """The adjoint of a `LocallyConnected2D` of the same arguments, with weights of its own in the same shape.

    Args:
        filters: number of output channels: the mirrored layer's input channels.
        output_size: (rows, columns) of the output: the mirrored layer's input size. Several sizes have the same output
            under strides; None takes the one that `keras.layers.Conv2DTranspose` takes.
        kwargs: those of `LocallyConnected`, as the mirrored layer has them.

    Input: `(batch, rows, columns, channels)`, the mirrored layer's output; output: the mirrored layer's input.
    """

    rank = 2

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        output_size: int | Sequence[int] | None = None,
        **kwargs,
    ):
        super().__init__(filters, kernel_size, strides, **kwargs)
        self.output_size = None if output_size is None else _counts("output_size", output_size, self.rank)

    def _windows_at(self, size: tuple[int, ...]) -> Windows:
        target = self.output_size or self._default_size(size)
        windows = super()._windows_at(target)
        if windows.positions != size:
            raise ValueError(
                f"Invalid value for `output_size`: expected the input size of a layer whose output is {size}, received "
                f"{target} at {self.name!r}, whose output is {windows.positions}. Pass the mirrored layer's input size."
            )
        return windows

    def _default_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        if self.padding == "same":
            return tuple(n * s for n, s in zip(size, self.strides, strict=True))
        axes = zip(size, self.kernel_size, self.strides, self.dilation_rate, strict=True)
        return tuple((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in axes)

    def _kernel_channels(self, channels: int) -> tuple[int, int]:
        return self.filters, channels

    def _output_size(self, windows: Windows) -> tuple[int, ...]:
        return windows.size

    def _product(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        patches = tf.matmul(kernel, tf.transpose(inputs, [1, 0, 2]), transpose_b=True)
        return tf.transpose(self.windows.fold(patches), [2, 0, 1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "output_size": self.output_size}


def _counts(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """`value` as `rank` positive integers."""
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(values) != rank or not all(isinstance(v, int) and v > 0 for v in values):
        expected = "a positive integer" if rank == 1 else f"a positive integer, or {rank} of them"
        raise ValueError(f"Invalid value for `{name}`: expected {expected}, received {value!r}.")
    return values


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"Invalid value for `{name}`: expected one of {known}, received {value!r}.")
    return value


register_traits(LocallyConnected1D, LocallyConnected2D, LocallyConnected2DTranspose, kernels=("kernel",))
