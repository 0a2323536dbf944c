"""Files to batches: ours beside a bare tf.data map, which does nothing but decode and resize."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from benchmarks import measure, photos
from benchmarks.measure import Options, Result
from cache import command
from extract import decode
from extract.images import Images

SIZE = (224, 224)
BATCH = 32
PHOTOS, BIG_PHOTOS = 6000, 192  # a turn: what either pays once, to trace its graph, must not count
DISTINCT_BIG_PHOTOS = 16


def small(options: Options) -> Iterator[Result]:
    """Photos as they are: tf.data is the limit, Pillow one by one what a script does."""
    count = options.scaled(PHOTOS, least=8)
    images = photos.sample(options, count)
    few = photos.files(images)[:: max(1, len(images) // options.scaled(200, least=8))]
    figures = measure.turns(
        {
            "ours": measure.rate(count, lambda: ours(images, count)),
            "tf.data": measure.rate(count, lambda: bare(images, count, tf.io.decode_jpeg)),
            "Pillow": measure.rate(len(few), lambda: pillow(few)),
        },
        options.repeats,
    )
    ours_, bare_, pillow_ = figures.values()
    yield Result("decode", "photos as they are", "images/s", ours_, "bare tf.data map", bare_, 0.9)
    yield Result("decode", "photos as they are", "images/s", ours_, "Pillow, one at a time", pillow_)


def big(options: Options) -> Iterator[Result]:
    """Photos from a camera, far bigger than any network's input."""
    megapixels = max(0.1, 12 * min(1.0, options.scale))
    images = photos.big(options, options.scaled(DISTINCT_BIG_PHOTOS, least=4), megapixels)
    count = options.scaled(BIG_PHOTOS, least=4)
    figures = measure.turns(
        {
            "ours": measure.rate(count, lambda: ours(images, count)),
            "whole": measure.rate(count, lambda: bare(images, count, _decode_image)),
        },
        options.repeats,
    )
    yield Result(
        "decode",
        f"photos of {megapixels:g} megapixels",
        "images/s",
        figures["ours"],
        "tf.data, decode_image whole",
        figures["whole"],
    )


CASES = (small, big)


def ours(images: Images, count: int) -> None:
    """`count` photos, the same ones again where there are fewer."""
    paths = images.paths.take(np.resize(np.arange(len(images)), count))
    for _ in decode.batches(images.image_dir, paths, SIZE, BATCH, command.cores()):
        pass


def bare(images: Images, count: int, decode_file: Callable[..., tf.Tensor]) -> None:
    """The same photos, threads and batches, and uint8 as well, so that both move as many bytes."""

    def load(path: tf.Tensor) -> tf.Tensor:
        pixels = decode_file(tf.io.read_file(path), channels=3)
        return tf.cast(tf.round(tf.image.resize(pixels, SIZE)), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(photos.files(images)).repeat().take(count)
    for _ in dataset.map(load, num_parallel_calls=command.cores()).batch(BATCH).prefetch(2):
        pass


def pillow(paths: list[str]) -> None:
    from PIL import Image

    for path in paths:
        with Image.open(path) as picture:
            np.asarray(picture.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))


def _decode_image(encoded: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)
