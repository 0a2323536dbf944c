"""The classifier as a SavedModel: photo in, probabilities out.

It takes encoded images. It carries the backbone with its preprocessing out of the cache, so that a photo becomes the
same bottleneck in serving as in the extraction.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from cache import files
from cache.plain_path import plain
from cache.reader import Cache
from train.export import labels
from train.export.backbone import image_shape, load_backbone, probabilities
from train.solvers.head import Head


class Classifier(tf.Module):
    """Photos to probabilities: the backbone with its preprocessing, then the head."""

    def __init__(self, cache: Cache, head: Head):
        super().__init__()
        shape = image_shape(cache.backbone)
        self.backbone = load_backbone(cache)
        self._head, self._image = head, tf.TensorSpec(shape, tf.uint8)
        self._labels = [os.fsencode(label) for label in cache.labels]
        # For callers that decode each image on its own, such as `python -m train.predict`: uint8 [N, H, W, 3].
        decoded = tf.TensorSpec([None, *shape], tf.uint8, "images")
        self.classify_decoded = tf.function(self._outputs, input_signature=[decoded], autograph=False)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def classify(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encoded images, string [N] -> `probabilities` float32 [N, C] and the top-1 `label` string [N]."""
        return self._outputs(self._each(self.backbone.decode, image_bytes))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def classify_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decoded images of any size, RGB, uint8 [N, h, w, 3] -> the same."""
        return self._outputs(self._each(self.backbone.resize, images))

    def _each(self, function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
        # Images are decoded and resized on processors only. Otherwise the operations between would be placed on a GPU,
        # and each image would go there and back.
        with tf.device("/CPU:0"):
            return tf.map_fn(function, images, fn_output_signature=self._image)

    def _outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = probabilities(self.backbone, self._head, tf.cast(images, tf.float32) / 255)
        return {
            "probabilities": scores,
            "label": tf.gather(self._labels, tf.argmax(scores, axis=1)),
        }


def write(folder: Path, cache: Cache, head: Head) -> None:
    """Writes the whole classifier as the SavedModel `folder`, which appears whole or not at all.

    Signatures: `serving_default` takes `image_bytes` string [N], encoded images of any format that the extraction
    reads; `images` takes `images` uint8 [N, h, w, 3]. Both return `probabilities` float32 [N, C] and `label` string
    [N]. The loaded object has the same as methods, `classify` and `classify_images`, and `classify_decoded` for images
    that its `backbone.decode` has brought to the network's size. Raises UserError when it cannot be written.
    """
    model = Classifier(cache, head)
    signatures = {"serving_default": model.classify, "images": model.classify_images}
    with files.replacing_folder(folder) as temporary:
        with plain(temporary) as path:
            tf.saved_model.save(model, path, signatures=signatures)
        labels.write(temporary / labels.ASSET, cache.labels)
