"""The classifier in the tutorial's three forms: frozen graph, SavedModel, checkpoint.

The first two carry the backbone without its preprocessing, and take images that were decoded and resized; the
checkpoint holds the head and nothing else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cache import files
from cache.plain_path import plain
from cache.reader import Cache
from train.export.backbone import image_shape, load_backbone, probabilities
from train.export.names import NETWORK, PLACEHOLDER
from train.solvers.head import Head


def frozen_graph(cache: Cache, final_tensor_name: str) -> Callable[[Path, Head], None]:
    """Freezes the backbone, once for any number of heads. Returns a function that writes the frozen graph of a head.

    That is the tutorial's --output_graph: a GraphDef without preprocessing, variables or functions. Its placeholder
    `Placeholder` takes float32 [N, H, W, 3] in [0, 1], and `final_tensor_name` holds the probabilities, float32 [N, C].
    The function raises UserError when the graph cannot be written.
    """
    backbone = load_backbone(cache)
    weights = tf.TensorSpec([cache.backbone.dimension, len(cache.labels)], tf.float32, "weights")
    biases = tf.TensorSpec([len(cache.labels)], tf.float32, "biases")

    @tf.function(input_signature=[_batch_spec(cache, PLACEHOLDER), weights, biases], autograph=False)
    def classify(images: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tf.Tensor:
        return probabilities(backbone, Head(weights, biases), images)

    frozen = convert_variables_to_constants_v2(classify.get_concrete_function(), aggressive_inlining=True)
    with tf.Graph().as_default() as graph:
        # In a scope of its own, no operation of the backbone can have the output's name.
        placeholder = tf.compat.v1.placeholder(tf.float32, frozen.inputs[0].shape, PLACEHOLDER)
        (scores,) = tf.import_graph_def(
            frozen.graph.as_graph_def(),
            {frozen.inputs[0].name: placeholder},
            [frozen.outputs[0].name],
            NETWORK,
        )
        tf.identity(scores, name=final_tensor_name)
    graph_def = graph.as_graph_def()
    # Nothing reads the placeholder of the images any more. Those of the head make room for its constants.
    inputs = [f"{NETWORK}/{tensor.op.name}" for tensor in frozen.inputs]
    for node in [node for node in graph_def.node if node.name in inputs]:
        graph_def.node.remove(node)
    rest = graph_def.SerializeToString()

    def write(path: Path, head: Head) -> None:
        constants = tf.compat.v1.GraphDef()
        for name, values in zip(inputs[1:], (head.weights, head.biases), strict=True):
            node = constants.node.add(name=name, op="Const")
            node.attr["dtype"].type = tf.float32.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values, tf.float32))
        files.write(path, constants.SerializeToString() + rest)  # of two such messages in a row, the nodes add up

    return write


def write_saved_model(folder: Path, cache: Cache, head: Head) -> None:
    """The tutorial's --saved_model_dir: `serving_default` takes `image` float32 [N, H, W, 3] in [0, 1] and returns
    `prediction` float32 [N, C]. Raises UserError when it cannot be written."""
    module = tf.Module()
    module.backbone = load_backbone(cache)

    @tf.function(input_signature=[_batch_spec(cache, "image")], autograph=False)
    def classify(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"prediction": probabilities(module.backbone, head, image)}

    module.classify = classify
    with files.replacing_folder(folder) as temporary, plain(temporary) as path:
        tf.saved_model.save(module, path, signatures=classify)


def write_checkpoint(path: Path, head: Head) -> None:
    """The tutorial's --checkpoint_path: a TensorFlow checkpoint of `weights` float32 [D, C] and `biases` float32 [C].

    Each of its two files appears whole or not at all. Raises UserError when it cannot be written.
    """
    layer = tf.train.Checkpoint(weights=tf.Variable(head.weights), biases=tf.Variable(head.biases))
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(files.TEMPORARY, f".{path.name}.", path.parent) as folder:
            with plain(folder) as reachable:
                layer.write(os.path.join(reachable, "layer"))
            for file in sorted(Path(folder).iterdir()):  # .data-00000-of-00001, then .index
                files.sync(file)
                os.replace(file, path.with_name(path.name + file.name.removeprefix("layer")))
        files.sync(path.parent)


def _batch_spec(cache: Cache, name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None, *image_shape(cache.backbone)], tf.float32, name)
