"""A model whose weighted layers have other weights in the backward pass, wherever they are called."""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfbio import feedback as feedback_weights
from tfbio.feedback import Symmetric
from tfbio.layers import Feedback
from tfbio.layers.recurrent_feedback import RecurrentFeedback, without_fused_kernels
from tfbio.network.instrumented import instrumented, walk
from tfbio.network.treatable import Treatable, is_floating, is_recurrent, plain_patterns
from tfbio.serialization import register

__all__ = ["FeedbackModel", "with_feedback"]


@register
class FeedbackModel(keras.Model):
    """A model that runs as `model` does and shares all its variables; its errors go back through feedback weights.

    Arguments are those of `with_feedback`.

    Attributes:
        model: the user's model.
        feedback_layers: a `Feedback` wrapper for each weighted layer, in the order of the layers' first calls.
        uses_feedback: False if no error that goes through weights other than the kernels reaches weights that learn:
            then gradients are backpropagation's.
    """

    def __init__(
        self,
        model: keras.Model,
        feedback: Any,
        last_layer: Any = "symmetric",
        allow_backpropagation: Iterable[Any] = (),
        output_layers: Iterable[Any] | None = None,
        **kwargs,
    ):
        kwargs.setdefault("dtype", model.dtype_policy)
        kwargs.setdefault("name", f"{model.name}_feedback")
        super().__init__(**kwargs)
        self.model = model
        self.feedback = feedback_weights.get(feedback)
        self.last_layer = last_layer if last_layer == "same" else feedback_weights.get(last_layer)
        self.allow_backpropagation = tuple(allow_backpropagation)
        self.output_layers = None if output_layers is None else tuple(output_layers)
        self.feedback_layers = self._wrap()
        self._treatments = {each.layer: _through(each) for each in self.feedback_layers}
        self._loops = {layer: _step_by_step(layer) for _, (*_, layer) in walk(model) if hasattr(layer, "use_cudnn")}
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        called: set[int] = set()

        def counted(key: int, treatment: Callable) -> Callable:
            def count(*args, **kwargs):
                called.add(key)
                return treatment(*args, **kwargs)

            return count

        treatments = {layer: counted(id(layer), each) for layer, each in self._treatments.items()}
        with instrumented(self._loops | treatments):
            outputs = self.model(inputs, training=training)
        missed = [layer.name for layer in self._treatments if id(layer) not in called]
        if training and missed:
            raise ValueError(
                f"Invalid value for `model`: the calls of layers {missed} can't be seen, probably because the model "
                f"{self.model.name!r} makes them in a tf.function of its own. Remove the tf.function: whoever trains "
                "makes a graph of the whole step."
            )
        return outputs

    def _wrap(self) -> list[Feedback]:
        found = Treatable(self.model, self.allow_backpropagation)
        last = found.last(self.output_layers) if self.last_layer != "same" else []
        last_ids = {id(layer) for layer in last}
        wrappers, self.uses_feedback = [], False
        for number, layer in enumerate(found.treated):
            kind = RecurrentFeedback if is_recurrent(layer) else Feedback
            wrapper = kind(layer, self.last_layer if id(layer) in last_ids else self.feedback, index=number)
            wrapper.build(found.input_shape(layer))
            wrappers.append(wrapper)
            self.uses_feedback |= not isinstance(wrapper.feedback, Symmetric) and found.passes_errors(layer)
        return wrappers

    def get_config(self) -> dict[str, Any]:
        plain = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "model": plain(self.model),
            "feedback": plain(self.feedback),
            "last_layer": self.last_layer if self.last_layer == "same" else plain(self.last_layer),
            "allow_backpropagation": plain_patterns(self.allow_backpropagation),
            "output_layers": plain_patterns(self.output_layers),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FeedbackModel":
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def _through(feedback: Feedback) -> Callable:
    """What the call of a feedback's layer becomes."""

    def treatment(call: Callable, inputs: Any, *args, **kwargs):
        if not is_floating(inputs):
            return call(inputs, *args, **kwargs)  # rows of a table, by number: no error goes back to numbers
        return feedback.call(inputs, *args, **kwargs)

    return treatment


def _step_by_step(layer: keras.layers.Layer) -> Callable:
    """What the call of a recurrent layer becomes: one in which its cell is called."""

    def treatment(call: Callable, *args, **kwargs):
        with without_fused_kernels(layer):
            return call(*args, **kwargs)

    return treatment


def with_feedback(
    model: keras.Model,
    feedback: Any,
    last_layer: Any = "symmetric",
    allow_backpropagation: Iterable[Any] = (),
    output_layers: Iterable[Any] | None = None,
) -> FeedbackModel:
    """The same model with every weighted layer's backward pass on feedback weights.

    Args:
        model: any built Keras model: functional, Sequential or subclassed, with one output or several. It is not
            changed. A subclassed one must have been called once.
        feedback: a `tfbio.feedback` object, name or config, for the weighted layers.
        last_layer: the same for the layers that make the outputs. `"symmetric"` sends the exact error to the layers
            below, as the code of Xiao et al. 2018 does; `"same"` uses `feedback` there too, as Lillicrap et al. 2016.
        allow_backpropagation: layers that keep their own derivative though their weights mix their inputs: names,
            paths and patterns of them (`"encoder/*"`), and classes; all that is within such a layer is meant too.
        output_layers: the layers that make the outputs, likewise; None finds them.

    Returns:
        A model that runs `model` itself and shares its variables; feedback variables are added, non-trainable but where
        they learn.

    Raises:
        ValueError: layers have weights that mix their inputs and can't be treated, all of which are named; a name that
            means no layer.
    """
    return FeedbackModel(model, feedback, last_layer, allow_backpropagation, output_layers)
