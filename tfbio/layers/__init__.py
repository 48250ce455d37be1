"""Layers that Keras lacks: the `Feedback` wrapper, what it needs to know of kernels, and locally connected layers."""

from tfbio.layers.conversion import from_convolution, from_keras2, plain, to_keras2
from tfbio.layers.feedback import Feedback
from tfbio.layers.locally_connected import LocallyConnected1D, LocallyConnected2D, LocallyConnected2DTranspose
from tfbio.layers.traits import fans, is_exact, is_weighted, kernels, register_traits

__all__ = [
    "Feedback",
    "LocallyConnected1D",
    "LocallyConnected2D",
    "LocallyConnected2DTranspose",
    "fans",
    "from_convolution",
    "from_keras2",
    "is_exact",
    "is_weighted",
    "kernels",
    "plain",
    "register_traits",
    "to_keras2",
]
