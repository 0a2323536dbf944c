"""The tutorial's four distortions as graph functions: images are enlarged, cropped, mirrored, brightened at random.

What is drawn for an image depends on its file's content, the seed and the version's number, and on nothing else: not
on the file's name, its place in a batch, the threads, or what was distorted before.
"""

from __future__ import annotations

import math

import tensorflow as tf

from extract.settings import Distortion


def draw(fingerprint: tf.Tensor, distortion: Distortion) -> tf.Tensor:
    """float32 [5], each uniform in [0, 1): for the scale, the crop's top and left, the flip, and the brightness.

    `fingerprint` is that of the image file's bytes, uint8 [8]. All five are drawn whatever kinds of distortions are on,
    so that one kind more changes nothing about the others.
    """
    stream = tf.constant(distortion.seed << 32 | distortion.version, tf.int64)
    # One algorithm, by name: the default may be another on another device.
    return tf.random.stateless_uniform([5], tf.stack([tf.bitcast(fingerprint, tf.int64), stream]), alg="philox")


def distort(image: tf.Tensor, height: int, width: int, distortion: Distortion, draws: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3] to uint8 [height, width, 3], by `draws` as `draw` gives them.

    The image is resized, bilinear, to 1 + crop/100 times height and width, times a number between 1 and 1 + scale/100;
    height x width of that are cut out; mirrored or not; multiplied by a number between 1 -/+ brightness/100; rounded,
    and clipped at 255.
    """
    scale, top, left, flip, brightness = tf.unstack(draws)
    enlargement = (1 + distortion.random_crop / 100) * (1 + distortion.random_scale / 100 * scale)
    enlarged = tf.cast(tf.round(enlargement * [height, width]), tf.int32)
    # An offset never gets past the last: a draw is 2^-23 short of 1, which is more than rounding adds.
    corner = tf.cast([top, left] * tf.cast(enlarged - [height, width] + 1, tf.float32), tf.int32)
    pixels = tf.image.resize(image, enlarged)
    pixels = tf.slice(pixels, tf.concat([corner, [0]], 0), [height, width, 3])
    if distortion.flip_left_right:
        pixels = tf.cond(flip < 0.5, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    pixels *= 1 + distortion.random_brightness / 100 * (2 * brightness - 1)
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def enough(side: int, distortion: Distortion) -> int:
    """How much detail of a photo leaves as much of an image at its largest as `side` pixels do of a plain one."""
    return math.ceil(side * (1 + distortion.random_crop / 100) * (1 + distortion.random_scale / 100))
