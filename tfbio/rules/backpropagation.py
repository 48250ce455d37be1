r"""Backpropagation: the reference that every other rule is measured against.

Forward, for each layer: $a_l = h_{l-1} W_l + b_l$, $h_l = s_l(a_l)$.
Backward: $\delta_L = \text{predict} - \text{target}$ and

$$ \delta_{l} = \left(\delta_{l+1} W_{l+1}^\top\right) \odot s_l'(a_l), \qquad
   \frac{\partial \ell}{\partial W_l} = h_{l-1}^\top \delta_l . $$

Rumelhart, Hinton & Williams 1986, "Learning representations by back-propagating errors" (Nature 323:533).
"""

import keras
import tensorflow as tf

from tfbio.rules.base import Batch, LearningRule, Update, regularization, weighted_loss
from tfbio.serialization import register

__all__ = ["Backpropagation"]


@register
class Backpropagation(LearningRule):
    """The exact gradient of the loss."""

    def setup(self) -> None:
        self.network = self.make_network()

    def make_network(self) -> keras.Model:
        """The network to differentiate; it shares all variables with `self.model`."""
        return self.model

    def update(self, batch: Batch) -> Update:
        values = [variable.value for variable in self.forward_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = self.network(batch.x, training=True)
            loss = weighted_loss(self.loss, batch, outputs)
            loss += regularization(self.network, batch, loss.dtype)
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        return Update(outputs, loss, [tf.convert_to_tensor(gradient) for gradient in gradients])
