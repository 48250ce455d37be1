r"""How far a rule is from backpropagation: its gradient, and its feedback weights.

For gradients $g$ (the rule's) and $b$ (backpropagation's) of the same weights on the same batch, layer by layer and
over all of them:

$$ \angle(g, b) = \arccos \frac{\langle g, b \rangle}{\lVert g \rVert \lVert b \rVert} , \qquad
   \frac{\lVert g \rVert}{\lVert b \rVert} , $$

the angle in degrees: 0 for backpropagation itself, near 90 for a random direction, above 90 where the rule makes the
loss grow. Lillicrap et al. 2016 call its fall below 90 in the course of training the alignment that gives the rule its
name. For feedback weights $B$ and the forward weights $W$ that they stand in for (`LearningRule.pathways`): the same
angle and ratio, and the share of weights with $\operatorname{sign} B = \operatorname{sign} W$.

| figure | of | source |
|---|---|---|
| `angle/…` | $\angle(g, b)$, degrees | Lillicrap et al. 2016 |
| `norm_ratio/…` | $\lVert g \rVert / \lVert b \rVert$ | |
| `feedback_angle/…` | $\angle(B, W)$, degrees | Akrout et al. 2019 |
| `feedback_norm_ratio/…` | $\lVert B \rVert / \lVert W \rVert$ | |
| `sign_concordance/…` | share of equal signs, in [0, 1] | Liao, Leibo & Poggio 2016 |

A rule adds figures of its own by `LearningRule.diagnostics`; target propagation's are those of
`tfbio.rules.target_diagnostics`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from etils.epath import Path

from tfbio.files import append_line, keep_lines
from tfbio.rules import Backpropagation, LearningRule

__all__ = ["Alignment", "alignment", "angle"]


def angle(products: Sequence[float]) -> float:
    """The angle in degrees, from the inner products (g·b, g·g, b·b); NaN if a vector is zero."""
    dot, gg, bb = (float(product) for product in products)
    if gg <= 0.0 or bb <= 0.0:
        return float("nan")
    return float(np.degrees(np.arccos(np.clip(dot / np.sqrt(gg) / np.sqrt(bb), -1.0, 1.0))))


def norm_ratio(products: Sequence[float]) -> float:
    """‖g‖ / ‖b‖, from the inner products (g·b, g·g, b·b); NaN if b is zero."""
    _, gg, bb = (float(product) for product in products)
    return float(np.sqrt(gg / bb)) if bb > 0.0 else float("nan")


def _products(pairs: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """Rows (g·b, g·g, b·b, share of equal signs), float64, one for each pair of tensors of equal shape."""
    rows = []
    for g, b in pairs:
        g, b = tf.cast(g, tf.float64), tf.cast(b, tf.float64)
        concordance = tf.reduce_mean(tf.cast(tf.equal(tf.sign(g), tf.sign(b)), tf.float64))
        rows.append(tf.stack([tf.reduce_sum(g * b), tf.reduce_sum(g * g), tf.reduce_sum(b * b), concordance]))
    return tf.stack(rows) if rows else tf.zeros((0, 4), tf.float64)


class Alignment(keras.callbacks.Callback):
    """Adds the module's figures to each epoch's, measured on one fixed batch; and writes them every so many steps.

    Everything is computed in one graph, apart from the training loop's, from the same weights and with the same random
    state of the model's own layers; running statistics are put back, so that measuring changes nothing. Place it before
    callbacks that write.

    Args:
        rule: a built rule.
        x: inputs of the batch as the model takes them (preprocessed).
        y: its labels.
        strategy: the strategy of the model; None for the current one.
        every_steps: measure after every so many steps too, into `path`; None measures at ends of epochs alone.
        path: a file that gets one JSON object, `step` and all figures, each time.
    """

    def __init__(
        self,
        rule: LearningRule,
        x: Any,
        y: Any,
        strategy: tf.distribute.Strategy | None = None,
        every_steps: int | None = None,
        path: str | None = None,
    ):
        super().__init__()
        if (every_steps is None) != (path is None):
            raise ValueError(
                "Invalid value for `every_steps`: expected it together with `path`, the file to write, received "
                f"{every_steps} and {path}."
            )
        if every_steps is not None and (not isinstance(every_steps, int) or every_steps < 1):
            raise ValueError(f"Invalid value for `every_steps`: expected a positive int, received {every_steps!r}.")
        self.every_steps = every_steps
        self._path = path and Path(path)
        self._strategy = strategy or tf.distribute.get_strategy()
        self._rule = rule
        with self._strategy.scope():
            backpropagation = Backpropagation()
            backpropagation.build(rule.model, rule.loss)
        state = [variable.value for variable in rule.model.non_trainable_variables]
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)

        def undisturbed(compute: Any) -> Any:
            before = [tf.identity(value) for value in state]
            results = compute()
            with tf.control_dependencies(tf.nest.flatten(results)):
                for value, old in zip(state, before, strict=True):
                    value.assign(old)
            return results

        def gradients(some_rule: LearningRule) -> list[tf.Tensor]:
            return undisturbed(lambda: some_rule.compute(x, y).forward)

        def products() -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
            pathways = undisturbed(lambda: rule.pathways(x))
            own = undisturbed(lambda: rule.diagnostics(x, y))
            # Names are known once the graph is made, before anyone reads a figure.
            self._pathways, self._own = [name for name, _, _ in pathways], list(own)
            both = list(zip(gradients(rule), gradients(backpropagation), strict=True))
            weights = [(feedback, forward) for _, forward, feedback in pathways]
            return _products(both), _products(weights), list(own.values())

        self._products = tf.function(lambda: self._strategy.run(products), autograph=False)
        self._layers = [variable.path.rpartition("/")[0] for variable in rule.forward_variables]

    def measure(self) -> dict[str, float]:
        """The figures now, by `<kind>/total` (of the gradients) and `<kind>/<layer's path>`."""
        gradients, pathways, own = tf.nest.map_structure(
            lambda value: np.asarray(self._strategy.experimental_local_results(value)[0]), self._products()
        )
        figures = {}
        layers = {layer: [name == layer for name in self._layers] for layer in dict.fromkeys(self._layers)}
        for layer, member in {"total": slice(None), **layers}.items():
            products = gradients[member, :3].sum(0)
            figures |= {f"angle/{layer}": angle(products), f"norm_ratio/{layer}": norm_ratio(products)}
        for name, row in zip(self._pathways, pathways, strict=True):
            figures[f"feedback_angle/{name}"] = angle(row[:3])
            figures[f"feedback_norm_ratio/{name}"] = norm_ratio(row[:3])
            figures[f"sign_concordance/{name}"] = float(row[3])
        return figures | {name: float(value) for name, value in zip(self._own, own, strict=True)}

    def on_train_begin(self, logs: dict | None = None) -> None:
        if self._path is not None:  # steps that are trained again after a restart
            keep_lines(self._path, lambda line: line["step"] <= int(self._rule.step.numpy()))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = int(self._rule.step.numpy())
        if self.every_steps is not None and step % self.every_steps == 0:
            append_line(self._path, {"step": step, **self.measure()})

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            logs.update(self.measure())


def alignment(rule: LearningRule, x: Any, y: Any) -> dict[str, float]:
    """The figures of `rule` on one batch now, by name: see `Alignment`."""
    return Alignment(rule, x, y).measure()
