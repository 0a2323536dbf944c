"""The classifier in the forms that others load: a SavedModel, and the tutorial's three.

The SavedModel takes encoded images: it carries the backbone with its preprocessing out of the cache, so that serving
does what training saw. The tutorial's frozen graph and SavedModel carry the backbone alone, and take images that were
decoded and resized; its checkpoint holds the layer and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cache import sums
from cache.columns import damage
from cache.errors import CacheError, UserError
from cache.reader import Cache
from train import trusted
from train.head import Head
from train.names import NETWORK, PLACEHOLDER

# What TensorFlow makes of a full disk, of one that may not be written, of a folder that is gone, of a limit on files.
_REFUSALS = (
    tf.errors.ResourceExhaustedError,
    tf.errors.PermissionDeniedError,
    tf.errors.NotFoundError,
    tf.errors.OutOfRangeError,
)

LABELS_ASSET = Path("assets.extra", "labels.txt")  # below a SavedModel: where TensorFlow has others put their files


class Classifier(tf.Module):
    """Photos to probabilities: the backbone with its preprocessing, then the softmax layer."""

    def __init__(self, cache: Cache, head: Head):
        super().__init__()
        self.backbone = load_backbone(cache)
        self._head, self._image = head, tf.TensorSpec(_image_shape(cache), tf.uint8)
        self._labels = [os.fsencode(label) for label in cache.labels]
        # For those who decode each image on its own, such as `python -m train.predict`: uint8 [N, H, W, 3].
        decoded = tf.TensorSpec([None, *_image_shape(cache)], tf.uint8, "images")
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
        # Decoding and resizing pixels run on processors only: what lies between would send each image there and back.
        with tf.device("/CPU:0"):
            return tf.map_fn(function, images, fn_output_signature=self._image)

    def _outputs(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        scores = probabilities(self.backbone, self._head, tf.cast(images, tf.float32) / 255)
        return {
            "probabilities": scores,
            "label": tf.gather(self._labels, tf.argmax(scores, axis=1)),
        }


def write_saved_model(folder: Path, cache: Cache, head: Head) -> None:
    """The whole classifier as the SavedModel `folder`, which appears whole or not at all.

    Signatures: `serving_default` takes `image_bytes` string [N], encoded images of any format that the extraction
    reads; `images` takes `images` uint8 [N, h, w, 3]. Both return `probabilities` float32 [N, C] and `label`
    string [N]. The loaded object has the same as methods, `classify` and `classify_images`, and `classify_decoded`
    for images that its `backbone.decode` has brought to the network's size.
    Raises UserError where it cannot be written.
    """
    model = Classifier(cache, head)
    signatures = {"serving_default": model.classify, "images": model.classify_images}
    with _replacing(folder) as temporary:
        tf.saved_model.save(model, str(temporary), signatures=signatures)
        (temporary / LABELS_ASSET).parent.mkdir()
        write_labels(temporary / LABELS_ASSET, cache.labels)


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """One label per line, in the order of the outputs."""
    write_file(path, b"".join(os.fsencode(label) + b"\n" for label in labels))


def write_frozen_graph(path: Path, cache: Cache, head: Head, final_tensor_name: str) -> None:
    """The tutorial's --output_graph: a frozen GraphDef, without preprocessing, variables or functions.

    Its placeholder `Placeholder` takes float32 [N, H, W, 3] in [0, 1], and `final_tensor_name` holds the
    probabilities, float32 [N, C]. Raises UserError where it cannot be written.
    """
    backbone = load_backbone(cache)

    @tf.function(input_signature=[_batch_spec(cache, PLACEHOLDER)], autograph=False)
    def classify(images: tf.Tensor) -> tf.Tensor:
        return probabilities(backbone, head, images)

    frozen = convert_variables_to_constants_v2(classify.get_concrete_function(), aggressive_inlining=True)
    with tf.Graph().as_default() as graph:
        # Imported beneath a scope of its own, no operation of the backbone can hold the name that was asked for.
        placeholder = tf.compat.v1.placeholder(tf.float32, frozen.inputs[0].shape, PLACEHOLDER)
        (scores,) = tf.import_graph_def(
            frozen.graph.as_graph_def(),
            {frozen.inputs[0].name: placeholder},
            [frozen.outputs[0].name],
            NETWORK,
        )
        tf.identity(scores, name=final_tensor_name)
    graph_def = graph.as_graph_def()
    replaced = f"{NETWORK}/{frozen.inputs[0].op.name}"  # its own placeholder, which nothing reads any more
    graph_def.node.remove(next(node for node in graph_def.node if node.name == replaced))
    write_file(path, graph_def.SerializeToString())


def write_tutorial_saved_model(folder: Path, cache: Cache, head: Head) -> None:
    """The tutorial's --saved_model_dir: `serving_default` takes `image` float32 [N, H, W, 3] in [0, 1] and returns
    `prediction` float32 [N, C]. Raises UserError where it cannot be written."""
    module = tf.Module()
    module.backbone = load_backbone(cache)

    @tf.function(input_signature=[_batch_spec(cache, "image")], autograph=False)
    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"prediction": probabilities(module.backbone, head, image)}

    module.classify = classify
    with _replacing(folder) as temporary:
        tf.saved_model.save(module, str(temporary), signatures=classify)


def write_checkpoint(path: Path, head: Head) -> None:
    """The tutorial's --checkpoint_path: a TensorFlow checkpoint of `weights` float32 [D, C] and `biases` float32 [C].

    Raises UserError where it cannot be written.
    """
    layer = tf.train.Checkpoint(weights=tf.Variable(head.weights), biases=tf.Variable(head.biases))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        layer.write(str(path))


def load_backbone(cache: Cache) -> tf.Module:
    """The cache's backbone with its preprocessing.

    Raises CacheError where it is missing, not what its checksums say, or would do more than compute.
    """
    if reason := sums.damage(cache.backbone_dir):
        raise damage(cache.backbone_dir, reason)
    trusted.check(cache.backbone_dir)
    try:
        return tf.saved_model.load(str(cache.backbone_dir))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CacheError(
            f"cannot load the backbone in {cache.backbone_dir} ({reason}); delete it and run the extraction again"
        ) from None


def write_file(path: Path, content: bytes) -> None:
    """Replaces `path`, which then has all of `content` or what it had before. Raises UserError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal to write `path` into a UserError."""
    try:
        yield
    except (OSError, *_REFUSALS) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; free some space or choose another place") from None


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the place of `folder` when all went well."""
    folder = folder.absolute()
    unique = secrets.token_hex(4)
    temporary, old = (folder.with_name(f".{folder.name}.{unique}.{kind}") for kind in ("tmp", "old"))
    with writing(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if folder.exists():  # a folder that is not empty cannot be renamed over
                os.rename(folder, old)
            try:
                os.rename(temporary, folder)
            except BaseException:
                if old.exists():
                    os.rename(old, folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def probabilities(backbone: tf.Module, head: Head, images: tf.Tensor) -> tf.Tensor:
    """float32 [N, C] from float32 [N, H, W, 3] in [0, 1]; the head becomes constants of the graph."""
    return tf.nn.softmax(tf.matmul(backbone.features(images), head.weights) + head.biases)


def _image_shape(cache: Cache) -> tuple[int, int, int]:
    return cache.module.image_height, cache.module.image_width, 3


def _batch_spec(cache: Cache, name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None, *_image_shape(cache)], tf.float32, name)
