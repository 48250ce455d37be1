r"""Feedback through time: recurrent cells, with other weights in the backward pass.

A cell computes, with $x_t$ its input and $h_{t-1}$ its state, before its nonlinearities,

$$ z_t = x_t K + b, \qquad r_t = h_{t-1} R . $$

Backward, with $\delta z_t$ and $\delta r_t$ the exact errors there, its two kernels have feedback of their own:

$$ \frac{\partial \ell}{\partial x_t} := \delta z_t B_K^\top, \qquad
   \frac{\partial \ell}{\partial h_{t-1}} := \delta r_t B_R^\top + \text{what } h_{t-1} \text{ gets otherwise}, $$

the second at every step back in time. Gates, carries and the kernels' own gradients are exact. With $B_K = K$ and
$B_R = R$ it is backpropagation through time.

A cell is not affine in its input, so that its vector-Jacobian product at other kernels is not this. But a bias that is
each example's own gets exactly the error at $z_t$ or $r_t$. So the cell runs with a bias whose gradient goes on to
$x_t$ and $h_{t-1}$ as above. The kernels' own way back is cut where nothing else goes it, and subtracted where it does.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfbio.keras_internals import attributes
from tfbio.layers.feedback import Feedback, redirect
from tfbio.layers.traits import kernels, register_traits
from tfbio.serialization import register

__all__ = ["RecurrentFeedback", "without_fused_kernels"]

_CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
register_traits(*_CELLS, kernels=("kernel", "recurrent_kernel"), kind="recurrent")


@register
class RecurrentFeedback(Feedback):
    """A recurrent cell whose errors go back, to its input and through time, by feedback weights.

    Args:
        layer: an `LSTMCell`, `SimpleRNNCell` or `GRUCell` (with `reset_after`), without dropout of its own.
        feedback, index: as in `Feedback`.
    """

    def call(self, inputs: tf.Tensor, states: Any, **options: Any) -> Any:
        """The cell's output and new states, for its input and states at one step."""
        cell = self.layer
        h, *others = tf.nest.flatten(states)
        forward = [tf.convert_to_tensor(kernel.value) for kernel in kernels(cell)]
        variables = [None if b is None else tf.convert_to_tensor(b.value) for b in self._feedback_variables]
        backward_x, backward_h = (tf.cast(b, inputs.dtype) for b in self._backward(forward, variables))
        gated = isinstance(cell, keras.layers.GRUCell)  # its state goes on past its kernel too
        if gated:
            backward_h -= tf.cast(forward[1], inputs.dtype)
        zero = tf.zeros([tf.shape(inputs)[0], forward[0].shape[1]], inputs.dtype)

        def vjp_x(dz: tf.Tensor) -> list[tf.Tensor]:
            return [tf.matmul(dz, backward_x, transpose_b=True)]

        def vjp_h(dr: tf.Tensor) -> list[tf.Tensor]:
            return [tf.matmul(dr, backward_h, transpose_b=True)]

        extra = [redirect(zero, [inputs], vjp_x), redirect(zero, [h], vjp_h)]
        # A gated cell has a bias for either product, the others one for their sum.
        extra = tf.stack(extra) if gated else tf.add_n(extra)
        if cell.use_bias:
            bias = tf.cast(tf.convert_to_tensor(cell.bias.value), inputs.dtype)
            extra += bias[:, tf.newaxis] if gated else bias
        arguments = tf.nest.pack_sequence_as(states, [h if gated else tf.stop_gradient(h), *others])
        with attributes(cell, bias=extra, use_bias=True, implementation=2):
            return cell(tf.stop_gradient(inputs), arguments, **options)


def objection(cell: keras.layers.Layer) -> str | None:
    """Why a cell can't have feedback; None if it can."""
    if type(cell) not in _CELLS:
        return "has kernels that act within a cell, through time, between nonlinearities"
    if cell.dropout or cell.recurrent_dropout:
        return "drops units within its cell; put a Dropout layer before it"
    if not getattr(cell, "reset_after", True):
        return "resets its state before the kernel; make it with reset_after=True"
    return None


@contextlib.contextmanager
def without_fused_kernels(layer: keras.layers.Layer) -> Iterator[None]:
    """While it lasts, a recurrent layer calls its cell step by step, on GPUs too."""
    with attributes(layer, use_cudnn=False) if hasattr(layer, "use_cudnn") else contextlib.nullcontext():
        yield
