r"""Local losses of target propagation: what a stage learns from its target, and an inverse from its stage.

A stage's is $\lVert h - t \rVert^2$. An inverse $g$ of $f$ is shown $f$ at a noisy input, $\tilde h = h + \sigma \xi$,
$\xi \sim N(0, 1)$; $f$, $h$ and the noise are constants. Of one example:

| name | loss | what it pulls $g$ to |
|---|---|---|
| `preserve` | $\lVert g(f(\tilde h)) - \tilde h \rVert^2$ | $f^{-1}$ around the data |
| `denoise` | $\lVert g(f(\tilde h)) - h \rVert^2$ | the same, towards likely $h$ |
| `drl` | $\lVert (g(f(\tilde h)) - g(f(h))) / \sigma - \xi \rVert^2$ | $J_g = J_f^+$ |

`drl` is the *difference reconstruction loss* (Meulemans et al. 2020, arXiv:2006.14331): targets are differences of
$g$, so that only its Jacobian matters, and the best one is the pseudo-inverse of $f$'s, which makes target propagation
a Gauss–Newton step. The other two are those of Lee et al. 2015 and Bartunov et al. 2018.
"""

import math
from collections.abc import Callable

import tensorflow as tf

__all__ = ["RECONSTRUCTIONS", "Map", "local_signal", "weighted_sum", "wide"]

Map = Callable[[tf.Tensor], tf.Tensor]
#: Standard normal noise in the shape of a tensor.
Noise = Callable[[tf.Tensor], tf.Tensor]


def local_signal(h: tf.Tensor, target: tf.Tensor, weights: tf.Tensor, reduction: str) -> tf.Tensor:
    r"""The derivative of `weighted_sum` of $(h - t)^2$ at $h$, in its shape."""
    return 2.0 * _factors(h, weights, reduction) * (h - target)


def weighted_sum(errors: tf.Tensor, weights: tf.Tensor, reduction: str) -> tf.Tensor:
    """Each unit's error in the loss of a batch: summed over examples with their weights, and over units.

    Args:
        errors: `(batch, …)`.
        weights: `(batch,)`.
        reduction: `"sum"` or `"mean"`: over units.

    Returns:
        a scalar.
    """
    return tf.reduce_sum(_factors(errors, weights, reduction) * errors)


def _factors(like: tf.Tensor, weights: tf.Tensor, reduction: str) -> tf.Tensor:
    factors = tf.reshape(tf.cast(weights, like.dtype), [-1, *[1] * (len(like.shape) - 1)])
    return factors if reduction == "sum" else factors / math.prod(like.shape[1:])


def wide(tensor: tf.Tensor) -> tf.Tensor:
    """`tensor` in float32 at least: targets differ little from activations."""
    return tensor if tensor.dtype == tf.float64 else tf.cast(tensor, tf.float32)


def preserve(f: Map, g: Map, h: tf.Tensor, u: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    r"""$(g(f(\tilde h)) - \tilde h)^2$ of each unit.

    Args:
        f: what is inverted; no gradient goes through it.
        g: the inverse.
        h: input of $f$.
        u: $f(h)$.
        sigma: $\sigma$.
        noise: $\xi$, in the shape of what it is called with.

    Returns:
        the shape of `h`; its sum over units is the loss.
    """
    noisy = _noisy(h, sigma, noise)
    return tf.square(g(f(noisy)) - noisy)


def denoise(f: Map, g: Map, h: tf.Tensor, u: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    r"""$(g(f(\tilde h)) - h)^2$ of each unit; arguments as for `preserve`."""
    return tf.square(g(f(_noisy(h, sigma, noise))) - h)


def difference(f: Map, g: Map, h: tf.Tensor, u: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    r"""$((g(f(\tilde h)) - g(f(h))) / \sigma - \xi)^2$ of each unit; arguments as for `preserve`."""
    xi = noise(h)
    return tf.square((g(f(h + sigma * xi)) - g(u)) / sigma - xi)


def _noisy(h: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    return h + sigma * noise(h) if sigma else h


RECONSTRUCTIONS = {"preserve": preserve, "denoise": denoise, "drl": difference}
