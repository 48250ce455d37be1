r"""How far a rule's gradient is from backpropagation's.

For gradients $g$ (the rule's) and $b$ (backpropagation's) of the same weights on the same batch, the angle is

$$ \angle(g, b) = \arccos \frac{\langle g, b \rangle}{\lVert g \rVert \lVert b \rVert} , $$

in degrees: 0 for backpropagation itself, near 90 for a random direction, above 90 where the rule makes the loss grow.
Lillicrap et al. 2016 call its fall below 90 in the course of training the alignment that gives the rule its name.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.rules import Backpropagation, LearningRule

__all__ = ["GradientAngle", "angle", "gradient_angles"]


def angle(products: Sequence[float]) -> float:
    """The angle in degrees, from the inner products (g·b, g·g, b·b); NaN if a vector is zero."""
    dot, gg, bb = (float(product) for product in products)
    if gg <= 0.0 or bb <= 0.0:
        return float("nan")
    return float(np.degrees(np.arccos(np.clip(dot / np.sqrt(gg) / np.sqrt(bb), -1.0, 1.0))))


class GradientAngle(keras.callbacks.Callback):
    """Adds `angle/total` and `angle/<layer>` to each epoch's figures, in degrees, on one fixed batch.

    Both gradients are computed in one graph, from the same weights and with the same random state of the model's own
    layers; running statistics are put back, so that measuring changes nothing. Place it before callbacks that write.

    Args:
        rule: a built rule.
        x: inputs of the batch as the model takes them (preprocessed).
        y: its labels.
        strategy: the strategy of the model; None for the current one.
    """

    def __init__(self, rule: LearningRule, x: Any, y: Any, strategy: tf.distribute.Strategy | None = None):
        super().__init__()
        self._strategy = strategy or tf.distribute.get_strategy()
        with self._strategy.scope():
            backpropagation = Backpropagation()
            backpropagation.build(rule.model, rule.loss)
        state = [variable.value for variable in rule.model.non_trainable_variables]
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)

        def undisturbed(some_rule: LearningRule) -> list[tf.Tensor]:
            before = [tf.identity(value) for value in state]
            gradients = [gradient for gradient, _ in some_rule.compute(x, y).forward]
            with tf.control_dependencies(gradients):
                for value, old in zip(state, before, strict=True):
                    value.assign(old)
            return gradients

        def products() -> tf.Tensor:
            rows = []
            for g, b in zip(undisturbed(rule), undisturbed(backpropagation), strict=True):
                g, b = tf.cast(g, tf.float64), tf.cast(b, tf.float64)
                rows.append(tf.stack([tf.reduce_sum(g * b), tf.reduce_sum(g * g), tf.reduce_sum(b * b)]))
            return tf.stack(rows)

        self._products = tf.function(lambda: self._strategy.run(products))
        self._layers = [variable.path.rpartition("/")[0] for variable in rule.forward_variables]

    def measure(self) -> dict[str, float]:
        """The angles now: `total`, over all trainable variables, and one by each layer's path, in degrees."""
        rows = np.asarray(self._strategy.experimental_local_results(self._products())[0])
        layers = list(dict.fromkeys(self._layers))
        member = np.array([[name == layer for name in self._layers] for layer in layers])
        return {
            "total": angle(rows.sum(0)),
            **{layer: angle(rows[m].sum(0)) for layer, m in zip(layers, member, strict=True)},
        }

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs.update({f"angle/{name}": value for name, value in self.measure().items()})


def gradient_angles(rule: LearningRule, x: Any, y: Any) -> dict[str, float]:
    """The angles of `rule`'s gradient to backpropagation's on one batch, in degrees, now: see `GradientAngle`."""
    return GradientAngle(rule, x, y).measure()
