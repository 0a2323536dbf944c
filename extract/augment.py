"""The tutorial's four random changes as graph functions: photos are enlarged, cropped, mirrored, brightened.

What is drawn for a photo depends only on the content of its file, the seed and the number of the augmentation: not on
the name of the file, its place in a batch, the threads, or what was augmented before.
"""

from __future__ import annotations

import math

import tensorflow as tf

from extract.settings import Augmentation


def draw(fingerprint: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """float32 [5], each uniform in [0, 1): for the scale, the crop's top and left, the flip, and the brightness.

    `fingerprint` is FarmHash's of the file's bytes, uint8 [8]. All five numbers are drawn whatever kinds of changes are
    on, so that turning one on changes nothing about the others.
    """
    stream = tf.constant(augmentation.seed << 32 | augmentation.number, tf.int64)
    # The algorithm is named since the default may differ from device to device.
    return tf.random.stateless_uniform([5], tf.stack([tf.bitcast(fingerprint, tf.int64), stream]), alg="philox")


def augment(image: tf.Tensor, height: int, width: int, augmentation: Augmentation, draws: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3] to uint8 [height, width, 3], by `draws` as `draw` gives them.

    The image is resized (bilinear) to 1 + crop/100 times height and width, times a number from 1 to 1 + scale/100. Then
    height x width pixels are cut out, mirrored or not, multiplied by a number from 1 - brightness/100 to
    1 + brightness/100, rounded, and clipped at 255.
    """
    scale, top, left, flip, brightness = tf.unstack(draws)
    enlargement = (1 + augmentation.random_crop / 100) * (1 + augmentation.random_scale / 100 * scale)
    enlarged = tf.cast(tf.round(enlargement * [height, width]), tf.int32)
    # The offset never exceeds the last possible one: a draw is at most 1 - 2^-23, and rounding adds less than that.
    corner = tf.cast([top, left] * tf.cast(enlarged - [height, width] + 1, tf.float32), tf.int32)
    pixels = tf.image.resize(image, enlarged)
    pixels = tf.slice(pixels, tf.concat([corner, [0]], 0), [height, width, 3])
    if augmentation.flip_left_right:
        pixels = tf.cond(flip < 0.5, lambda: tf.reverse(pixels, [1]), lambda: pixels)
    pixels *= 1 + augmentation.random_brightness / 100 * (2 * brightness - 1)
    return tf.saturate_cast(tf.round(pixels), tf.uint8)


def enough(side: int, augmentation: Augmentation) -> int:
    """The pixels of a photo's side that leave an enlarged image as much detail as `side` pixels leave a plain one."""
    return math.ceil(side * (1 + augmentation.random_crop / 100) * (1 + augmentation.random_scale / 100))
