"""Where backward weights come from.

Backpropagation sends the error of a layer $a = h W + b$ back through $W^\\top$. The rules of this family use another
matrix of the same shape. A `FeedbackWeights` says which: it may own a variable for each kernel (`Random`), or compute
the backward weights from the forward ones (`Symmetric`). The backward weights $B$ always have the **kernel's own
shape**: they are the kernel that the backward pass uses in place of $W$.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["FeedbackWeights"]


class FeedbackWeights:
    """The source of a layer's backward weights; subclasses define `__call__`, and `initializer` to own a variable."""

    #: True if the variable learns: a rule then returns an update for it.
    learned = False

    def initializer(
        self, index: int, fans: tuple[float, float] | None = None, kernel: Any = None
    ) -> Callable[..., tf.Tensor] | None:
        """What to fill the kernel's own feedback variable with.

        Args:
            index: the kernel's number in the network, so that one seed gives each kernel its own draw.
            fans: the kernel's (fan-in, fan-out); None for what its shape says.
            kernel: the forward weights themselves, for what starts from their values.

        Returns:
            A Keras initializer, `(shape, dtype) -> tensor`; None if no variable is needed.
        """
        del index, fans, kernel
        return None

    def __call__(
        self,
        kernel: tf.Tensor,
        variable: tf.Tensor | None,
        key: tf.Tensor,
        fans: tuple[float, float] | None = None,
    ) -> tf.Tensor:
        """The backward weights for one pass.

        Args:
            kernel: the forward weights, in the layer's compute dtype.
            variable: this kernel's feedback variable, of the same shape and dtype; None if `initializer` gave none.
            key: (the kernel's number, the step), int64: what a draw for this pass is a function of.
            fans: the kernel's (fan-in, fan-out); None for what its shape says.

        Returns:
            The backward weights, of the kernel's shape and dtype.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `__call__`.")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FeedbackWeights":
        """The inverse of `get_config`."""
        return cls(**config)
