"""Layers that Keras lacks: the `Feedback` wrapper, and what it needs to know of a layer's kernels."""

from tfbio.layers.feedback import Feedback
from tfbio.layers.kernels import is_exact, is_weighted, kernels

__all__ = ["Feedback", "is_exact", "is_weighted", "kernels"]
