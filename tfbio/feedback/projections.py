r"""Direct feedback's projections: fixed random linear maps $e \mapsto e B_l$ from the output error to a stage.

$B_l$ has the shape (outputs, units of $h_l$), which is large where images are: 348 million numbers for the locally
connected ImageNet network of Bartunov et al. 2018, who could not hold them. Four ways to have one:

| `storage` | kept | $B_l$ |
|---|---|---|
| `"dense"` | outputs × units a stage | drawn once for each stage, from any distribution |
| `"shared"` | outputs × units of the widest stage | first $n_l$ columns of one $U(\pm 1)$, over $\sqrt{n_l}$ |
| `"regenerated"` | two integers | $U(\pm 1/\sqrt{n_l})$, drawn anew in each step, the same in every one |
| `"broadcast"` | outputs × channels a stage | one column a channel, the same at all positions |

*Shared*: Launay, Poli, Boniface & Krzakala 2020 (arXiv:2006.12878). *Regenerated*: random bits that are a function of
(seed, stage, tile, position), `tfbio.feedback.bits`; each tile of columns is drawn, multiplied with the error and
dropped, so that no feedback is ever in memory beyond one tile. *Broadcast* is another rule: every unit of a channel
gets the same signal, as in the convolutional direct feedback of BioTorch (Sanfiz & Akrout 2021, arXiv:2108.13446),
where a transposed convolution of the broadcast error does this up to borders and strides.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfbio.feedback.bits import stateless_bits
from tfbio.feedback.random import Random

__all__ = ["STORAGES", "Projection", "make_projections", "project_all"]

STORAGES = ("dense", "shared", "regenerated", "broadcast")

# Numbers in a tile at most: 1 MiB, to stay in a cache. Another value draws other matrices.
_TILE = 1 << 18

# Nøkland's code: U(±1/√n) with n the units that receive the signal.
_NOKLAND = {
    "class_name": "VarianceScaling",
    "config": {"scale": 1 / 3, "mode": "fan_out", "distribution": "uniform"},
}


class Projection:
    """One stage's $B_l$.

    Args:
        outputs: entries of an example's error.
        shape: of an example's activations at the stage.
        axis: of the channels in `shape`.
        dtype: of the error.

    Attributes:
        variables: what it keeps; several projections may share a variable.
    """

    variables: Sequence[keras.Variable] = ()

    def __init__(self, outputs: int, shape: Sequence[int], axis: int, dtype: str):
        self.outputs, self.shape, self.units, self.dtype = outputs, tuple(shape), math.prod(shape), dtype
        self.axis = axis

    def common(self, error: tf.Tensor) -> tf.Tensor:
        """What the projections of all stages begin with, to be computed once."""
        return error

    def own(self, common: tf.Tensor) -> tf.Tensor:
        """$e B_l$, `(batch, units)`, from what `common` gave."""
        raise NotImplementedError

    def project(self, error: tf.Tensor) -> tf.Tensor:
        """$e B_l$: from `(batch, outputs)` to `(batch, units)`."""
        return self.own(self.common(error))

    def rows(self, numbers: Sequence[int]) -> tf.Tensor:
        """Rows of $B_l$: `(rows, units)`."""
        return self.project(tf.one_hot(numbers, self.outputs, dtype=self.dtype))

    @property
    def matrix(self) -> Any:
        """$B_l$ itself, `(outputs, units)`: a variable or a tensor. To look at; no step makes it."""
        return self.rows(range(self.outputs))


class Dense(Projection):
    """A matrix of the stage's own."""

    def __init__(self, initializer: Any, name: str, *geometry):
        super().__init__(*geometry)
        self.variables = [_variable(initializer, (self.outputs, self.units), self.dtype, name)]

    def own(self, error: tf.Tensor) -> tf.Tensor:
        return tf.matmul(error, self.variables[0].value)

    @property
    def matrix(self) -> keras.Variable:
        return self.variables[0]


class Shared(Projection):
    """The first columns of a matrix that all stages have in common: one product serves them all."""

    def __init__(self, variable: keras.Variable, *geometry):
        super().__init__(*geometry)
        self.variables = [variable]

    def common(self, error: tf.Tensor) -> tf.Tensor:
        return tf.matmul(error, self.variables[0].value)

    def own(self, common: tf.Tensor) -> tf.Tensor:
        return common[:, : self.units] / math.sqrt(self.units)


class Regenerated(Projection):
    """A matrix that is drawn tile by tile whenever it is needed, and kept nowhere.

    Args:
        seed: `(2,)`, int64: what every draw is a function of, with the stage's number and the tile's.
        number: the stage's number.
        scale: a factor on every draw.
    """

    def __init__(self, seed: keras.Variable, number: int, scale: float, *geometry):
        super().__init__(*geometry)
        self.variables = [seed]
        self._number = number
        self._tiles = math.ceil(self.units * self.outputs / _TILE)
        self._columns = math.ceil(self.units / self._tiles)
        # Random bits are integers in ±2³¹.
        self._factor = scale * 2.0**-31 / math.sqrt(self.units)

    def own(self, error: tf.Tensor) -> tf.Tensor:
        error *= tf.constant(self._factor, error.dtype)
        seed = tf.convert_to_tensor(self.variables[0].value)

        def tile(number: tf.Tensor) -> tf.Tensor:
            key = seed + tf.stack([tf.zeros((), tf.int64), number + (self._number << 32)])
            return tf.matmul(error, tf.cast(stateless_bits((self.outputs, self._columns), key), error.dtype))

        if self._tiles == 1:
            return tile(tf.constant(0, tf.int64))
        # One tile at a time, whatever the runtime would like to do at once.
        numbers = tf.range(self._tiles, dtype=tf.int64)
        signal = tf.map_fn(tile, numbers, parallel_iterations=1, fn_output_signature=error.dtype)
        signal = tf.reshape(tf.transpose(signal, [1, 0, 2]), [-1, self._tiles * self._columns])
        return signal[:, : self.units]


class Broadcast(Projection):
    """A number a channel, for all its positions."""

    def __init__(self, initializer: Any, name: str, *geometry):
        super().__init__(*geometry)
        self.variables = [_variable(initializer, (self.outputs, self.shape[self.axis]), self.dtype, name)]

    def own(self, error: tf.Tensor) -> tf.Tensor:
        signal = tf.matmul(error, self.variables[0].value)
        axes = [self.shape[n] if n == self.axis % len(self.shape) else 1 for n in range(len(self.shape))]
        signal = tf.reshape(signal, [-1, *axes])
        return tf.reshape(tf.broadcast_to(signal, [tf.shape(error)[0], *self.shape]), [-1, self.units])


def _variable(initializer: Any, shape: tuple[int, ...], dtype: str, name: str) -> keras.Variable:
    return keras.Variable(initializer, shape=shape, dtype=dtype, trainable=False, name=name)


def make_projections(
    storage: str,
    initializer: Any,
    scale: float,
    seed: int | None,
    outputs: int,
    shapes: Sequence,
    dtype: str,
    axes: Sequence[int] | None = None,
) -> list[Projection]:
    """A projection for each stage.

    Args:
        storage: one of `STORAGES`.
        initializer: the draws' distribution, anything that `keras.initializers.get` takes; None for uniform ones in
            one over the square root of the columns. Only dense and broadcast projections take another.
        scale: a factor on every draw.
        seed: of the draws; None takes Keras's global seed.
        outputs: entries of an example's error.
        shapes: of an example's activations at each stage.
        dtype: of the error.
        axes: of the channels in each of the shapes; None for the last ones.
    """
    if not shapes:
        return []
    draw = Random(_NOKLAND if initializer is None else initializer, scale, seed)
    axes = [-1] * len(shapes) if axes is None else axes
    geometry = [(outputs, shape, axis, dtype) for shape, axis in zip(shapes, axes, strict=True)]
    if storage in ("dense", "broadcast"):
        kind = Dense if storage == "dense" else Broadcast
        return [kind(draw.initializer(n), f"projection_{n}", *each) for n, each in enumerate(geometry)]
    if storage == "shared":
        widest = max(map(math.prod, shapes))
        uniform = Random(keras.initializers.RandomUniform(-1.0, 1.0), scale, seed)
        variable = _variable(uniform.initializer(0), (outputs, widest), dtype, "projection")
        return [Shared(variable, *each) for each in geometry]
    if seed is None:
        seed = keras.initializers.RandomUniform().seed  # the next of Keras's global generator
    words = _variable(lambda shape, dtype: tf.constant([seed, 0], dtype), (2,), "int64", "projection_seed")
    return [Regenerated(words, number, scale, *each) for number, each in enumerate(geometry)]


def project_all(projections: Sequence[Projection], error: tf.Tensor) -> list[tf.Tensor]:
    """$e B_l$ for every stage, `(batch, units)` each; all have the same storage."""
    common = projections[0].common(error) if projections else error
    return [projection.own(common) for projection in projections]
