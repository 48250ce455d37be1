r"""The `Feedback` wrapper: any weighted layer, with other weights in its backward pass.

Forward it *is* the wrapped layer, $y = s(f(x; W))$. Backward, with $\delta$ the error at $f$'s output (after the exact
derivative of the activation $s$):

$$ \frac{\partial \ell}{\partial W} = \frac{\partial f(x; W)}{\partial W}^{\!\top} \delta \quad\text{(exact)}, \qquad
   \frac{\partial \ell}{\partial x} := \frac{\partial f(x; B)}{\partial x}^{\!\top} \delta . $$

A weighted layer is affine in $x$ given its kernel, so the second line needs no formula of its own for any layer: it is
the layer's vector-Jacobian product, evaluated with $B$ in the kernel's place. The forward values of that evaluation are
not used, and graphs drop them; what remains costs what backpropagation costs.

A layer with several kernels, applied one after the other (separable convolutions), is treated as the chain it is: what
goes back past a kernel, be it to the input or to an earlier kernel's own gradient, goes through that kernel's feedback.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio import feedback as feedback_weights
from tfbio.keras_internals import changed
from tfbio.layers.traits import fans, kernels
from tfbio.serialization import register

__all__ = ["Feedback"]

_NO_OPTIONS = types.MappingProxyType({})


def redirect(y: tf.Tensor, sources: Sequence[tf.Tensor], vjp: Callable[[tf.Tensor], list[tf.Tensor]]) -> tf.Tensor:
    """The identity on `y` whose gradient with respect to `sources` is `vjp` of the gradient at `y`."""

    @tf.custom_gradient
    def identity(y, *sources):
        return tf.identity(y), lambda dy: (dy, *vjp(dy))

    return identity(y, *sources)


@register
class Feedback(keras.layers.Wrapper):
    """A weighted layer whose input gradient is taken at feedback weights instead of its kernel.

    Args:
        layer: a layer with kernels (`tfbio.layers.traits`): dense, einsum, convolutions of every kind, or your own.
        feedback: a `tfbio.feedback` object, name or config.
        index: the layer's number in its network, so that one feedback seed gives every layer its own draw.

    Input and output shapes and dtypes are the wrapped layer's.

    Attributes:
        input_shape: the shape that it was built for, the batch first.
        step: the count of updates that feedback drawn for each of them is a function of; a rule sets it to its own.
    """

    def __init__(self, layer: keras.layers.Layer, feedback: Any = "symmetric", index: int = 0, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("name", f"{layer.name}_feedback")
        # The wrapped layer's `call` is run, not the layer: the penalty on its outputs is added here.
        kwargs.setdefault("activity_regularizer", layer.activity_regularizer)
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        self.feedback = feedback_weights.get(feedback)
        self.index = index
        self.step: tf.Variable | None = None

    def build(self, input_shape: tuple | None = None) -> None:
        super().build(input_shape)
        self.input_shape = input_shape
        self._feedback_variables = []
        for number, kernel in enumerate(kernels(self.layer)):
            # A layer has one or two kernels: two numbers a layer keep all draws of a network apart.
            initializer = self.feedback.initializer(2 * self.index + number, fans(self.layer, kernel), kernel)
            variable = None
            if initializer is not None:
                variable = self.add_weight(
                    name=f"feedback_{number}",
                    shape=kernel.shape,
                    dtype=kernel.dtype,
                    initializer=initializer,
                    trainable=self.feedback.learned,
                    aggregation="only_first_replica",  # whatever replicas assign is the same on all of them
                )
            self._feedback_variables.append(variable)

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """`(kernel, feedback)` for each kernel: what the forward and what the backward pass uses, in the same shape."""
        weights = kernels(self.layer)
        return list(zip(weights, self._backward(weights, self._feedback_variables), strict=True))

    def _backward(self, forward: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        """The backward weights of this step."""
        step = tf.constant(0, tf.int64) if self.step is None else tf.convert_to_tensor(self.step)
        keys = [tf.stack([tf.constant(2 * self.index + number, tf.int64), step]) for number in range(len(forward))]
        counts = [fans(self.layer, kernel) for kernel in kernels(self.layer)]
        return [self.feedback(*each) for each in zip(forward, variables, keys, counts, strict=True)]

    def call(self, inputs: tf.Tensor, *others: Any, **options: Any) -> tf.Tensor:
        """The layer's output.

        Args:
            inputs: as the layer takes them.
            *others, **options: further arguments of the layer's call, such as `training`; no error goes back to them.
        """
        forward = [tf.convert_to_tensor(kernel.value) for kernel in kernels(self.layer)]
        variables = [None if b is None else tf.convert_to_tensor(b.value) for b in self._feedback_variables]
        backward = self._backward(forward, variables)
        *earlier, last = forward
        # Each source's own path is cut here and comes back, through feedback, in `redirect`.
        still = tf.stop_gradient(inputs)  # and without a mask, which whoever called the layer has seen to
        state = self._state()
        outputs = self._forward(still, [*map(tf.stop_gradient, earlier), last], others, options)

        def vjp(dy: tf.Tensor) -> list[tf.Tensor]:
            gradients = []
            for position, source in enumerate([still, *earlier]):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(source)
                    weights = [*forward[:position], *backward[position:]]
                    affine = self._affine(still, weights, others, options, state)
                gradients.append(tape.gradient(affine, source, dy))
            return gradients

        outputs = redirect(outputs, [inputs, *earlier], vjp)
        activation = getattr(self.layer, "activation", None)
        return outputs if activation is None else activation(outputs)

    def _state(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """What the layer's call may change, as it is now: dropout's random state, counters."""
        own = {id(kernel) for kernel in kernels(self.layer)}
        changing = [variable for variable in self.layer.non_trainable_variables if id(variable) not in own]
        return [(variable, tf.identity(variable.value)) for variable in changing]

    def _forward(self, inputs: tf.Tensor, weights: Sequence[tf.Tensor], others: tuple, options: Mapping) -> tf.Tensor:
        """As `_affine`, with all that the layer's call does besides: state that changes, losses that are added."""
        with changed(self.layer, "activation", keras.activations.linear):
            if len(weights) == 1:
                return self.layer.call(inputs, *others, **options)
            substitution = list(zip(kernels(self.layer), weights, strict=True))
            with keras.StatelessScope(state_mapping=substitution, collect_losses=True) as scope:
                outputs = self.layer.call(inputs, *others, **options)
        for loss in scope.losses:
            self.layer.add_loss(loss)
        for variable, _ in self._state():
            if (value := scope.get_current_value(variable)) is not None:
                variable.assign(value)
        return outputs

    def _affine(
        self,
        inputs: tf.Tensor,
        weights: Sequence[tf.Tensor],
        others: tuple = (),
        options: Mapping = _NO_OPTIONS,
        state: Sequence[tuple[keras.Variable, tf.Tensor]] = (),
    ) -> tf.Tensor:
        """The wrapped layer without its activation, with `weights` as its kernels; nothing changes."""
        substitution = [*zip(kernels(self.layer), weights, strict=True), *state]
        with (
            changed(self.layer, "activation", keras.activations.linear),
            keras.StatelessScope(state_mapping=substitution),
        ):
            return self.layer(inputs, *others, **options)

    def mirrored(self, noise: tf.Tensor, others: Sequence[tf.Tensor] = ()) -> list[tf.Tensor]:
        r"""Estimates of the kernels from the layer's response to noise, $\frac1n \sum x \otimes (f(x) - f(0))$.

        A layer of several kernels is driven once for each of them, with noise in the place of the others. What an input
        and an output share on average is then one kernel alone, for signals on other ways cancel.

        Args:
            noise: $x$, `(examples, …)` as the layer takes it: independent numbers of mean 0 and variance 1.
            others: the same in each kernel's shape, if there are several.

        Returns:
            The estimates, of the kernels' shapes and dtypes. Their means are the kernels if each weight alone joins its
            inputs and outputs, as in every layer that Keras has.
        """
        forward = [tf.convert_to_tensor(kernel.value) for kernel in kernels(self.layer)]
        others = [tf.cast(other, kernel.dtype) for other, kernel in zip(others, forward, strict=False)]
        silence, one = tf.zeros_like(noise[:1]), tf.ones_like(noise[:1])

        def outer(position: int, weights: list, inputs: tf.Tensor, response: Callable) -> tf.Tensor:
            """The sum of inputs times response over all places where each weight is used: the kernel's own gradient."""
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights[position])
                outputs = self._affine(inputs, weights)
            return tape.gradient(outputs, weights[position], response(outputs))

        def estimate(position: int, kernel: tf.Tensor) -> tf.Tensor:
            weights = [*others[:position], kernel, *others[position + 1 :]]
            products = outer(position, weights, noise, lambda outputs: outputs - self._affine(silence, weights))
            # How often each weight is used: the mean square of what reaches it, for noise of variance 1 on all ways.
            uses = outer(position, [tf.ones_like(each) for each in weights], one, tf.ones_like)
            return tf.math.divide_no_nan(products, uses * tf.cast(tf.shape(noise)[0], kernel.dtype))

        # Sums over examples and positions are beyond float16's range, and beyond what bfloat16 can count to.
        with changed(self.layer, "dtype_policy", self.layer.variable_dtype):
            return [estimate(position, kernel) for position, kernel in enumerate(forward)]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs: tf.Tensor, previous_mask: tf.Tensor | None = None) -> tf.Tensor | None:
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        feedback = keras.saving.serialize_keras_object(self.feedback)
        return {**config, "feedback": feedback, "index": self.index}
