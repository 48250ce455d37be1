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

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfbio.feedback.projections import STORAGES, make_projections, project_all
from tfbio.layers import is_weighted
from tfbio.network.blocks import Blocks, Chain, cut
from tfbio.network.instrumented import walk
from tfbio.network.treatable import plain_patterns
from tfbio.rules.base import Batch, LearningRule, Update, regularization, weighted_loss
from tfbio.serialization import register

__all__ = ["DirectFeedbackAlignment", "DirectRandomTargetProjection", "project"]

_LOG = logging.getLogger("tfbio")

# Outputs whose feedback is measured at most: each takes a backward pass.
_SAMPLE = 32


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


def sampled(outputs: int) -> np.ndarray:
    """The numbers of the outputs whose feedback is measured: all, or a fixed random sample."""
    if outputs <= _SAMPLE:
        return np.arange(outputs)
    return np.sort(np.random.default_rng(0).choice(outputs, _SAMPLE, replace=False))


def mean_jacobians(network: Chain | Blocks, x: Any, rows: Sequence[int]) -> list[tf.Tensor]:
    r"""What error feedback would be exact, on average: $\frac1N \sum_b \partial a_L^{(b)} / \partial h_l^{(b)}$.

    One forward pass, and one backward pass for each row.

    Args:
        network: where feedback enters. It runs as in inference.
        x: inputs of a batch, `(batch, …)`.
        rows: numbers of the outputs whose derivatives are asked for.

    Returns:
        For each cut, `(rows, units)`; in a network without non-linearities, rows of the product of the kernels above.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:

        def watched(h: tf.Tensor) -> tf.Tensor:
            tape.watch(h)
            return h

        ran = network.run(x, watched, training=False)
        means = tf.reduce_mean(flat(ran.outputs), 0)

    def row(unit: tf.Tensor) -> list[tf.Tensor]:
        one = tf.one_hot(unit, tf.size(means), dtype=means.dtype)
        gradients = tape.gradient(means, ran.hidden, one, unconnected_gradients="zero")
        return [tf.reshape(tf.reduce_sum(gradient, 0), [-1]) for gradient in gradients]

    dtypes = [h.dtype for h in ran.hidden]
    return tf.map_fn(row, tf.constant(rows, tf.int32), dtypes, parallel_iterations=1) if dtypes else []


def flat(outputs: Any) -> tf.Tensor:
    """Nested tensors `(batch, …)` side by side, `(batch, entries)`: in float32, or in float64 if one of them is."""
    parts = [tf.reshape(each, [tf.shape(each)[0], -1]) for each in tf.nest.flatten(outputs)]
    dtype = _wide(part.dtype for part in parts)
    return tf.concat([tf.cast(part, dtype) for part in parts], 1) if len(parts) > 1 else tf.cast(parts[0], dtype)


def _wide(dtypes: Iterable[tf.DType]) -> str:
    return "float64" if tf.float64 in list(dtypes) else "float32"


@register
class DirectFeedbackAlignment(LearningRule):
    """Every stage learns from the output error through its own fixed random projection.

    Args:
        initializer: the projections' distribution, anything that `keras.initializers.get` takes; None for Nøkland's.
        scale: a factor on every draw.
        seed: of the draws; None takes Keras's global seed.
        cuts: names of layers of a graph to cut it behind (`tfbio.stages`).
        error: `"plain"`, or `"sign"`: only the error's sign reaches the hidden stages (sDFA, Frenkel et al. 2021).
        storage: `"dense"`, `"shared"`, `"regenerated"` (no feedback memory) or `"broadcast"` (one signal a channel):
            see `tfbio.feedback.projections`.
        blocks: layers at any depth, also in subclassed models and composite layers, to cut the model behind: names,
            paths and patterns of them (`"encoder/*"`), and classes. Each floating tensor that such a layer returns gets
            a signal, and goes on as a constant. Without `cuts` and `blocks`, a graph is cut into its stages, one a
            weighted layer or block of them; where composite layers of one class repeat, as a transformer's blocks do,
            and that makes more cuts, it is cut behind these.

    Attributes:
        network: the model with its cuts, once built.
        stages: the sub-models of a graph that is cut into such.
        signals: what each layer learns from, by the path of its variables: names of cuts, `"loss"` above them all. Of
            layers that share one, the lower learn by backpropagation from the upper.

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
        blocks: Iterable[Any] | None = None,
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
        self.blocks = None if blocks is None else tuple(blocks)

    def setup(self) -> None:
        self.network = cut(self.model, self.cuts, self.blocks)
        self.stages, self.signals = list(self.network.stages), self.network.signals
        weighted = [path for path, layer in self._weighted() if path in self.signals]
        if not self.network.cuts and len(weighted) > 1:
            raise ValueError(
                f"Invalid value for `model`: expected a model with a point that all paths pass, received "
                f"{self.model.name!r}, which can't be cut anywhere, so that direct feedback would be backpropagation. "
                "Name `blocks` within it."
            )
        outputs = [tuple(output.shape[1:]) for output in self.network.outputs]
        places = [(each.name, each.shape) for each in self.network.cuts]
        for name, shape in [*places, *(("the output", shape) for shape in outputs if places)]:
            if None in shape:
                raise ValueError(
                    f"Invalid value for `model`: direct feedback needs stages of a fixed size, received the shape "
                    f"{(None, *shape)} at {name!r}. Give the model a fixed input shape."
                )
        dtype = _wide(output.dtype for output in self.network.outputs)  # that of the error
        draws, units = (self.initializer, self.scale, self.seed), sum(map(math.prod, outputs))
        shapes, axes = [shape for _, shape in places], [each.axis for each in self.network.cuts]
        self._projections = make_projections(self.storage, *draws, units, shapes, dtype, axes)
        self._report(weighted)

    def _weighted(self) -> list[tuple[str, keras.layers.Layer]]:
        """The layers that have kernels, with the paths of their variables."""
        layers = [place[-1] for _, place in walk(self.model)]
        return [(layer.weights[0].path.rpartition("/")[0], layer) for layer in layers if is_weighted(layer)]

    def _report(self, weighted: list[str]) -> None:
        """Says once what learns from what: as a warning where that may not be what was meant."""
        groups = Counter(self.signals[path] for path in weighted)
        shared = sum(count for count in groups.values() if count > 1)
        chosen = self.cuts is not None or self.blocks is not None
        (_LOG.info if chosen or not shared else self.warn)(
            f"feedback enters behind {', '.join(each.name for each in self.network.cuts)}. Of {len(weighted)} layers "
            f"with kernels, {shared} share a signal with others, and learn from it by backpropagation: see "
            "rule.signals. Pass `cuts` or `blocks` to choose other places."
        )
        if self.network.leaks:
            leaks = "; ".join(f"{layer} (from {', '.join(self.signals[layer])})" for layer in self.network.leaks)
            self.warn(
                f"errors get around the cuts, so that layers learn from the signals of several: {leaks}. Add to "
                "`blocks` what the ways around start from."
            )

    def update(self, batch: Batch) -> Update:
        values = [variable.value for variable in self.forward_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            ran = self.network.run(batch.x)
            loss = weighted_loss(self.loss, batch, ran.outputs)
            penalty = regularization(ran, batch, loss.dtype)
        error = flat(self.loss.weighted(self.broadcast(batch.y, ran.outputs), batch.weights))
        signals = [shaped(*pair) for pair in zip(project_all(self._projections, error), ran.hidden, strict=True)]
        ones = [tf.ones_like(loss), tf.ones_like(penalty)]
        gradients = tape.gradient(
            [*ran.hidden, loss, penalty], values, output_gradients=[*signals, *ones], unconnected_gradients="zero"
        )
        return Update(ran.outputs, loss + penalty, [tf.convert_to_tensor(gradient) for gradient in gradients])

    def broadcast(self, y: Any, outputs: Any) -> Any:
        """What is projected to every stage, nested `(batch, …)` of the outputs' shapes: $e$, or its sign."""
        error = self.loss.error(y, outputs)
        return tf.nest.map_structure(tf.sign, error) if self.error == "sign" else error

    def pathways(self, x: Any) -> list[tuple[str, tf.Tensor, tf.Tensor]]:
        """Each hidden stage's projection, and what it stands in for: the outputs' mean Jacobian by its units.

        Of more than 32 outputs, the rows of a fixed random sample of 32, without replacement. Means over rows (inner
        products, squared norms, equal signs) are unbiased then, and angles and ratios are made of these; with rows that
        differ by a standard deviation of $s$, their standard error is $s \\sqrt{1/32 - 1/n}$, $n$ the outputs.
        """
        rows = sampled(sum(math.prod(output.shape[1:]) for output in self.network.outputs))
        projections, names = [each.rows(rows) for each in self._projections], [each.name for each in self.network.cuts]
        return list(zip(names, mean_jacobians(self.network, x, rows), projections, strict=True))

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
        return {
            "initializer": initializer,
            **{name: getattr(self, name) for name in names},
            "blocks": plain_patterns(self.blocks),
        }


@register
class DirectRandomTargetProjection(DirectFeedbackAlignment):
    r"""Every hidden stage learns from the target alone: $\partial \ell / \partial h_l := y B_l$.

    Nothing waits for the output: a stage can be updated as soon as it is computed. The last stage has its loss's exact
    gradient. The sign of $y B_l$ is that of the authors' code; $B_l$ is random, so it carries no meaning.

    Frenkel, Lefebvre & Bol 2021, "Learning without feedback" (Frontiers in Neuroscience 15:629892).

    Args:
        initializer, scale, seed, cuts, storage, blocks: as in `DirectFeedbackAlignment`.
    """

    needs_canonical_loss = True

    def __init__(
        self,
        initializer: Any = None,
        scale: float = 1.0,
        seed: int | None = None,
        cuts: Sequence[str] | None = None,
        storage: str = "dense",
        blocks: Iterable[Any] | None = None,
    ):
        super().__init__(initializer, scale, seed, cuts, storage=storage, blocks=blocks)

    def broadcast(self, y: Any, outputs: Any) -> Any:
        return self.loss.target(y, outputs)

    def pathways(self, x: tf.Tensor) -> list[tuple[str, tf.Tensor, tf.Tensor]]:
        return []  # targets are no errors: there is nothing that their projection should equal

    def get_config(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_config().items() if name != "error"}
