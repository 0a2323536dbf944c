"""A real cache of small coloured pictures, made through the cache's own interface with a tiny backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

import cache
from cache import index as indexes
from cache import layout, manifest
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer

LABELS = ["blue things", "green things", "red things"]
COLOURS = np.array([[60, 70, 190], [70, 180, 60], [200, 70, 60]])
HEIGHT, WIDTH, DIMENSION = 8, 6, 16


def make(root: Path, counts: Sequence[int] = (50, 50, 50), dtypes: Sequence[str] = ("f4",), noise: int = 40) -> Path:
    """`root`/cache and, for its images, `root`/photos; one shard per dtype. Returns the cache_dir."""
    paths = [f"{LABELS[c]}/{i:03}.png" for c, count in enumerate(counts) for i in range(count)]
    label_ids = np.repeat(np.arange(len(counts)), counts)
    write_photos(root / "photos", paths, label_ids, noise)
    directory = root / "cache" / "tiny-0123456789abcdef"
    module = layout.BackboneInfo("tiny", "identity", "0123456789abcdef", HEIGHT, WIDTH, "bilinear", DIMENSION)
    backbone = write_backbone(directory / layout.BACKBONE)
    pixels = tf.stack([backbone.decode((root / "photos" / path).read_bytes()) for path in paths])
    vectors = backbone.features(tf.cast(pixels, tf.float32) / 255).numpy()
    # Shards take turns, so that neighbours in the index lie in different files and in another order.
    shard_ids, shard_rows = np.arange(len(paths)) % len(dtypes), np.zeros(len(paths), np.int64)
    for shard_id, dtype in enumerate(dtypes):
        inside = np.flatnonzero(shard_ids == shard_id)[::-1]
        shard_rows[inside] = np.arange(len(inside))
        numbers = np.arange(len(inside))
        with Writer(directory, module.attributes()) as writer:
            strings = Strings.of([paths[i] for i in inside])
            writer.append(Rows(strings, numbers, numbers, inside.astype("u8"), vectors[inside].astype(dtype)))
    numbers = np.arange(len(paths))
    index = indexes.Index(
        str(root / "photos"),
        LABELS[: len(counts)],
        layout.shard_names(directory),
        Strings.of(paths),
        numbers,
        numbers,
        label_ids,
        shard_ids,
        shard_rows,
    )
    indexes.write(directory, module, index)
    return root / "cache"


def write_photos(root: Path, paths: Sequence[str], label_ids: np.ndarray, noise: int) -> None:
    """Pictures of their class's colour, each with its own cast and grain."""
    generator = np.random.default_rng(5)
    for path, label_id in zip(paths, label_ids, strict=True):
        size = generator.integers(5, 20, 2)
        pixels = COLOURS[label_id] + generator.normal(0, noise, 3) + generator.normal(0, 30, (*size, 3))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / path)


def write_backbone(folder: Path) -> tf.Module:
    """A SavedModel whose features are the mean colours of 2 x 2 patches times a matrix."""
    matrix = np.random.default_rng(3).normal(size=(12, DIMENSION)).astype(np.float32)
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def resize(image: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(tf.image.resize(image, (HEIGHT, WIDTH))), tf.uint8)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(content: tf.Tensor) -> tf.Tensor:
        return resize(tf.io.decode_image(content, channels=3, expand_animations=False))

    @tf.function(input_signature=[tf.TensorSpec([None, HEIGHT, WIDTH, 3], tf.float32)])
    def features(images: tf.Tensor) -> tf.Tensor:
        patches = tf.nn.avg_pool2d(images, (HEIGHT // 2, WIDTH // 2), (HEIGHT // 2, WIDTH // 2), "VALID")
        return tf.matmul(tf.reshape(patches, [-1, 12]), tf.constant(matrix))

    module.resize, module.decode, module.features = resize, decode, features
    tf.saved_model.save(module, str(folder))
    manifest.write(folder)
    return tf.saved_model.load(str(folder))


def open_with(root: Path, **settings: object) -> cache.Cache:
    """The opened cache that `make` writes with these settings."""
    return cache.open(make(root, **settings))  # type: ignore[arg-type]
