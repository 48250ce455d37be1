r"""Backpropagation: the reference that every other rule is measured against.

Forward, for each layer: $a_l = h_{l-1} W_l + b_l$, $h_l = s_l(a_l)$.
Backward: $\delta_L = \text{predict} - \text{target}$ and

$$ \delta_{l} = \left(\delta_{l+1} W_{l+1}^\top\right) \odot s_l'(a_l), \qquad
   \frac{\partial \ell}{\partial W_l} = h_{l-1}^\top \delta_l . $$

Rumelhart, Hinton & Williams 1986, "Learning representations by back-propagating errors" (Nature 323:533).
"""

import keras
import tensorflow as tf

from tfbio.rules.base import LearningRule, Update, example_weights
from tfbio.serialization import register

__all__ = ["Backpropagation", "regularization", "weighted_loss"]


def weighted_loss(loss, y: tf.Tensor, outputs: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """$\\sum_b w_b \\ell_b$: a scalar of the loss's dtype."""
    per_example = loss.per_example(y, outputs)
    return tf.reduce_sum(tf.cast(weights, per_example.dtype) * per_example)


def regularization(network: keras.Model, weights: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The network's own penalties, times the share of the global batch that is here, so that replicas sum to one."""
    if not network.losses:
        return tf.zeros((), dtype)
    # Under mixed precision, penalties on outputs and on weights differ in dtype.
    return tf.add_n([tf.cast(loss, dtype) for loss in network.losses]) * tf.cast(tf.reduce_sum(weights), dtype)


@register
class Backpropagation(LearningRule):
    """The exact gradient of the loss."""

    def setup(self) -> None:
        self.network = self.make_network()

    def make_network(self) -> keras.Model:
        """The network to differentiate; it shares all variables with `self.model`."""
        return self.model

    def compute(self, x: tf.Tensor, y: tf.Tensor, weights: tf.Tensor | None = None) -> Update:
        weights = example_weights(x, weights)
        variables = self.forward_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            outputs = self.network(x, training=True)
            loss = weighted_loss(self.loss, y, outputs, weights)
            loss += regularization(self.network, weights, loss.dtype)
        gradients = tape.gradient(loss, [variable.value for variable in variables], unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return Update(outputs, loss, list(zip(gradients, variables, strict=True)))
