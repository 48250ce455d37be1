"""The same rules behind `keras.Model.compile` and `fit`, for notebooks.

`Trainer` is the loop for real runs. `Learner` gives the same numbers through Keras's own loop: its `train_step` makes
the same batches and has the same `Updater` apply what the rule computes.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio import rules
from tfbio.keras_internals import Directions
from tfbio.losses import output_structure, with_weights
from tfbio.rules.base import output_shape
from tfbio.training.averages import Averages
from tfbio.training.batches import Examples, at_least_one, make_batch, make_examples, make_totals, shape_of_outputs
from tfbio.training.metrics import ACCURACY, checked_metrics
from tfbio.training.optimizing import scale_loss_of
from tfbio.training.preprocessing import Preprocessing
from tfbio.training.updater import Updater

__all__ = ["Learner"]


@keras.saving.register_keras_serializable(package="tfbio")
class Learner(keras.Model):
    """A model that Keras trains with a learning rule.

    It can be saved and loaded as a whole, with the rule's feedback and the optimizer's state, where tfbio is installed;
    `model` alone is plain Keras.

    Args:
        model: a built Keras model that ends in logits. It is what is trained: save and export it, not the learner.
        rule: a `tfbio.rules` rule, name or config.
        preprocessing: a layer or function applied to the inputs, before the model.
    """

    def __init__(self, model: keras.Model, rule: Any = "bp", preprocessing: Any = None, **kwargs):
        super().__init__(**kwargs)
        self.model = model
        self.rule = rules.get(rule)
        self._preprocess = Preprocessing(preprocessing)
        self.built = True

    @property
    def preprocessing(self) -> Any:
        """What is applied to the inputs before the model."""
        return self._preprocess.function

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "softmax_cross_entropy",
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs,
    ) -> None:
        """Builds the rule for the loss, and the optimizer for the model's variables.

        Args:
            optimizer: as for Keras.
            loss: whatever `tfbio.losses.get` takes: a loss of tfbio's or Keras's, or one for each output.
            loss_weights: of several outputs: a factor for each one's loss, in a list or by name.
            metrics: Keras metrics, of `(y, loss.predict(outputs))`, without sample weights, as Keras has it. Always
                there are `loss`, and `error`, the share of mistakes, if the loss classifies, both weighted;
                `"accuracy"` is what `error` leaves of 1, whatever the labels look like.
            weighted_metrics: the same, weighted by the sample weights.
            **kwargs: the others of `keras.Model.compile`: `run_eagerly`, `steps_per_execution`, `jit_compile`,
                `auto_scale_loss`.

        Raises:
            ValueError: the rule needs the `Trainer`; `"accuracy"` of a loss that does not classify; `loss_weights` of
                one output.
        """
        if self.rule.model is not None:
            self.rule = type(self.rule).from_config(self.rule.get_config())
        self.rule.build(self.model, with_weights(loss, loss_weights, self.model))
        if len(self.rule.phases) > 1 or self.rule.feedback_loops:
            raise ValueError(
                "Invalid value for `rule`: expected one whose variables all learn once at every step, received a "
                f"{type(self.rule).__name__} whose variables take turns, or several steps at once, which Keras's loop "
                "can't let them. Use tfbio.Trainer, or settings without (schedule='parallel', interval=1, "
                "feedback_iterations=1)."
            )
        metrics, weighted_metrics = checked_metrics(metrics), checked_metrics(weighted_metrics)
        groups = [_without_accuracy(group) for group in (metrics, weighted_metrics)]
        accuracy = any(found for _, found in groups)
        if accuracy and not self.rule.loss.classifies:
            raise ValueError(
                f"Invalid value for `metrics`: 'accuracy' is of losses that classify, received it with "
                f"{type(self.rule.loss).__name__}. Leave it out, or pass a Keras metric."
            )
        own, weighted = (group for group, _ in groups)
        if kwargs.get("auto_scale_loss", True):
            optimizer = scale_loss_of(self.model, keras.optimizers.get(optimizer))
        super().compile(optimizer=optimizer, loss=None, metrics=own, weighted_metrics=weighted, **kwargs)
        self._compile_arguments = {
            "optimizer": self.optimizer,
            "loss": self.rule.loss,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            **kwargs,
        }
        self._averages = Averages(self.rule.loss, self.rule.logs, "accuracy" if accuracy else None)
        self.optimizer.build([*self.rule.forward_variables, *self.rule.feedback_variables])
        self.rule.check_optimizer(self.optimizer)
        self._updater = Updater(self.rule, self.optimizer)

    def get_compile_config(self) -> dict[str, Any]:
        """The arguments of `compile`."""
        if not self.compiled:
            return {}
        return keras.saving.serialize_keras_object(self._compile_arguments)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """The inverse of `get_compile_config`: compiles."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The averages, and the metrics of `compile`; callbacks learn from them which figures are to grow."""
        if not self.compiled:
            return []
        return [
            self._averages,
            Directions(self._averages.directions),
            *([] if self._compile_metrics is None else [self._compile_metrics]),
        ]

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.model(self._preprocess(x, training=training), training=training)

    def fit(self, x: Any = None, y: Any = None, *args, **kwargs) -> keras.callbacks.History:
        """Keras's `fit`.

        Raises:
            ValueError: no `compile` before; labels `y` that do not fit the model. Those in a data set are looked at by
                the `Trainer` alone.
        """
        if not self.compiled:
            raise ValueError("Learner.fit needs a loss and an optimizer: call `compile` before `fit`.")
        if y is not None and output_structure(self.model) is not None:
            with tf.device("CPU:0"):
                arrays = any(hasattr(part, "shape") for part in keras.tree.flatten(y))
                self.rule.loss.check_labels(y if arrays else np.asarray(y), output_shape(self.model, None))
        return super().fit(x, y, *args, **kwargs)

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        examples = make_examples(keras.utils.unpack_x_y_sample_weight(data))
        if self.distribute_strategy.num_replicas_in_sync > 1:
            examples = at_least_one(examples)
        loss, shape = self.rule.loss, shape_of_outputs(self.model, self._preprocess, examples.x)
        totals = make_totals(examples, loss, shape)
        examples = examples._replace(x=self._preprocess(examples.x, training=True))
        update = self.rule.update(make_batch(examples, totals, loss, self._updater.loss_scale))
        self._updater.apply({"forward": update.forward, "feedback": update.feedback})
        self.rule.step.assign_add(1)
        return self._report(examples, update.outputs, update.logs)

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        examples = make_examples(keras.utils.unpack_x_y_sample_weight(data))
        return self._report(examples, self(examples.x, training=False))

    def _report(self, examples: Examples, outputs: Any, logs: dict[str, tf.Tensor] | None = None) -> dict:
        y, weight = examples.y, examples.sample_weight
        self._averages.update_state(y, outputs, weight, logs)
        predictions = self.rule.loss.predict(outputs)
        return {**self._averages.result(), **self.compute_metrics(examples.x, y, predictions, weight)}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain data."""
        config = super().get_config()
        parts = {"model": self.model, "rule": self.rule, "preprocessing": self.preprocessing}
        return {**config, **{name: keras.saving.serialize_keras_object(part) for name, part in parts.items()}}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Learner":
        """The inverse of `get_config`: a learner that is not compiled."""
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects)
            for name in ("model", "rule", "preprocessing")
        }
        return cls(**{**config, **parts})

    def save_own_variables(self, store: Any) -> None:
        """Saves what no layer holds: the rule's variables, and the number of steps."""
        if self.rule.model is not None:
            for number, variable in enumerate([*self.rule.variables, self.rule.step]):
                store[str(number)] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """The inverse of `save_own_variables`."""
        if self.rule.model is not None:
            for number, variable in enumerate([*self.rule.variables, self.rule.step]):
                variable.assign(store[str(number)])


def _without_accuracy(metrics: Any) -> tuple[Any, bool]:
    """Metrics without accuracy by name, and whether that was there.

    Keras tells the kinds of accuracy apart by a loss of its own; alone, the name is that of plain equality.
    """
    if not isinstance(metrics, (list, tuple)):
        return metrics, False
    others = [metric for metric in metrics if not (isinstance(metric, str) and metric in ACCURACY)]
    return others or None, len(others) < len(metrics)
