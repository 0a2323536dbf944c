"""What grappler makes of our graphs for a GPU, told by grappler itself on a machine without one."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import device_properties_pb2, meta_graph_pb2
from tensorflow.python.eager import context
from tensorflow.python.eager.wrap_function import function_from_graph_def
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import cluster, tf_optimizer

from extract import backbone, decode, devices, engines, sample
from tests import modules

GPU = "/job:localhost/replica:0/task:0/device:GPU:0"


def rewritten(loaded, count, architecture="8.0"):
    """The graph of `count` images through the network as it would run on a GPU of that compute capability."""
    spec = tf.TensorSpec([count, *loaded.image_size, 3], tf.uint8)
    traced = tf.function(engines._forward(loaded), input_signature=[spec], autograph=False)
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
    # Grappler looks for real GPUs otherwise.
    monkeypatch.setenv("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_SIMULATE_GPU", "1")


def test_mixed_precision_reaches_every_layer_and_moves_a_vector_little(tmp_path):
    sample.write(tmp_path)
    files = sorted(tmp_path.glob("*/*"))[::450]
    loaded = backbone.load(backbone.DEFAULT)
    images = tf.stack([decode.preprocess(tf.io.read_file(str(file)), *loaded.image_size) for file in files])
    graph = rewritten(loaded, len(images))
    assert types(graph, "Conv2D") == {"float16": 33}
    assert types(graph, "DepthwiseConv2dNative") == {"float16": 16}
    # To float16 once, after the input, and back once: weights are converted beforehand.
    casts = Counter(tf.as_dtype(node.attr["DstT"].type).name for node in graph.node if node.op == "Cast")
    assert casts == {"float16": 1, "float32": 2}
    got, wanted = run(graph, images), engines._forward(loaded)(images).numpy()
    similar = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert similar.min() > 0.99 and similar.mean() > 0.999
    assert (got != wanted).any()


def test_batch_norms_of_any_module_are_folded_into_its_convolutions(tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 3)), *(_block() for _ in range(3)), layers.GlobalAveragePooling2D()])
    for layer in model.layers:
        for norm in getattr(layer, "layers", []):
            if isinstance(norm, layers.BatchNormalization):  # as after training
                norm.set_weights([np.random.default_rng(1).uniform(0.5, 2, 8) for _ in norm.get_weights()])
    model.export(tmp_path / "module", verbose=False)
    loaded = backbone.load(str(tmp_path / "module"))
    graph = rewritten(loaded, 2)
    assert types(graph, "Conv2D") == {"float16": 3}
    for operation in ("FusedBatchNormV3", "Rsqrt", "Sub", "RealDiv"):
        assert not types(graph, operation), operation
    images = tf.cast(modules.random_images(2) * 255, tf.uint8)
    np.testing.assert_allclose(run(graph, images), model(tf.cast(images, tf.float32) / 255), rtol=0.02)


def _block():
    import keras

    return keras.Sequential([keras.layers.Conv2D(8, 3, use_bias=False), keras.layers.BatchNormalization()])


def test_a_gpu_without_tensor_cores_keeps_float32():
    graph = rewritten(backbone.load(backbone.DEFAULT), 2, architecture="6.1")
    assert types(graph, "Conv2D") == {"float32": 33}
