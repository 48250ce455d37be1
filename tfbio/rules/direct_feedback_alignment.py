r"""Direct feedback alignment: the output error goes straight to every stage; there is no backward chain.

With the network cut into stages $h_l = f_l(h_{l-1})$, $e = \text{predict} - \text{target}$ the error at the output, and
a fixed random projection $B_l$ of shape (outputs, units of $h_l$):

$$ \frac{\partial \ell}{\partial h_l} := e B_l, \qquad
   \Delta \theta_l \propto \left(\frac{\partial f_l(h_{l-1}; \theta_l)}{\partial \theta_l}\right)^{\!\top} e B_l , $$

so a dense stage with activation $s_l$ gets $\delta_l = (e B_l) \odot s_l'(a_l)$. The last stage is trained by the exact
gradient of its loss. The projection enters **behind** a stage's activation, pooling and normalisation, whose exact
derivatives belong to the stage. Every stage sees a stopped gradient, so no error is ever sent through a weight to the
stage below: the updates of all stages are independent of each other.

Nøkland 2016, "Direct Feedback Alignment Provides Learning in Deep Neural Networks" (arXiv:1609.01596). The default
scale is that of its code, $B_l \sim U(\pm 1/\sqrt{n_l})$ with $n_l$ the units of $h_l$.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.feedback.projections import STORAGES, make_projections, project_all
from tfbio.layers import is_weighted
from tfbio.network.stages import stages
from tfbio.rules.base import Batch, LearningRule, Update, regularization, weighted_loss
from tfbio.serialization import register

__all__ = ["DirectFeedbackAlignment", "DirectRandomTargetProjection", "project"]


def project(error: tf.Tensor, projection: tf.Tensor, activations: tf.Tensor) -> tf.Tensor:
    """$e B_l$ in the shape of $h_l$.

    Args:
        error: $e$, `(batch, outputs)`.
        projection: $B_l$, `(outputs, units)`.
        activations: $h_l$, `(batch, …)` with `units` entries an example; only its shape and dtype are used.

    Returns:
        The signal at $h_l$, in its shape and dtype.
    """
    return shaped(tf.matmul(tf.cast(error, projection.dtype), projection), activations)


def shaped(signal: tf.Tensor, activations: tf.Tensor) -> tf.Tensor:
    """A signal `(batch, units)` in the shape and dtype of the activations that it is for."""
    return tf.cast(tf.reshape(signal, tf.shape(activations)), activations.dtype)


def mean_jacobians(stages: Sequence[keras.Model], x: tf.Tensor) -> list[tf.Tensor]:
    r"""What error feedback would be exact, on average: $\frac1N \sum_b \partial a_L^{(b)} / \partial h_l^{(b)}$.

    Args:
        stages: the network's.
        x: inputs of a batch, `(batch, …)`. Stages run as in inference.

    Returns:
        For each hidden stage, `(outputs, units)`; in a network without non-linearities, the product of the kernels
        above it.
    """

    def row(unit: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            h, hidden = x, []
            for stage in stages[:-1]:
                h = stage(h, training=False)
                tape.watch(h)
                hidden.append(h)
            outputs = stages[-1](h, training=False)
            mean = tf.reduce_mean(tf.reshape(outputs, [tf.shape(outputs)[0], -1])[:, unit])
        return [tf.reshape(tf.reduce_sum(gradient, 0), [-1]) for gradient in tape.gradient(mean, hidden)]

    units = math.prod(stages[-1].output_shape[1:])
    dtypes = [tf.as_dtype(stage.outputs[0].dtype) for stage in stages[:-1]]
    return tf.map_fn(row, tf.range(units), fn_output_signature=dtypes) if dtypes else []


@register
class DirectFeedbackAlignment(LearningRule):
    """Every stage learns from the output error through its own fixed random projection.

    Args:
        initializer: the projections' distribution, anything that `keras.initializers.get` takes; None for Nøkland's.
        scale: a factor on every draw.
        seed: of the draws; None takes Keras's global seed.
        cuts: names of layers to cut the model behind; None for one stage a weighted layer or block (`tfbio.stages`).
        error: `"plain"`, or `"sign"`: only the error's sign reaches the hidden stages (sDFA, Frenkel et al. 2021).
        storage: `"dense"`, `"shared"`, `"regenerated"` (no feedback memory) or `"broadcast"` (one signal a channel):
            see `tfbio.feedback.projections`.

    Attributes:
        stages: the network's stages, once built.

    Raises:
        ValueError: another `error` or `storage`, or an `initializer` for a storage that has its own.
    """

    def __init__(
        self,
        initializer: Any = None,
        scale: float = 1.0,
        seed: int | None = None,
        cuts: Sequence[str] | None = None,
        error: str = "plain",
        storage: str = "dense",
    ):
        super().__init__()
        if error not in ("plain", "sign"):
            raise ValueError(f"Invalid value for `error`: expected 'plain' or 'sign', received {error!r}.")
        if storage not in STORAGES:
            raise ValueError(f"Invalid value for `storage`: expected one of {STORAGES}, received {storage!r}.")
        if initializer is not None and storage in ("shared", "regenerated"):
            raise ValueError(
                f"Invalid value for `initializer`: expected None, for {storage} projections are uniform, received "
                f"{initializer!r}. Set `scale`, or use storage='dense'."
            )
        self.initializer = None if initializer is None else keras.initializers.get(initializer)
        self.scale = scale
        self.seed = seed
        self.cuts = None if cuts is None else tuple(cuts)
        self.error = error
        self.storage = storage

    def setup(self) -> None:
        self.stages = stages(self.model, self.cuts)
        weighted = [layer for layer in self.model._flatten_layers() if is_weighted(layer)]
        if len(self.stages) == 1 and len(weighted) > 1:
            raise ValueError(
                f"Invalid value for `model`: expected a model with a point that all paths pass, received "
                f"{self.model.name!r}, which can't be cut anywhere, so that direct feedback would be backpropagation."
            )
        outputs, shapes = self.model.output_shape[1:], []
        for stage in self.stages[:-1]:
            shapes.append(stage.output_shape[1:])
            if None in shapes[-1] or None in outputs:
                raise ValueError(
                    f"Invalid value for `model`: direct feedback needs stages of a fixed size, received the output "
                    f"shape {stage.output_shape} at {stage.name!r}. Give the model a fixed input shape."
                )
        dtype = "float64" if self.model.outputs[0].dtype == "float64" else "float32"  # that of the error
        draws = (self.initializer, self.scale, self.seed)
        self._projections = make_projections(self.storage, *draws, math.prod(outputs), shapes, dtype)

    def update(self, batch: Batch) -> Update:
        values = [variable.value for variable in self.forward_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            activations = [batch.x]
            for stage in self.stages:
                activations.append(stage(tf.nest.map_structure(tf.stop_gradient, activations[-1]), training=True))
            *hidden, outputs = activations[1:]
            loss = weighted_loss(self.loss, batch, outputs)
            penalty = regularization(self.model, batch, loss.dtype)  # of the whole: stages may share a layer
        error = self.broadcast(batch.y, outputs)
        error = tf.reshape(error, [tf.shape(error)[0], -1]) * tf.cast(batch.weights, error.dtype)[:, tf.newaxis]
        signals = [shaped(*pair) for pair in zip(project_all(self._projections, error), hidden, strict=True)]
        ones = [tf.ones_like(loss), tf.ones_like(penalty)]
        gradients = tape.gradient(
            [*hidden, loss, penalty], values, output_gradients=[*signals, *ones], unconnected_gradients="zero"
        )
        return Update(outputs, loss + penalty, [tf.convert_to_tensor(gradient) for gradient in gradients])

    def broadcast(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """What is projected to every stage, `(batch, …)` of the outputs' shape: $e$, or its sign."""
        error = self.loss.error(y, outputs)
        return tf.sign(error) if self.error == "sign" else error

    def pathways(self, x: tf.Tensor) -> list[tuple[str, tf.Tensor, tf.Tensor]]:
        """Each hidden stage's projection, and what it stands in for: the outputs' mean Jacobian by its units."""
        names = [stage.layers[-1].name for stage in self.stages[:-1]]
        projections = [tf.convert_to_tensor(projection) for projection in self.projections]
        return list(zip(names, mean_jacobians(self.stages, x), projections, strict=True))

    @property
    def variables(self) -> list[keras.Variable]:
        return list({id(v): v for projection in self._projections for v in projection.variables}.values())

    @property
    def projections(self) -> list[Any]:
        """$B_l$ of each hidden stage, `(outputs, units)`: variables if dense; otherwise tensors, made to look at."""
        return [projection.matrix for projection in self._projections]

    def get_config(self) -> dict[str, Any]:
        initializer = self.initializer and keras.initializers.serialize(self.initializer)
        names = ("scale", "seed", "cuts", "error", "storage")
        return {"initializer": initializer, **{name: getattr(self, name) for name in names}}


@register
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    r"""Every hidden stage learns from the target alone: $\partial \ell / \partial h_l := y B_l$.

    Nothing waits for the output: a stage can be updated as soon as it is computed. The last stage has its loss's exact
    gradient. The sign of $y B_l$ is that of the authors' code; $B_l$ is random, so it carries no meaning.

    Frenkel, Lefebvre & Bol 2021, "Learning without feedback" (Frontiers in Neuroscience 15:629892).

    Args:
        initializer, scale, seed, cuts, storage: as in `DirectFeedbackAlignment`.
    """

    needs_canonical_loss = True

    def __init__(
        self,
        initializer: Any = None,
        scale: float = 1.0,
        seed: int | None = None,
        cuts: Sequence[str] | None = None,
        storage: str = "dense",
    ):
        super().__init__(initializer, scale, seed, cuts, storage=storage)

    def broadcast(self, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return self.loss.target(y, outputs)

    def pathways(self, x: tf.Tensor) -> list[tuple[str, tf.Tensor, tf.Tensor]]:
        return []  # targets are no errors: there is nothing that their projection should equal

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "error"}
