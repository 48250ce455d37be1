"""Which of a layer's weights mix its inputs: the kernels, that a learning rule may replace in the backward pass.

Three kinds of layers: **weighted** ones, affine in their input given their kernels (dense, convolutions, …), which get
feedback weights; **exact** ones, whose weights act unit by unit (normalisation, PReLU), or on no differentiable input
(Embedding), and whose derivative stays as it is; and the rest, which a rule can't treat (recurrent cells, attention).
A layer of your own joins the first kind by naming its kernels, in the order in which its call applies them:

    class MyDense(keras.layers.Layer):
        feedback_kernels = ("kernel",)

Feedback weights are scaled by the kernel's fans. A layer whose kernel holds one window for each position says the shape
of one, `(…window, in, out)`, in the attribute `window_shape`, for its fans are those of the window.
"""

import keras

from tfbio.fans import fans_of

__all__ = ["fans", "is_exact", "is_weighted", "kernels"]

_LAYERS = keras.layers
_KERNELS = {
    _LAYERS.SeparableConv1D: ("depthwise_kernel", "pointwise_kernel"),
    _LAYERS.SeparableConv2D: ("depthwise_kernel", "pointwise_kernel"),
    **dict.fromkeys(
        (
            _LAYERS.Dense,
            _LAYERS.EinsumDense,
            _LAYERS.Conv1D,
            _LAYERS.Conv2D,
            _LAYERS.Conv3D,
            _LAYERS.Conv1DTranspose,
            _LAYERS.Conv2DTranspose,
            _LAYERS.Conv3DTranspose,
            _LAYERS.DepthwiseConv1D,
            _LAYERS.DepthwiseConv2D,
        ),
        ("kernel",),
    ),
}
_EXACT = (
    _LAYERS.BatchNormalization,
    _LAYERS.Embedding,
    _LAYERS.GroupNormalization,
    _LAYERS.LayerNormalization,
    _LAYERS.Normalization,
    _LAYERS.PReLU,
    _LAYERS.RMSNormalization,
)


def _kernel_names(layer: keras.layers.Layer) -> tuple[str, ...]:
    names = getattr(layer, "feedback_kernels", None)
    if names is None:
        names = next((names for cls, names in _KERNELS.items() if isinstance(layer, cls)), ())
    return names


def fans(layer: keras.layers.Layer, kernel: keras.Variable) -> tuple[float, float]:
    """Fan-in and fan-out of one of a built layer's kernels: of one position, where each has weights of its own."""
    return fans_of(getattr(layer, "window_shape", kernel.shape))


def is_weighted(layer: keras.layers.Layer) -> bool:
    """True if the layer is affine in its input given its kernels, so that feedback weights can stand in for them."""
    return bool(_kernel_names(layer))


def is_exact(layer: keras.Operation) -> bool:
    """True if the layer's own derivative is right under every rule: it has no weights, or none that mix its inputs."""
    return isinstance(layer, _EXACT) or not getattr(layer, "weights", ())  # a bare operation (`x + y`) has no attribute


def kernels(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The kernels of a built weighted layer, in the order in which its call applies them.

    Raises:
        ValueError: the layer has none, or its kernel is not a plain variable (LoRA or quantisation is on).
    """
    result = [getattr(layer, name, None) for name in _kernel_names(layer)]
    if not result or not all(isinstance(kernel, keras.Variable) for kernel in result):
        raise ValueError(
            f"Invalid value for `layer`: expected a built layer with kernels, received {layer.name!r} "
            f"({type(layer).__name__}). Layers with LoRA or quantisation are not supported; a layer of your own names "
            "its kernels in the class attribute `feedback_kernels`."
        )
    return result
