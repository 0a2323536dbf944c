"""Writes a backbone as a SavedModel with its preprocessing inside: all that training needs to export a classifier."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from cache import files, layout, manifest
from cache.plain_path import plain
from extract import decode
from extract.backbones.backbone import Backbone
from extract.thumbnails import thumbnail


def save(backbone: Backbone, directory: Path) -> None:
    """Writes the SavedModel `directory`, which appears whole or not at all, with the checksums of its files.

    It has these functions, and no variables:
    - `decode`: an image file's bytes (string scalar) to the upright pixels that the network takes, uint8 [H, W, 3];
    - `resize`: pixels of any size, uint8 [h, w, 3], to uint8 [H, W, 3];
    - `features`: images float32 [N, H, W, 3] in [0, 1] to bottlenecks float32 [N, D];
    - `thumbnail`: an image file's bytes (string scalar) to the bytes of a small JPEG (string scalar).

    `decode` and `thumbnail` raise tf.errors.InvalidArgumentError for bytes that are no image. A SavedModel that is
    there already stays. Raises UserError if the folder cannot be written.
    """
    with files.replacing_folder(directory, keep=layout.SAVED_MODEL) as folder:
        with plain(folder) as path:
            tf.saved_model.save(_with_preprocessing(backbone), path)
        manifest.write(folder)


def _with_preprocessing(backbone: Backbone) -> tf.Module:
    height, width = backbone.image_size
    file_bytes = tf.TensorSpec([], tf.string)
    pixels = tf.TensorSpec([None, None, 3], tf.uint8)
    images = tf.TensorSpec([None, height, width, 3], tf.float32)
    # Autograph has no Python control flow to convert here.
    module = tf.Module()
    module.decode = tf.function(
        lambda encoded: decode.preprocess(encoded, height, width), input_signature=[file_bytes], autograph=False
    )
    module.resize = tf.function(
        lambda image: decode.resize(image, height, width), input_signature=[pixels], autograph=False
    )
    module.features = tf.function(backbone.features, input_signature=[images], autograph=False)
    module.thumbnail = tf.function(thumbnail, input_signature=[file_bytes], autograph=False)
    return module
