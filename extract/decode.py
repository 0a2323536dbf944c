"""The bytes of an image file to upright pixels of a network's size: graph functions, part of every classifier too."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from extract import exif

# The name of what `preprocess` computes. Another result for any image needs another name: bottlenecks made in either
# way must not meet in one cache.
PREPROCESSING = "upright, bilinear, uint8 (3)"

_KINDS = r"\CPNG\r\n\C*|GIF8\C*|BM\C*|RIFF\C{4}WEBP"  # beside JPEG; \C is any byte in RE2
# A BMP of 8 bits a pixel (bytes 28 and 29). TensorFlow reads the numbers of its colours as shades of grey.
_PALETTE_BMP = r"BM\C{26}\x08\x00\C*"


def preprocess(encoded: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """An image file's bytes (string scalar) to the input of the network, uint8 [height, width, 3].

    A JPEG of many times that size is decoded at a fraction of its detail that still leaves four times the network's
    size. Twice would be enough to resize from, but moves a vector further from that of the whole photo than rounding
    does.
    """
    return resize(decode(encoded, 4 * max(height, width)), height, width)


def decode(
    encoded: tf.Tensor, enough: int | None = None, side: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_min
) -> tf.Tensor:
    """A JPEG, PNG, GIF, BMP or WebP file's bytes (string scalar) to its upright pixels, uint8 [h, w, 3].

    A JPEG whose `side`, by default the shorter one, has at least 2, 4 or 8 times `enough` pixels is decoded at that
    fraction of its size. Of an animation, the first frame counts. Transparency is dropped; 16 bits a channel become 8.
    Raises tf.errors.InvalidArgumentError for anything else.
    """
    image, may_be_turned = tf.cond(
        tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff",
        lambda: (_decode_jpeg(encoded, enough, side), exif.may_be_in(encoded)),
        lambda: (_decode_other(encoded), tf.constant(True)),
    )
    orientation = tf.cond(may_be_turned, lambda: exif.orientation(encoded), lambda: tf.constant(1))
    image.set_shape([None, None, 3])
    return tf.cond(orientation > 1, lambda: _upright(image, orientation), lambda: image)


def resize(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """uint8 [h, w, 3] to uint8 [height, width, 3], bilinear, whatever the aspect ratio, as the tutorial does."""
    resized = tf.image.resize(image, (height, width))
    return tf.cast(tf.round(tf.ensure_shape(resized, (height, width, 3))), tf.uint8)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation: 2 mirrors, 3 turns, 4 flips the image; 5 to 8 are 1 to 4 of the transposed image."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    turn = (orientation - 1) % 4
    image = tf.cond((turn == 1) | (turn == 2), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(turn >= 2, lambda: tf.reverse(image, [0]), lambda: image)


def _decode_jpeg(encoded: tf.Tensor, enough: int | None, side: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    if enough is None:
        return tf.io.decode_jpeg(encoded, channels=3)
    pixels = side(tf.io.extract_jpeg_shape(encoded)[:2])
    # libjpeg's inverse DCT computes these scales at a fraction of the cost. Its `ratio` must be a constant.
    scale = tf.reduce_sum(tf.cast(pixels >= [2 * enough, 4 * enough, 8 * enough], tf.int32))
    return tf.switch_case(scale, [lambda r=r: tf.io.decode_jpeg(encoded, channels=3, ratio=r) for r in (1, 2, 4, 8)])


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    # Which kinds are read is decided here: `decode_image` reads more or fewer with each version of TensorFlow.
    is_known = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, 12), _KINDS)
    with tf.control_dependencies([tf.debugging.Assert(is_known, ["not a JPEG, PNG, GIF, BMP or WebP image"])]):
        encoded = tf.identity(encoded)
    is_palette_bmp = tf.strings.regex_full_match(encoded, _PALETTE_BMP)
    is_webp = tf.strings.substr(encoded, 0, 4) == b"RIFF"
    return tf.switch_case(
        tf.where(is_palette_bmp, 0, tf.where(is_webp, 1, 2)),
        [
            lambda: _decode_palette_bmp(encoded),
            # A transparent one cannot be asked for three channels.
            lambda: tf.io.decode_image(encoded, channels=0, expand_animations=False)[:, :, :3],
            lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
        ],
    )


def _decode_palette_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3]. The palette follows the header, with 4 bytes a colour: blue, green, red, unused."""
    compression = tf.io.decode_raw(tf.strings.substr(encoded, 30, 4), tf.int32)[0]
    with tf.control_dependencies([tf.debugging.assert_equal(compression, 0, "compressed")]):
        numbers = tf.io.decode_bmp(encoded, channels=0)[:, :, 0]
    header = tf.io.decode_raw(tf.strings.substr(encoded, 14, 4), tf.int32)[0]
    first_pixel = tf.io.decode_raw(tf.strings.substr(encoded, 10, 4), tf.int32)[0]
    colours = tf.io.decode_raw(tf.strings.substr(encoded, 14 + header, first_pixel - 14 - header), tf.uint8)
    palette = tf.reverse(tf.reshape(colours, (-1, 4))[:, :3], [1])
    return tf.gather(palette, tf.cast(numbers, tf.int32))
