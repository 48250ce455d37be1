"""The same rules behind `keras.Model.compile` and `fit`, for notebooks.

`Trainer` is the loop for real runs. `Learner` gives the same numbers through Keras's own loop: its `train_step` is the
rule's `compute` and the optimizer's `apply`.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio import losses, rules
from tfbio.training.optimizing import follow, remaining_gaps, together

__all__ = ["Learner"]

_ACCURACY = ("accuracy", "acc")


@keras.saving.register_keras_serializable(package="tfbio")
class Learner(keras.Model):
    """A model that Keras trains with a learning rule.

    Args:
        model: a built Keras model that ends in logits. It is what is trained: save and export it, not the learner.
        rule: a `tfbio.rules` rule, name or config.
        preprocessing: a layer or function applied to the inputs, before the model.
    """

    def __init__(self, model: keras.Model, rule: Any = "bp", preprocessing: Any = None, **kwargs):
        super().__init__(**kwargs)
        self.model = model
        self.rule = rules.get(rule)
        self.preprocessing = preprocessing
        self.built = True

    def compile(
        self, optimizer: Any = "adam", loss: Any = "softmax_cross_entropy", metrics: Any = (), **kwargs
    ) -> None:
        """Builds the rule for the loss, and the optimizer for the model's variables.

        Args:
            optimizer: as for Keras.
            loss: a `tfbio.losses` loss, name or config.
            metrics: Keras metrics, of `(y, loss.predict(outputs))`. `loss` is always there, and `error`, the share of
                mistakes, if the loss classifies; `"accuracy"` is what is left of 1, whatever the labels look like.
            **kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: the rule needs the `Trainer`; `"accuracy"` of a loss that does not classify.
        """
        if self.rule.model is not None:
            self.rule = type(self.rule).from_config(self.rule.get_config())
        self.rule.build(self.model, losses.get(loss))
        if len(self.rule.phases) > 1 or self.rule.feedback_loops:
            raise ValueError(
                "Invalid value for `rule`: expected one whose variables all learn once at every step, received a "
                f"{type(self.rule).__name__} whose variables take turns, or several steps at once, which Keras's loop "
                "can't let them. Use tfbio.Trainer, or settings without (schedule='parallel', interval=1, "
                "feedback_iterations=1)."
            )
        super().compile(optimizer=optimizer, loss=None, metrics=None, **kwargs)
        # Keras tells the kinds of accuracy apart by a loss of its own; alone, the name is that of plain equality.
        others = [metric for metric in metrics if metric not in _ACCURACY]
        names = ["loss", *["error"] * self.rule.loss.classifies, *["accuracy"] * (len(others) < len(metrics))]
        if "accuracy" in names and not self.rule.loss.classifies:
            raise ValueError(
                f"Invalid value for `metrics`: 'accuracy' is of losses that classify, received it with "
                f"{type(self.rule.loss).__name__}. Leave it out, or pass a Keras metric."
            )
        self._trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self._extra = [keras.metrics.get(metric) for metric in others]
        self.optimizer.build([*self.rule.forward_variables, *self.rule.feedback_variables])

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*self._trackers.values(), *self._extra]

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = x if self.preprocessing is None else self.preprocessing(x)
        return self.model(x, training=training)

    def fit(self, x: Any = None, y: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """Keras's `fit`.

        Raises:
            ValueError: labels `y` that do not fit the model. Those in a data set are looked at by the `Trainer` alone.
        """
        if y is not None and getattr(self.model, "output_shape", None) is not None:
            with tf.device("CPU:0"):
                self.rule.loss.check_labels(y if hasattr(y, "shape") else np.asarray(y), self.model.output_shape)
        return super().fit(x, y, *args, **kwargs)

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        x, y, importance, weights = self._unpack(data)
        x = x if self.preprocessing is None else self.preprocessing(x)
        update = self.rule.compute(x, y, self.optimizer.scale_loss(weights))
        gradients = [*update.forward, *update.feedback]
        variables = [*self.rule.forward_variables, *self.rule.feedback_variables]
        gradients, gaps = together((gradients, remaining_gaps(self.optimizer, self.rule.followers)))
        self.optimizer.apply(gradients, variables)
        follow(self.rule.followers, gaps)
        self.rule.step.assign_add(1)
        return self._report(y, update.outputs, importance)

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        x, y, importance, _ = self._unpack(data)
        return self._report(y, self(x, training=False), importance)

    def _unpack(self, data: tuple) -> tuple:
        """`(x, y, importance, weights)`, as the feeds of the `Trainer` give them."""
        x, y, importance = keras.utils.unpack_x_y_sample_weight(data)
        if importance is None:
            importance = tf.ones([tf.shape(tf.nest.flatten(x)[0])[0]])
        importance = tf.cast(importance, tf.float32)
        total = tf.reduce_sum(importance)
        if replica := tf.distribute.get_replica_context():
            total = replica.all_reduce("sum", total)
        return x, y, importance, tf.math.divide_no_nan(importance, total)

    def _report(self, y: tf.Tensor, outputs: tf.Tensor, importance: tf.Tensor) -> dict[str, tf.Tensor]:
        figures = {"loss": self.rule.loss.per_example(y, outputs)}
        if self.rule.loss.classifies:
            figures["error"] = self.rule.loss.mistakes(y, outputs)
            figures["accuracy"] = 1.0 - figures["error"]
        for name, tracker in self._trackers.items():
            tracker.update_state(figures[name], importance)
        for metric in self._extra:
            metric.update_state(y, self.rule.loss.predict(outputs), importance)
        return {metric.name: metric.result() for metric in self.metrics}
