"""Files to batches of pixels: ours beside a bare tf.data map, which does nothing but decode and resize."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from benchmarks import measure, photos
from benchmarks.measure import Options, Result
from cache import process
from cache.photos import Photos
from extract.batches import batches

SUITE = "decode"
SIZE = (224, 224)
BATCH = 32
PHOTOS, BIG_PHOTOS = 6000, 192  # in a turn: so many that tracing the graph, which each turn does, hardly counts
DISTINCT_BIG_PHOTOS = 16


def small(options: Options) -> Iterator[Result]:
    """Photos as they are. The tf.data map is the limit; Pillow, one photo at a time, is what a simple script does."""
    count = options.scaled(PHOTOS, least=8)
    sample = photos.sample(options, count)
    subset = photos.files(sample)[:: max(1, len(sample) // options.scaled(200, least=8))]
    figures = measure.turns(
        {
            "ours": measure.rate(count, lambda: ours(sample, count)),
            "tf.data": measure.rate(count, lambda: bare(sample, count, _decode_jpeg)),
            "Pillow": measure.rate(len(subset), lambda: pillow(subset)),
        },
        options.repeats,
    )
    for name, reference, target in (("tf.data", "bare tf.data map", 0.9), ("Pillow", "Pillow, one at a time", None)):
        case = "photos as they are"
        yield Result(SUITE, case, "images/s", figures["ours"], reference, figures[name], target=target)


def big(options: Options) -> Iterator[Result]:
    """Photos as large as a camera's, far larger than the input of any backbone."""
    megapixels = max(0.1, 12 * min(1.0, options.scale))
    sample = photos.big(options, options.scaled(DISTINCT_BIG_PHOTOS, least=4), megapixels)
    count = options.scaled(BIG_PHOTOS, least=4)
    figures = measure.turns(
        {
            "ours": measure.rate(count, lambda: ours(sample, count)),
            "whole": measure.rate(count, lambda: bare(sample, count, _decode_image)),
        },
        options.repeats,
    )
    case, reference = f"photos of {megapixels:g} megapixels", "tf.data, decode_image whole"
    yield Result(SUITE, case, "images/s", figures["ours"], reference, figures["whole"])


CASES = (small, big)


def ours(sample: Photos, count: int) -> None:
    """Decodes `count` photos; starts again at the first one if the sample has fewer."""
    paths = sample.paths.take(np.resize(np.arange(len(sample)), count))
    for _ in batches(sample.image_dir, paths, SIZE, batch_size=BATCH, threads=process.cores()):
        pass


def bare(sample: Photos, count: int, decode: Callable[[tf.Tensor], tf.Tensor]) -> None:
    """The same photos, threads and batches. Its output is uint8 as well, so that both move as many bytes."""

    def load(path: tf.Tensor) -> tf.Tensor:
        pixels = decode(tf.io.read_file(path))
        return tf.cast(tf.round(tf.image.resize(pixels, SIZE)), tf.uint8)

    dataset = tf.data.Dataset.from_tensor_slices(photos.files(sample)).repeat().take(count)
    for _ in dataset.map(load, num_parallel_calls=process.cores()).batch(BATCH).prefetch(2):
        pass


def pillow(paths: list[str]) -> None:
    """Decodes and resizes one photo after the other."""
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BILINEAR))


def _decode_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(encoded, channels=3)


def _decode_image(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)
