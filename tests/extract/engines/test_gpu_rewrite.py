"""What grappler makes of our graphs for a GPU, reported by grappler itself on a machine without a GPU."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import device_properties_pb2, meta_graph_pb2
from tensorflow.python.eager import context
from tensorflow.python.eager.wrap_function import function_from_graph_def
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import cluster, tf_optimizer

from extract import backbones
from extract.engines import devices
from extract.engines.engine import of_pixels
from tests import modules

GPU = "/job:localhost/replica:0/task:0/device:GPU:0"


def rewritten(backbone, count, architecture="8.0"):
    """The graph of the backbone on `count` images as it would run on a GPU of that compute capability."""
    spec = tf.TensorSpec([count, *backbone.image_size, 3], tf.uint8)
    traced = tf.function(of_pixels(backbone), input_signature=[spec], autograph=False)
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function(), aggressive_inlining=True)
    graph = meta_graph_pb2.MetaGraphDef(graph_def=frozen.graph.as_graph_def())
    for node in graph.graph_def.node:
        node.device = GPU
    signature = graph.signature_def["serving_default"]
    for side, [tensor] in ((signature.inputs, frozen.inputs), (signature.outputs, frozen.outputs)):
        info = meta_graph_pb2.TensorInfo(name=tensor.name, dtype=tensor.dtype.as_datatype_enum)
        info.tensor_shape.CopyFrom(tensor.shape.as_proto())
        side["it"].CopyFrom(info)
    gpu = device_properties_pb2.NamedDevice(name=GPU)
    gpu.properties.type, gpu.properties.num_cores, gpu.properties.frequency = "GPU", 100, 1400
    gpu.properties.environment.update(architecture=architecture, cuda="12050", cudnn="90300")
    with devices.running_in("mixed", ["GPU:0"]):
        config = context.context().config
    return tf_optimizer.OptimizeGraph(config, graph, cluster=cluster.Cluster(devices=[gpu]))


def run(graph, images):
    for node in graph.node:
        node.device = ""
    [placeholder] = [node.name for node in graph.node if node.op == "Placeholder"]
    used = {name.partition(":")[0] for node in graph.node for name in node.input}
    [last] = [node.name for node in graph.node if node.name not in used]
    [vectors] = function_from_graph_def(graph, [f"{placeholder}:0"], [f"{last}:0"])(images)
    return vectors.numpy()


def types(graph, operation):
    return Counter(tf.as_dtype(node.attr["T"].type).name for node in graph.node if node.op == operation)


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    # Otherwise grappler looks for real GPUs.
    monkeypatch.setenv("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_SIMULATE_GPU", "1")


def digits(count, side):
    """Scans of handwritten digits, enlarged: uint8 [count, side, side, 3]."""
    from sklearn.datasets import load_digits

    scans = load_digits().images[:: 1797 // count][:count, :, :, None]  # of 17 shades
    pixels = tf.image.resize(255 - scans * (255 / 16), (side, side))
    return tf.cast(tf.round(tf.repeat(pixels, 3, axis=-1)), tf.uint8)


def test_mixed_precision_reaches_every_layer_and_changes_a_bottleneck_little():
    backbone = modules.efficientnet_lite()
    images = digits(4, side=224)
    graph = rewritten(backbone, len(images))
    assert types(graph, "Conv2D") == {"float16": 33}
    assert types(graph, "DepthwiseConv2dNative") == {"float16": 16}
    # To float16 once, after the input, and back once: weights are converted beforehand.
    casts = Counter(tf.as_dtype(node.attr["DstT"].type).name for node in graph.node if node.op == "Cast")
    assert casts == {"float16": 1, "float32": 2}
    mixed, exact = run(graph, images), of_pixels(backbone)(images).numpy()
    cosines = (mixed * exact).sum(1) / np.linalg.norm(mixed, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() > 0.99
    assert cosines.mean() > 0.999
    assert (mixed != exact).any()


def test_batch_norms_of_any_module_are_folded_into_its_convolutions(tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    blocks = [(layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization()) for _ in range(3)]
    flat = [layer for block in blocks for layer in block]
    model = keras.Sequential([keras.Input((16, 16, 3)), *flat, layers.GlobalAveragePooling2D()])
    for _, norm in blocks:  # statistics as after training
        norm.set_weights([np.random.default_rng(1).uniform(0.5, 2, 8) for _ in norm.get_weights()])
    model.export(tmp_path / "module", verbose=False)
    backbone = backbones.load(str(tmp_path / "module"))
    graph = rewritten(backbone, 2)
    assert types(graph, "Conv2D") == {"float16": 3}
    for operation in ("FusedBatchNormV3", "Rsqrt", "Sub", "RealDiv"):
        assert not types(graph, operation), operation
    images = tf.cast(modules.random_images(2) * 255, tf.uint8)
    np.testing.assert_allclose(run(graph, images), model(tf.cast(images, tf.float32) / 255), rtol=0.02)


def test_a_gpu_without_tensor_cores_keeps_float32():
    graph = rewritten(modules.efficientnet_lite(), 2, architecture="6.1")
    assert types(graph, "Conv2D") == {"float32": 33}
