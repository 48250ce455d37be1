"""Symmetric feedback: $B = W$, the weight transport of backpropagation.

The control of every experiment (`sham` in Xiao et al. 2018, arXiv:1811.03567): a network whose layers all carry it has
backpropagation's gradients exactly.
"""

import tensorflow as tf

from tfbio.feedback.base import FeedbackWeights
from tfbio.serialization import register

__all__ = ["Symmetric"]


@register
class Symmetric(FeedbackWeights):
    """The forward weights themselves."""

    def __call__(
        self,
        kernel: tf.Tensor,
        variable: tf.Tensor | None,
        key: tf.Tensor,
        fans: tuple[float, float] | None = None,
    ) -> tf.Tensor:
        return kernel
