"""Makes small modules in every format that `--module` takes, all of one network, and computes the network in numpy.

The network averages an image over a grid of four by four patches and sends the 48 numbers through a seeded random
projection and a tanh: every pixel counts, and no colour or place can stand in for another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from extract import backbones

GRID = 4


def reference(images: np.ndarray, dimension: int = 8, seed: int = 0) -> np.ndarray:
    """The features, float32 [N, dimension], of images float32 [N, H, W, 3]; H and W are multiples of four."""
    n, height, width, _ = images.shape
    pixels = images.astype(np.float64).reshape(n, GRID, height // GRID, GRID, width // GRID, 3)
    kernel, bias = parameters(dimension, seed)
    return np.tanh(pixels.mean(axis=(2, 4)).reshape(n, -1) @ kernel + bias).astype(np.float32)


def random_images(n: int, image_size: tuple[int, int] = (16, 16), seed: int = 1) -> np.ndarray:
    """Float32 [n, H, W, 3] in [0, 1]."""
    return np.random.default_rng(seed).random((n, *image_size, 3), dtype=np.float32)


@functools.cache
def efficientnet_lite() -> backbones.Backbone:
    """The built-in backbone, which takes a second to load."""
    return backbones.load(backbones.DEFAULT)


def make_tf2_hub_module(
    path: Path, image_size: tuple[int, int] | None = (16, 16), *, dimension: int = 8, seed: int = 0
) -> str:
    """A callable SavedModel, as TensorFlow Hub has them. Image size None leaves the size open."""
    module = _Module(dimension, seed)

    @tf.function
    def call(images: tf.Tensor, training: bool) -> tf.Tensor:
        # `training` has no default, and True gives another result.
        return network(images, module.kernel, module.bias) + (1.0 if training else 0.0)

    module.__call__ = call
    for training in (True, False):
        call.get_concrete_function(image_spec(image_size), training=training)
    tf.saved_model.save(module, str(path))
    return str(path)


def make_serving_module(
    path: Path, image_size: tuple[int, int] | None = (16, 16), *, name: str = "serving_default"
) -> str:
    """A SavedModel with a signature and nothing callable."""
    module = _Module(dimension=8, seed=0)
    return save_signature(
        path,
        lambda images: {"vector": network(images, module.kernel, module.bias)},
        image_spec(image_size),
        name=name,
        module=module,
    )


def save_signature(
    path: Path,
    function: Callable[..., object],
    *specs: tf.TensorSpec,
    name: str = "serving_default",
    module: tf.Module | None = None,
) -> str:
    """A SavedModel with `function` as its only signature."""
    signature = tf.function(function, input_signature=specs)
    tf.saved_model.save(module or tf.Module(), str(path), signatures={name: signature})
    return str(path)


def make_tf1_hub_module(
    path: Path,
    image_size: tuple[int, int] | None = (16, 16),
    *,
    resource_variables: bool = True,
    control_flow_v2: bool = False,
) -> str:
    """The format that TensorFlow 1 wrote: a graph without tags, a `default` signature and tfhub_module.pb.

    A placeholder switches the graph between training and inference, as it did for batch norm.
    """
    v1 = tf.compat.v1
    kernel, bias = parameters(dimension=8, seed=0)
    (v1.enable_control_flow_v2 if control_flow_v2 else v1.disable_control_flow_v2)()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            images = v1.placeholder(tf.float32, [None, *(image_size or (None, None)), 3], name="images")
            is_training = v1.placeholder_with_default(False, [], name="is_training")
            with v1.variable_scope("module", use_resource=resource_variables):
                kernel = v1.get_variable("kernel", initializer=tf.constant(kernel, tf.float32))
                bias = v1.get_variable("bias", initializer=tf.constant(bias, tf.float32))
            vector = v1.cond(
                is_training,
                lambda: network(images, kernel, bias) + 1.0,
                lambda: network(images, kernel, bias),
            )
            session.run(v1.global_variables_initializer())
            signature = v1.saved_model.predict_signature_def({"images": images}, {"default": vector})
            builder = v1.saved_model.Builder(str(path))
            builder.add_meta_graph_and_variables(session, tags=[], signature_def_map={"default": signature})
            builder.save()
    finally:
        v1.enable_control_flow_v2()
    (path / "tfhub_module.pb").write_bytes(b"\x08\x03")  # a ModuleDef with its only field, the format: 3
    return str(path)


def image_spec(image_size: tuple[int, int] | None, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec([None, *(image_size or (None, None)), 3], dtype, name="images")


def network(images: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """What `reference` computes, in TensorFlow, for any image size."""
    shape = tf.shape(images)
    pixels = tf.reshape(images, [shape[0], GRID, shape[1] // GRID, GRID, shape[2] // GRID, 3])
    patches = tf.reshape(tf.reduce_mean(pixels, axis=[2, 4]), [-1, GRID * GRID * 3])
    return tf.tanh(tf.matmul(patches, kernel) + bias)


class _Module(tf.Module):
    def __init__(self, dimension: int, seed: int) -> None:
        super().__init__()
        kernel, bias = parameters(dimension, seed)
        self.kernel = tf.Variable(kernel, dtype=tf.float32)
        self.bias = tf.Variable(bias, dtype=tf.float32)


def parameters(dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel, float64 [48, dimension], and bias, float64 [dimension], of the network."""
    random = np.random.default_rng(seed)
    # Patches of noise are all near 0.5. A kernel whose columns sum to zero keeps tanh away from its plateaus.
    kernel = random.normal(size=(GRID * GRID * 3, dimension))
    return kernel - kernel.mean(axis=0), random.normal(size=dimension) / 4
