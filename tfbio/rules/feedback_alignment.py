r"""Feedback alignment: backpropagation with other weights on the way back.

Forward as in backpropagation. Backward, with $B_{l+1}$ of $W_{l+1}$'s shape in place of $W_{l+1}$:

$$ \delta_{l} = \left(\delta_{l+1} B_{l+1}^\top\right) \odot s_l'(a_l), \qquad
   \Delta W_l \propto h_{l-1}^\top \delta_l . $$

`FeedbackRule` is the family; a member only says where $B$ comes from. `FeedbackAlignment` draws it once at random:
Lillicrap, Cownden, Tweed & Akerman 2016, "Random synaptic feedback weights support error backpropagation for deep
learning" (Nature Communications 7:13276). Activations, pooling and normalisation keep their exact derivatives.
"""

from collections.abc import Iterable
from typing import Any

import keras

from tfbio import feedback as feedback_weights
from tfbio.layers import Feedback
from tfbio.network import with_feedback
from tfbio.rules.backpropagation import Backpropagation
from tfbio.serialization import register

__all__ = ["FeedbackAlignment", "FeedbackRule"]


@register
class FeedbackRule(Backpropagation):
    """Backpropagation on the network that `tfbio.with_feedback` makes.

    Args:
        feedback: where the backward weights come from: a `tfbio.feedback` object, name or config.
        last_layer: the same for the output layer: `"symmetric"` (exact), `"same"` (as the others), or any feedback.
        allow_backpropagation: names of layers that can't be treated and shall keep their exact derivative.
    """

    def __init__(self, feedback: Any, last_layer: Any = "symmetric", allow_backpropagation: Iterable[str] = ()):
        super().__init__()
        self.feedback = feedback_weights.get(feedback)
        self.last_layer = last_layer if isinstance(last_layer, str) else feedback_weights.get(last_layer)
        self.allow_backpropagation = tuple(allow_backpropagation)

    def make_network(self) -> keras.Model:
        return with_feedback(self.model, self.feedback, self.last_layer, self.allow_backpropagation)

    @property
    def feedback_layers(self) -> list[Feedback]:
        """The wrapped layers, in the network's order."""
        return [layer for layer in self.network._flatten_layers() if isinstance(layer, Feedback)]

    @property
    def variables(self) -> list[keras.Variable]:
        own = {id(variable) for variable in self.model.variables}
        return [variable for variable in self.network.variables if id(variable) not in own]

    def get_config(self) -> dict[str, Any]:
        return {"feedback": _plain(self.feedback), **self._options()}

    def _options(self) -> dict[str, Any]:
        """The arguments that all members of the family share."""
        return {"last_layer": _plain(self.last_layer), "allow_backpropagation": self.allow_backpropagation}


def _plain(identifier: Any) -> Any:
    """A feedback argument as plain data: names stay names."""
    if isinstance(identifier, feedback_weights.FeedbackWeights):
        return keras.saving.serialize_keras_object(identifier)
    return identifier


@register
class FeedbackAlignment(FeedbackRule):
    """Fixed random backward weights.

    Args:
        initializer: their distribution, anything that `keras.initializers.get` takes; the default has the scale of
            Glorot-initialised forward weights. The literature's others are listed in `tfbio.feedback.random`.
        scale: a factor on every draw.
        seed: of the draw; None takes Keras's global seed.
        last_layer, allow_backpropagation: as in `FeedbackRule`.
    """

    def __init__(
        self,
        initializer: Any = "glorot_uniform",
        scale: float = 1.0,
        seed: int | None = None,
        last_layer: Any = "symmetric",
        allow_backpropagation: Iterable[str] = (),
    ):
        super().__init__(feedback_weights.Random(initializer, scale, seed), last_layer, allow_backpropagation)

    def get_config(self) -> dict[str, Any]:
        return {**self.feedback.get_config(), **self._options()}
