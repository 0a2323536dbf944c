"""Where the layer is fitted."""

from __future__ import annotations

import tensorflow as tf

from cache.errors import UserError


def choose(name: str) -> str:
    """TensorFlow's name of the device: for `auto` the first GPU, where there is one. Raises UserError for none."""
    # Ten bits, to which newer GPUs would round before they multiply, are too few for a line search.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_logical_devices("GPU") if name != "cpu" else []
    if name == "gpu" and not gpus:
        raise UserError("TensorFlow sees no GPU; leave --device out, or install TensorFlow's CUDA packages")
    if gpus:  # sums that threads share out anew each time would round differently; on a processor none do
        tf.config.experimental.enable_op_determinism()
    return gpus[0].name if gpus else "/CPU:0"
