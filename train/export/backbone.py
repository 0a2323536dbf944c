"""The cache's backbone, loaded after what it may do was checked, and with a head on top."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from cache import manifest
from cache.errors import CacheError, damage, first_line
from cache.layout import BackboneInfo
from cache.plain_path import plain
from cache.reader import Cache
from train.export import allowlist
from train.solvers.head import Head


def load_backbone(cache: Cache) -> tf.Module:
    """The cache's backbone with its preprocessing.

    Raises CacheError if it is missing, differs from its checksums, or has operations beyond computing.
    """
    if reason := manifest.damage(cache.backbone_dir):
        raise damage(cache.backbone_dir, reason)
    allowlist.check(cache.backbone_dir)
    try:
        with plain(cache.backbone_dir) as path:
            backbone = tf.saved_model.load(path)
        _check_functions(backbone, cache.backbone)
    except (OSError, TypeError, ValueError, KeyError, tf.errors.OpError) as error:
        raise CacheError(
            f"cannot load the backbone in {cache.backbone_dir} ({first_line(error)}); delete it and run the extraction "
            "again"
        ) from None
    return backbone


def _check_functions(backbone: tf.Module, info: BackboneInfo) -> None:
    """Raises ValueError where a function is missing, TypeError or ValueError where it has other types than `info`."""
    shape = image_shape(info)
    functions = {
        "decode": (tf.TensorSpec([], tf.string), tf.TensorSpec(shape, tf.uint8)),
        "resize": (tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec(shape, tf.uint8)),
        "features": (tf.TensorSpec([None, *shape]), tf.TensorSpec([None, info.dimension])),
    }
    for name, (takes, gives) in functions.items():
        function: Any = getattr(backbone, name, None)
        if not hasattr(function, "get_concrete_function"):
            raise ValueError(f"it has no function {name}")
        outputs = function.get_concrete_function(takes).structured_outputs
        if not (tf.is_tensor(outputs) and gives.is_compatible_with(outputs)):
            raise ValueError(f"its function {name} does not give {gives.dtype.name} {list(gives.shape)}")


def probabilities(backbone: tf.Module, head: Head, images: tf.Tensor) -> tf.Tensor:
    """float32 [N, C] from images float32 [N, H, W, 3] in [0, 1]; the head becomes constants of the graph."""
    return tf.nn.softmax(tf.matmul(backbone.features(images), head.weights) + head.biases)


def image_shape(backbone: BackboneInfo) -> tuple[int, int, int]:
    return backbone.image_height, backbone.image_width, 3
