"""Random flips and crops of a batch, in graph, from uint8 to uint8.

What happens to an image is a pure function of (seed, epoch, batch index, position in the global batch): `draw` makes
the decisions of a whole global batch, `apply` carries out those of the rows at hand. A replica that holds every other
row draws for all rows and applies its own, so two replicas do together exactly what one does alone.

A crop is a shift by up to `MARGIN` pixels each way over a border of zeros (black, whatever normalisation comes later),
as is usual on CIFAR-10. Shift and flip are one choice of rows and columns, so that an image is moved once.
"""

import tensorflow as tf

from tfbio.data import randomness

__all__ = ["AUGMENTATIONS", "MARGIN", "apply", "draw"]

#: Names of the augmentations.
AUGMENTATIONS = ("flip", "crop", "flip_crop")

#: Width of the border of zeros, and the longest shift of a crop, in pixels.
MARGIN = 4


def draw(
    augmentation: str, batch_size: int, seed: int, epoch: int | tf.Tensor, index: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decides what happens to each image of a global batch.

    Args:
        augmentation: one of `AUGMENTATIONS`.
        batch_size: images in a full global batch.
        seed: the data's seed.
        epoch: the epoch, from 0.
        index: the batch's index in the epoch, from 0.

    Returns:
        whether to flip, shape `(batch_size,)`, bool; and the crop's upper left corner in the padded image, shape
        `(batch_size, 2)`, int32, in `[0, 2 * MARGIN]`, where `MARGIN` is the image as it was.
    """
    seed = randomness.key(seed, randomness.AUGMENTATION, epoch, index)

    def uniform(shape: list[int], choices: int, purpose: int) -> tf.Tensor:
        own_seed = tf.random.experimental.stateless_fold_in(seed, purpose, alg=randomness.ALGORITHM)
        return tf.random.stateless_uniform(
            shape, own_seed, maxval=choices, minval=0, dtype=tf.int32, alg=randomness.ALGORITHM
        )

    flips = tf.zeros([batch_size], tf.bool)
    corners = tf.fill([batch_size, 2], MARGIN)
    if "flip" in augmentation:
        flips = uniform([batch_size], choices=2, purpose=0) == 1
    if "crop" in augmentation:
        corners = uniform([batch_size, 2], choices=2 * MARGIN + 1, purpose=1)
    return flips, corners


def apply(images: tf.Tensor, flips: tf.Tensor, corners: tf.Tensor) -> tf.Tensor:
    """Crops images at their corners and flips them left to right.

    Args:
        images: shape `(batch, height, width, channels)`, any dtype.
        flips: which images to flip, shape `(batch,)`, bool.
        corners: corners of the crops as `draw` gives them, shape `(batch, 2)`, int32.

    Returns:
        the images' shape and dtype.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [MARGIN, MARGIN], [MARGIN, MARGIN], [0, 0]])
    rows = corners[:, :1] + tf.range(height)
    columns = corners[:, 1:] + tf.where(flips[:, tf.newaxis], tf.range(width)[::-1], tf.range(width))
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
