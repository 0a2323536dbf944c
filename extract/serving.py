"""The backbone as a SavedModel with its preprocessing inside: all that the trainer needs to export a classifier."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import tensorflow as tf

from cache import columns, sums
from cache.errors import UserError
from extract import decode
from extract.backbone import Backbone


def save(backbone: Backbone, directory: Path) -> None:
    """Writes the SavedModel `directory`, which appears whole or not at all.

    Its functions: `decode` (string scalar, an image file's bytes, to uint8 [H, W, 3]), `resize` (uint8 [h, w, 3] to
    uint8 [H, W, 3]) and `features` (float32 [N, H, W, 3] in [0, 1] to float32 [N, D]). It holds no variables.
    Raises UserError when it cannot be written.
    """
    height, width = backbone.image_size
    module = tf.Module()
    module.decode = tf.function(
        lambda encoded: decode.preprocess(encoded, height, width),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    module.resize = tf.function(
        lambda image: decode.resize(image, height, width),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
        autograph=False,
    )
    module.features = tf.function(
        backbone.features,
        input_signature=[tf.TensorSpec([None, height, width, 3], tf.float32)],
        autograph=False,
    )
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        tf.saved_model.save(module, str(temporary))
        sums.write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            columns.sync(path)
        if not (directory / "saved_model.pb").exists():  # what an incomplete copy left is in the way
            shutil.rmtree(directory, ignore_errors=True)
        os.replace(temporary, directory)
        columns.sync(directory.parent)
    except (OSError, tf.errors.OpError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if (directory / "saved_model.pb").exists():  # another extraction was faster
            return
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {directory}: {reason}; free some space or choose another --cache_dir") from None
