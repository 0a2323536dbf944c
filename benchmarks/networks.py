"""The two networks of the figures, as Keras models for the references and as backbones for ours.

The models' weights are random: no network is needed to download them, and speed does not depend on them.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from extract import backbone, efficientnet_lite0
from extract.backbone import Backbone


@dataclass(frozen=True)
class Network:
    """One architecture in both forms."""

    name: str
    make: Callable[[], keras.Model]  # from images float32 [N, H, W, 3] of 0..255, preprocessing inside
    module: Callable[[keras.Model], str]  # what --module is given

    @cached_property
    def model(self) -> keras.Model:
        keras.utils.set_random_seed(0)
        model = self.make()
        _give_statistics(model)
        return model

    @cached_property
    def backbone(self) -> Backbone:
        return backbone.load(self.module_name, None)

    @cached_property
    def module_name(self) -> str:
        return self.module(self.model)


@functools.cache
def both(scratch: Path) -> tuple[Network, Network]:
    """EfficientNet-Lite0 and Inception V3; the latter is exported into `scratch` to be a backbone."""

    def exported(model: keras.Model) -> str:
        folder = scratch / "inception_v3"
        if not folder.exists():
            # A backbone's images are 0..1.
            images = keras.Input((299, 299, 3), name="images")
            with contextlib.redirect_stdout(io.StringIO()):
                keras.Model(images, model(images * 255.0)).export(folder)
        return str(folder)

    return (
        Network("EfficientNet-Lite0", _lite0, lambda _: backbone.DEFAULT),
        Network("Inception V3", _inception_v3, exported),
    )


def random_images(network: Network, count: int) -> tf.Tensor:
    """uint8 [count, H, W, 3], in the processor's memory, where decoded photos are."""
    shape = [count, *network.backbone.image_size, 3]
    with tf.device("CPU:0"):
        return tf.cast(tf.random.uniform(shape, 0, 256, tf.int32, seed=0), tf.uint8)


def _inception_v3() -> keras.Model:
    images = keras.Input((299, 299, 3))
    network = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg", input_shape=(299, 299, 3))
    return keras.Model(images, network(keras.applications.inception_v3.preprocess_input(images)))


def _lite0() -> keras.Model:
    """As keras.applications writes its EfficientNets: each convolution without bias, then a batch norm."""
    images = keras.Input((*efficientnet_lite0.IMAGE_SIZE, 3))
    x = _normed(keras.layers.Conv2D(32, 3, 2, "same", use_bias=False)((images - 127.0) / 128.0))
    width = 32
    for stage in efficientnet_lite0.STAGES:
        for index in range(stage.blocks):
            shortcut, stride = x, stage.stride if index == 0 else 1
            if stage.expansion > 1:
                x = _normed(keras.layers.Conv2D(width * stage.expansion, 1, use_bias=False)(x))
            x = _normed(keras.layers.DepthwiseConv2D(stage.kernel, stride, "same", use_bias=False)(x))
            x = keras.layers.Conv2D(stage.filters, 1, use_bias=False)(x)
            x = keras.layers.BatchNormalization(epsilon=1e-3)(x)
            if stride == 1 and width == stage.filters:
                x = x + shortcut
            width = stage.filters
    x = _normed(keras.layers.Conv2D(1280, 1, use_bias=False)(x))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def _give_statistics(model: keras.Model) -> None:
    """To the batch norms, as training does: with a new model's zeros and ones an optimizer leaves them out."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _give_statistics(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([array + random.uniform(-0.1, 0.1, array.shape) for array in layer.get_weights()])


def _normed(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(epsilon=1e-3)(x))
