"""What learning rules need to know of kinds of layers: the one registry that feedback, stages, inverses and losses ask.

A layer's **kernels** are the weights that mix its inputs, in the order in which its call applies them: a layer that has
some is *weighted*, and a learning rule may replace them in the backward pass. All other weights act unit by unit, or on
no differentiable input, so that the layer's own derivative is right under every rule. `kind` says what else a layer is:

| kind | layers | asked by |
|---|---|---|
| `"activation"` | a function of each unit | inverses: the next inverse's own activation takes its place |
| `"dropout"` | random masks and noise | inverses leave it out |
| `"embedding"` | rows of a table, by number | stages: it fills a stage, and no error goes past it |
| `"normalization"` | affine in each unit, given the statistics | inverses leave it out |
| `"pooling"` | windows to single values | inverses repeat values, or stride |
| `"recurrent"` | kernels inside a loop over time | feedback goes through time |
| `"shaping"` | values moved about | inverses reshape; outputs are looked for behind it |

To add a kind of layer is one entry:

    register_traits(MyDense, kernels=("kernel",))

or, for a class of your own, the attribute `feedback_kernels = ("kernel",)`. Such a layer must be affine in its input,
apart from its `activation`. Feedback weights are scaled by the kernel's fans. A layer whose kernel holds one window for
each position says the shape of one, `(…window, in, out)`, in the attribute `window_shape`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from tfbio.fans import fans_of

__all__ = [
    "Traits",
    "fans",
    "is_exact",
    "is_known_affine",
    "is_weighted",
    "kernels",
    "register_traits",
    "registered",
    "traits",
]

_LAYERS = keras.layers


@dataclass(frozen=True)
class Traits:
    """What is known of a class of layers.

    Attributes:
        kernels: names of the attributes that hold kernels, or a function of a layer to them.
        kind: see the module; None for a layer that is only weighted, or unknown.
        inverse: makes the layer's inverse (`tfbio.network.inverses`).
    """

    kernels: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ()
    kind: str | None = None
    inverse: Callable | None = None


_UNKNOWN = Traits()
_REGISTRY: dict[type, Traits] = {}


def register_traits(*classes: type, **known: Any) -> None:
    """Adds what is known of some classes of layers, subclasses included.

    Args:
        classes: subclasses of `keras.layers.Layer`.
        **known: attributes of `Traits`; those left out stay as they are, or as those of a base class.
    """
    for cls in classes:
        _REGISTRY[cls] = replace(_nearest(cls), **known)


def _nearest(cls: type) -> Traits:
    return next((_REGISTRY[base] for base in cls.__mro__ if base in _REGISTRY), _UNKNOWN)


def traits(layer: Any) -> Traits:
    """What is known of a layer: the entry of its class, or of the nearest of its base classes that has one."""
    known = _nearest(type(layer))
    own = getattr(layer, "feedback_kernels", None)
    return known if own is None else replace(known, kernels=(own,) if isinstance(own, str) else tuple(own))


def registered() -> dict[type, Traits]:
    """All that is known, by class."""
    return dict(_REGISTRY)


def is_known_affine(layer: keras.layers.Layer) -> bool:
    """True if the layer's very class has an entry with its kernels, so that its call is what the entry says."""
    entry = _REGISTRY.get(type(layer), _UNKNOWN)
    return bool(entry.kernels) and not callable(entry.kernels) and getattr(layer, "feedback_kernels", None) is None


def _kernel_names(layer: keras.layers.Layer) -> tuple[str, ...]:
    names = traits(layer).kernels
    return names(layer) if callable(names) else names


def fans(layer: keras.layers.Layer, kernel: keras.Variable) -> tuple[float, float]:
    """Fan-in and fan-out of one of a built layer's kernels: of one position, where each has weights of its own."""
    return fans_of(getattr(layer, "window_shape", kernel.shape))


def is_weighted(layer: keras.layers.Layer) -> bool:
    """True if the layer has kernels, so that feedback weights can stand in for them."""
    return bool(_kernel_names(layer))


def is_exact(layer: keras.Operation) -> bool:
    """True if the layer's own derivative is right under every rule: it has no weights, or none that mix its inputs."""
    exact = traits(layer).kind in ("activation", "embedding", "normalization")
    return exact or not getattr(layer, "weights", ())  # a bare operation (`x + y`) has no such attribute


def kernels(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The kernels of a built weighted layer, in the order in which its call applies them.

    Raises:
        ValueError: the layer has none, or its kernel is not a plain variable (LoRA or quantisation is on).
    """
    result = [getattr(layer, name, None) for name in _kernel_names(layer)]
    if not result or not all(isinstance(kernel, keras.Variable) and _is_float(kernel) for kernel in result):
        raise ValueError(
            f"Invalid value for `layer`: expected a built layer with kernels, received {layer.name!r} "
            f"({type(layer).__name__}). Layers with LoRA or quantisation are not supported; a layer of your own, "
            "affine in its input, names its kernels in the class attribute `feedback_kernels`."
        )
    return result


def _is_float(variable: keras.Variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)


register_traits(
    *(_LAYERS.Dense, _LAYERS.EinsumDense, _LAYERS.Conv1D, _LAYERS.Conv2D, _LAYERS.Conv3D, _LAYERS.Conv1DTranspose),
    *(_LAYERS.Conv2DTranspose, _LAYERS.Conv3DTranspose, _LAYERS.DepthwiseConv1D, _LAYERS.DepthwiseConv2D),
    kernels=("kernel",),
)
register_traits(_LAYERS.SeparableConv1D, _LAYERS.SeparableConv2D, kernels=("depthwise_kernel", "pointwise_kernel"))
register_traits(_LAYERS.Embedding, kind="embedding")
if hasattr(_LAYERS, "ReversibleEmbedding"):  # numbers to vectors, and, called with `reverse`, vectors to logits
    register_traits(
        _LAYERS.ReversibleEmbedding,
        kernels=lambda layer: ("embeddings" if layer.tie_weights else "reverse_embeddings",),
    )
register_traits(
    *(_LAYERS.BatchNormalization, _LAYERS.GroupNormalization, _LAYERS.LayerNormalization, _LAYERS.Normalization),
    _LAYERS.RMSNormalization,
    kind="normalization",
)
register_traits(*(_LAYERS.Activation, _LAYERS.ELU, _LAYERS.LeakyReLU, _LAYERS.PReLU, _LAYERS.ReLU), kind="activation")
register_traits(
    *(_LAYERS.Dropout, _LAYERS.GaussianDropout, _LAYERS.GaussianNoise),
    *(_LAYERS.SpatialDropout1D, _LAYERS.SpatialDropout2D, _LAYERS.SpatialDropout3D, _LAYERS.AlphaDropout),
    kind="dropout",
)
register_traits(_LAYERS.MaxPooling2D, _LAYERS.AveragePooling2D, kind="pooling")
register_traits(_LAYERS.Flatten, _LAYERS.Reshape, _LAYERS.Identity, kind="shaping")
register_traits(
    *(_LAYERS.ConvLSTM1D, _LAYERS.ConvLSTM2D, _LAYERS.ConvLSTM3D, _LAYERS.RNN),
    kind="recurrent",
)
