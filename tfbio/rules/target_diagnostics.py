r"""How well targets and inverses do: figures of target propagation, of one batch.

With activations $h_l$, targets $t_l$ and inverses $g_l$, norms taken over the batch:

| figure of stage $l$ | |
|---|---|
| `reconstruction` | mean of $\lVert g_l(f_l(h_{l-1})) - h_{l-1} \rVert^2$: the inverse's loss without noise |
| `target_distance` | $\lVert t_l - h_l \rVert / \lVert h_l \rVert$ |
| `target_approach` | $\lVert f_l(t_{l-1}) - t_l \rVert / \lVert h_l - t_l \rVert$ |
| `closer` | share of examples with $\lVert f_l(t_{l-1}) - t_l \rVert < \lVert h_l - t_l \rVert$, in [0, 1] |

The last two are about the condition of Lee et al. 2015 (arXiv:1412.7525): a stage must come closer to its target when
the stage below has reached its own. Near $h_l$ it does if the eigenvalues of $(I - J_f J_g)^T (I - J_f J_g)$ are below
1. At the output, $f_L$ includes the loss's `predict`, but where targets are of logits. Inverses that learn by
differences (`drl`, `ldrl`) are not made to reconstruct.
"""

from collections.abc import Sequence

import tensorflow as tf

__all__ = ["diagnose"]


def diagnose(
    names: Sequence[str],
    pairs: Sequence[tuple[tf.Tensor, tf.Tensor]],
    returned: Sequence[tf.Tensor | None],
    reached: Sequence[tf.Tensor],
) -> dict[str, tf.Tensor]:
    """The figures of all stages, by `<figure>/<name>`.

    Args:
        names: of the stages.
        pairs: $(h_l, t_l)$ of each stage, `(batch, …)`.
        returned: $g_l(f_l(h_{l-1}))$ of each stage, the shape of $h_{l-1}$; None where there is no inverse.
        reached: $f_l(t_{l-1})$ of each stage but the first, the shape of $h_l$.

    Returns:
        Scalars; NaN for a ratio to zero.
    """
    figures = {}
    for name, (h, _), back in zip(names[1:], pairs, returned[1:], strict=False):
        if back is not None:
            figures[f"reconstruction/{name}"] = tf.reduce_mean(_squares(back - h))
    for name, (h, t) in zip(names, pairs, strict=True):
        figures[f"target_distance/{name}"] = _ratio(_squares(t - h), _squares(h))
    for name, (h, t), now in zip(names[1:], pairs[1:], reached, strict=True):
        before, after = _squares(h - t), _squares(now - t)
        figures[f"target_approach/{name}"] = _ratio(after, before)
        figures[f"closer/{name}"] = tf.reduce_mean(tf.cast(after < before, after.dtype))
    return figures


def _squares(difference: tf.Tensor) -> tf.Tensor:
    """The squared norm of each example: `(batch,)`."""
    return tf.reduce_sum(tf.square(difference), list(range(1, len(difference.shape))))


def _ratio(squares: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_sum(squares) / tf.reduce_sum(others))
