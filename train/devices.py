"""Where the layer is fitted."""

from __future__ import annotations

import tensorflow as tf

from cache.errors import UserError

CHOICES = ("auto", "cpu", "gpu")


def choose(name: str) -> str:
    """TensorFlow's name of the device: for `auto` the first GPU, where there is one. Raises UserError for none."""
    gpus = tf.config.list_logical_devices("GPU") if name != "cpu" else []
    if name == "gpu" and not gpus:
        raise UserError("TensorFlow sees no GPU; leave --device out, or install TensorFlow's CUDA packages")
    return gpus[0].name if gpus else "/CPU:0"
