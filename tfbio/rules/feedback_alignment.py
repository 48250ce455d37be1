r"""Feedback alignment: backpropagation with other weights on the way back.

Forward as in backpropagation. Backward, with $B_{l+1}$ of $W_{l+1}$'s shape in place of $W_{l+1}$:

$$ \delta_{l} = \left(\delta_{l+1} B_{l+1}^\top\right) \odot s_l'(a_l), \qquad
   \Delta W_l \propto h_{l-1}^\top \delta_l . $$

`FeedbackRule` is the family; a member only says where $B$ comes from:

* `FeedbackAlignment` draws it once at random: Lillicrap, Cownden, Tweed & Akerman 2016, "Random synaptic feedback
  weights support error backpropagation for deep learning" (Nature Communications 7:13276). With `signed_init` the draw
  has the signs of the first forward weights: Xiao et al. 2018 (arXiv:1811.03567), code.
* `SignSymmetry` lets it share the signs of $W$: Liao, Leibo & Poggio 2016 (arXiv:1510.05067); Xiao et al. 2018
  (arXiv:1811.03567). `tfbio.feedback.sign_symmetric` has the variants.
* `KolenPollack` lets it learn with $W$: Kolen & Pollack 1994; Akrout et al. 2019 (arXiv:1904.05391).

Activations, pooling and normalisation keep their exact derivatives.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfbio import feedback as feedback_weights
from tfbio.network import with_feedback
from tfbio.network.treatable import plain_patterns
from tfbio.rules.backpropagation import Backpropagation
from tfbio.serialization import register

__all__ = ["FeedbackAlignment", "FeedbackRule", "KolenPollack", "SignSymmetry"]


@register
class FeedbackRule(Backpropagation):
    """Backpropagation on the network that `tfbio.with_feedback` makes.

    A subclass makes its own feedback in the constructor, and adds its own arguments to the configuration:
    `{**super().get_config(), "share": self.share}`.

    Args:
        feedback: where the backward weights come from: a `tfbio.feedback` object, name or config.
        last_layer: the same for the output layer: `"symmetric"` (exact), `"same"` (as the others), or any feedback.
        allow_backpropagation: layers that can't be treated and shall keep their exact derivative: names, patterns and
            classes, as `tfbio.with_feedback` takes them.
        output_layers: the layers that make the outputs, likewise; None finds them.

    Attributes:
        network: the wrapped model, once built.
        feedback_layers: its `Feedback` layers, in the network's order.
    """

    def __init__(
        self,
        feedback: Any,
        last_layer: Any = "symmetric",
        allow_backpropagation: Iterable[Any] = (),
        output_layers: Iterable[Any] | None = None,
    ):
        super().__init__()
        self.feedback = feedback_weights.get(feedback)
        self.last_layer = last_layer if isinstance(last_layer, str) else feedback_weights.get(last_layer)
        self.allow_backpropagation = tuple(allow_backpropagation)
        self.output_layers = None if output_layers is None else tuple(output_layers)

    def make_network(self) -> keras.Model:
        network = with_feedback(
            self.model, self.feedback, self.last_layer, self.allow_backpropagation, self.output_layers
        )
        self.feedback_layers = network.feedback_layers
        for layer in self.feedback_layers:
            layer.step = self.step
        if not network.uses_feedback and not isinstance(self.feedback, feedback_weights.Symmetric):
            self.warn(
                "it is backpropagation, because no error goes back through feedback to weights that learn: the last "
                "layer's is symmetric. Pass last_layer='same', or a deeper model."
            )
        return network

    def pathways(self, x: tf.Tensor) -> list[tuple[str, tf.Tensor, tf.Tensor]]:
        """Each kernel with its feedback; layers whose feedback is the kernel itself are left out."""
        named = [(w.path, w, b) for layer in self.feedback_layers for w, b in layer.pairs if b is not w]
        return [(name, tf.convert_to_tensor(w), tf.convert_to_tensor(b)) for name, w, b in named]

    @property
    def variables(self) -> list[keras.Variable]:
        own = {id(variable) for variable in self.model.variables}
        return [variable for variable in self.network.variables if id(variable) not in own]

    def get_config(self) -> dict[str, Any]:
        """The arguments that the family shares; `feedback` is left out where the constructor has no such argument."""
        takes_feedback = "feedback" in inspect.signature(type(self)).parameters
        return {
            **({"feedback": _plain(self.feedback)} if takes_feedback else {}),
            "last_layer": _plain(self.last_layer),
            "allow_backpropagation": plain_patterns(self.allow_backpropagation),
            "output_layers": plain_patterns(self.output_layers),
        }


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
        last_layer, allow_backpropagation, output_layers: as in `FeedbackRule`.
        signed_init: let each weight start with the sign of its kernel's, as it is when the rule is built, and keep it.
    """

    def __init__(
        self,
        initializer: Any = "glorot_uniform",
        scale: float = 1.0,
        seed: int | None = None,
        last_layer: Any = "symmetric",
        allow_backpropagation: Iterable[Any] = (),
        signed_init: bool = False,
        output_layers: Iterable[Any] | None = None,
    ):
        kind = feedback_weights.SignedRandom if signed_init else feedback_weights.Random
        super().__init__(kind(initializer, scale, seed), last_layer, allow_backpropagation, output_layers)
        self.signed_init = signed_init

    def get_config(self) -> dict[str, Any]:
        return {**self.feedback.get_config(), **super().get_config(), "signed_init": self.signed_init}


@register
class SignSymmetry(FeedbackRule):
    """Backward weights with the forward weights' signs: uSF, brSF and frSF.

    Args:
        magnitude: `"uniform"` (uSF), `"batch"` (brSF: drawn for each update) or `"fixed"` (frSF: drawn once).
        scale, distribution, concordance, seed: as in `tfbio.feedback.SignSymmetric`.
        last_layer, allow_backpropagation, output_layers: as in `FeedbackRule`.
    """

    def __init__(
        self,
        magnitude: str = "uniform",
        scale: str | float = "glorot",
        distribution: str = "uniform",
        concordance: float = 1.0,
        seed: int | None = None,
        last_layer: Any = "symmetric",
        allow_backpropagation: Iterable[Any] = (),
        output_layers: Iterable[Any] | None = None,
    ):
        feedback = feedback_weights.SignSymmetric(magnitude, scale, distribution, concordance, seed)
        super().__init__(feedback, last_layer, allow_backpropagation, output_layers)

    def get_config(self) -> dict[str, Any]:
        return {**self.feedback.get_config(), **super().get_config()}


@register
class KolenPollack(FeedbackRule):
    r"""Backward weights that learn with the forward ones, and come to equal them.

    Both get the same update, and both decay:

    $$ W \leftarrow (1 - \lambda) W + \Delta, \qquad B \leftarrow (1 - \lambda) B + \Delta, $$

    so that $W - B$ shrinks by $1 - \lambda$ a step, whatever $\Delta$ is. $\Delta$ is what the optimizer makes of the
    kernel's own gradient, the outer product of the layer's input and error, which both pathways see: $B$ follows the
    kernel's own step, and needs no moments, no clipping and no optimizer itself. $\lambda$ is the optimizer's: the
    learning rate times its `weight_decay`, as in `keras.optimizers.SGD(0.1, weight_decay=1e-3)`. Without decay the gap
    stays as it is, and so does the feedback of a frozen kernel.

    Args:
        initializer, scale, seed: of the first backward weights, as in `FeedbackAlignment`.
        last_layer, allow_backpropagation, output_layers: as in `FeedbackRule`.
    """

    def __init__(
        self,
        initializer: Any = "glorot_uniform",
        scale: float = 1.0,
        seed: int | None = None,
        last_layer: Any = "same",
        allow_backpropagation: Iterable[Any] = (),
        output_layers: Iterable[Any] | None = None,
    ):
        super().__init__(
            feedback_weights.Random(initializer, scale, seed), last_layer, allow_backpropagation, output_layers
        )

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        if not getattr(optimizer, "inner_optimizer", optimizer).weight_decay:
            self.warn(
                "without weight decay, feedback does not come closer to the weights, but keeps its first distance. "
                "Pass an optimizer with `weight_decay`, such as keras.optimizers.SGD(0.1, weight_decay=1e-3)."
            )

    @property
    def followers(self) -> list[tuple[keras.Variable, keras.Variable]]:
        learning = [layer for layer in self.feedback_layers if layer.feedback is self.feedback]
        return [(b, w) for layer in learning for w, b in layer.pairs if w.trainable]

    def get_config(self) -> dict[str, Any]:
        return {**self.feedback.get_config(), **super().get_config()}
