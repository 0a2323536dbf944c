"""Gives the backbone of a cache a function `thumbnail`, or takes it away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from cache import layout, manifest


def encoded(content: tf.Tensor) -> tf.Tensor:
    """A photo as a JPEG file of its own size: the tests' photos are small and upright."""
    return tf.io.encode_jpeg(tf.io.decode_image(content, channels=3, expand_animations=False), quality=85)


def set_thumbnail(cache_dir: Path, function: Callable[[tf.Tensor], tf.Tensor] | None = encoded) -> Path:
    """Writes the backbone in `cache_dir` again, with `function` (string scalar to string scalar) as its `thumbnail`.

    None leaves it without one, as earlier versions wrote it. Returns `cache_dir`.
    """
    [directory] = layout.directories(cache_dir)
    folder = directory / layout.BACKBONE
    backbone, module = tf.saved_model.load(str(folder)), tf.Module()
    module.resize, module.decode, module.features = backbone.resize, backbone.decode, backbone.features
    if function is not None:
        module.thumbnail = tf.function(function, input_signature=[tf.TensorSpec([], tf.string)])
    tf.saved_model.save(module, str(folder))
    manifest.write(folder)
    return cache_dir
