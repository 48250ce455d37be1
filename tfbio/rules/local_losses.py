r"""Local losses of target propagation: what a stage learns from its target, and an inverse from its stage.

A stage's is $\lVert h - t \rVert^2$. An inverse $g$ of $f$ is shown $f$ at a noisy input, $h + \delta$, where
$\delta = \sigma \xi$, $\xi \sim N(0, 1)$; $f$, $h$, $u = f(h)$ and the noise are constants. Of one example:

| name | loss | what it pulls $g$ to |
|---|---|---|
| `preserve` | $\lVert g(f(h + \delta)) - (h + \delta) \rVert^2$ | $f^{-1}$ around the data |
| `denoise` | $\lVert g(f(h + \delta)) - h \rVert^2$ | the same, towards likely $h$ |
| `drl` | $\lVert (g(f(h + \delta)) - g(u)) / \sigma - \xi \rVert^2$ | $J_g = J_f^+$ |
| `ldrl` | $-2 \, \delta^\top (g(f(h + \delta)) - g(u)) + \lVert g(u + \epsilon) - g(u) \rVert^2$ | $J_g = J_f^\top$ |

The first two are those of Lee et al. 2015 and Bartunov et al. 2018. Targets that are differences of $g$ need its
Jacobian alone. The *difference reconstruction loss* (Meulemans et al. 2020, arXiv:2006.14331) has the pseudo-inverse of
$f$'s as its minimum, which makes target propagation a Gauss–Newton step. The *local* one (Ernoult et al. 2022,
arXiv:2201.13415), $\epsilon$ another noise like $\delta$, is $\sigma^2 \lVert J_g - J_f^\top \rVert^2$ but for a
constant where noise is small, and makes it backpropagation.
"""

import math
from collections.abc import Callable

import tensorflow as tf

__all__ = ["OF_DIFFERENCES", "RECONSTRUCTIONS", "Map", "local_signal", "weighted_sum", "wide"]

Map = Callable[[tf.Tensor], tf.Tensor]
#: Standard normal noise in the shape of a tensor; another noise for another number, which may be left out for 0.
Noise = Callable[..., tf.Tensor]


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
    r"""Each unit's share of `preserve`.

    Args:
        f: what is inverted; no gradient goes through it.
        g: the inverse.
        h: input of $f$.
        u: $f(h)$.
        sigma: $\sigma$.
        noise: makes $\xi$, in the shape of what it is called with.

    Returns:
        the shape of `h`; its sum over units is the loss.
    """
    noisy = _noisy(h, sigma, noise)
    return tf.square(g(f(noisy)) - noisy)


def denoise(f: Map, g: Map, h: tf.Tensor, u: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    """Each unit's share of `denoise`; arguments as for `preserve`."""
    return tf.square(g(f(_noisy(h, sigma, noise))) - h)


def difference(f: Map, g: Map, h: tf.Tensor, u: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    """Each unit's share of `drl`; arguments as for `preserve`."""
    xi = noise(h)
    return tf.square((g(f(h + sigma * xi)) - g(u)) / sigma - xi)


def local_difference(f: Map, g: Map, h: tf.Tensor, u: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    """Each unit's share of `ldrl`; arguments as for `preserve`."""
    delta, epsilon, r = sigma * noise(h), sigma * noise(u, 1), g(u)
    return -2.0 * delta * (g(f(h + delta)) - r) + tf.square(g(u + epsilon) - r)


def _noisy(h: tf.Tensor, sigma: float, noise: Noise) -> tf.Tensor:
    return h + sigma * noise(h) if sigma else h


RECONSTRUCTIONS = {"preserve": preserve, "denoise": denoise, "drl": difference, "ldrl": local_difference}
#: Those that compare $g$ at two places, which are one without noise.
OF_DIFFERENCES = ("drl", "ldrl")
