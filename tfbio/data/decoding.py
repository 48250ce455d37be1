"""From an encoded photograph to a uint8 image of a given size, in graph.

JPEG is decoded and cropped in one operation, which spares the work on what is cropped away. What a file is follows from
its bytes, not its name: PNG, GIF (its first frame), BMP and WebP are decoded whole and cropped then; grey and CMYK
pictures become RGB where three channels are asked for. BMP files with a palette are refused, unless it is the grey
ramp, because TensorFlow takes the numbers of their colours for grey values. A camera's note on how it was held (EXIF)
changes nothing.

Which part of a picture is taken:

* at random: a part of 8 to 100 % of its area and of proportions from 3:4 to 4:3 (Szegedy et al. 2015,
  "Going deeper with convolutions"; the usual training crop on ImageNet);
* `"crop"`: the centre, as if its shorter side were resized to 8/7 of what is needed (256 for 224) and the middle of
  that cut out (Krizhevsky et al. 2012; the usual crop for evaluation);
* `"stretch"`: all of it, whatever its proportions (Bartunov et al. 2018 resize so, to 224 × 224).
"""

from collections.abc import Callable

import tensorflow as tf

__all__ = ["AUGMENTATIONS", "RESIZINGS", "decode"]

#: Names of the augmentations of photographs.
AUGMENTATIONS = ("flip", "random_resized_crop", "flip_random_resized_crop")

#: Ways to bring a picture to its size where it is not cropped at random.
RESIZINGS = ("crop", "stretch")

_AREAS = (0.08, 1.0)
_PROPORTIONS = (3 / 4, 4 / 3)
_CENTRAL = 224 / 256

#: Bytes of a BMP file up to the end of a palette of 256 colours, behind the longest header that there is.
_BMP_HEAD = 14 + 124 + 4 * 256


def decode(
    encoded: tf.Tensor, shape: tuple[int, int, int], resizing: str, augmentation: str | None, draw: tf.Tensor
) -> tf.Tensor:
    """Decodes one picture.

    Args:
        encoded: the bytes of a JPEG, PNG, GIF, BMP or WebP file, a scalar string.
        shape: height, width and channels of the result.
        resizing: one of `RESIZINGS`; without effect under a random crop.
        augmentation: one of `AUGMENTATIONS`, or None.
        draw: the random bits that decide about crop and flip, shape `(2,)`, int64.

    Returns:
        an image of that shape, uint8, resized bilinearly.

    Raises:
        tf.errors.InvalidArgumentError: (as an operation's error) the bytes are no picture, or one with a palette that
            TensorFlow does not look at.
    """
    augmentation = augmentation or ""

    def window(size: tf.Tensor) -> tf.Tensor:
        if "crop" in augmentation:
            return _random_window(size, draw)
        return _central_window(size, shape[:2]) if resizing == "crop" else tf.concat([[0, 0], size], 0)

    pixels = tf.cond(
        tf.io.is_jpeg(encoded), lambda: _jpeg(encoded, shape[2], window), lambda: _other(encoded, shape[2], window)
    )
    pixels = tf.ensure_shape(pixels, [None, None, shape[2]])
    # Bilinear weights keep values within 0 to 255, so that adding a half and cutting off rounds.
    image = tf.cast(tf.image.resize(pixels, shape[:2]) + 0.5, tf.uint8)
    if "flip" in augmentation:
        image = tf.cond(draw[0] % 2 == 0, lambda: tf.reverse(image, [1]), lambda: image)  # a slice takes far longer
    return tf.ensure_shape(image, shape)


def _jpeg(encoded: tf.Tensor, channels: int, window: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    size = tf.image.extract_jpeg_shape(encoded)[:2]
    return tf.image.decode_and_crop_jpeg(encoded, window(size), channels=channels)


def _other(encoded: tf.Tensor, channels: int, window: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    is_bmp = tf.strings.substr(encoded, 0, 2) == b"BM"
    with tf.control_dependencies([tf.cond(is_bmp, lambda: _has_no_palette(encoded), lambda: True)]):
        encoded = tf.identity(encoded)
    pixels = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    top, left, height, width = tf.unstack(window(tf.shape(pixels)[:2]))
    return pixels[top : top + height, left : left + width]


def _has_no_palette(bmp: tf.Tensor) -> tf.Tensor:
    """True, or an error if the pixels of a BMP file are numbers of colours that are not grey values as well."""

    # No further: the rest of a string is in TensorFlow's message where a part of it is not there.
    head = tf.io.decode_raw(tf.strings.substr(bmp, 0, _BMP_HEAD), tf.uint8)
    head = tf.cast(tf.pad(head, [[0, _BMP_HEAD - tf.size(head)]]), tf.int32)

    def number(place: int, size: int) -> tf.Tensor:
        return tf.reduce_sum(head[place : place + size] * [256**power for power in range(size)])

    def is_grey_ramp() -> tf.Tensor:
        palette = head[14 + number(14, 4) : number(10, 4)]  # between the headers and the pixels
        colours = tf.reshape(palette[: tf.size(palette) // 4 * 4], [-1, 4])[:, :3]
        ramp = tf.range(tf.shape(colours)[0])[:, tf.newaxis]
        return (tf.size(ramp) > 0) & (number(30, 4) == 0) & tf.reduce_all(colours == ramp)  # 0: no compression

    sound = tf.cond(number(28, 2) == 8, is_grey_ramp, lambda: True)
    with tf.control_dependencies([tf.Assert(sound, ["a BMP file with a palette of colours can't be decoded"])]):
        return tf.identity(sound)


def _random_window(size: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    """Top, left, height and width of a random part."""
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([size, [1]], 0),  # the number of channels is not looked at
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        draw,
        min_object_covered=0.0,
        aspect_ratio_range=_PROPORTIONS,
        area_range=_AREAS,
    )
    return tf.concat([begin[:2], extent[:2]], 0)


def _central_window(size: tf.Tensor, wanted: tuple[int, int]) -> tf.Tensor:
    """Top, left, height and width of the middle, in the proportions that are wanted."""
    wanted = tf.constant(wanted, tf.float32)
    scale = _CENTRAL * tf.reduce_min(tf.cast(size, tf.float32) / wanted)
    extent = tf.maximum(tf.cast(tf.round(scale * wanted), tf.int32), 1)
    return tf.concat([(size - extent) // 2, extent], 0)
