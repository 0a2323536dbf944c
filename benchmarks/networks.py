"""The two architectures that are measured, as Keras models for the references and as backbones for ours.

The Keras models have random weights, which need no download: the speed does not depend on them.
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

from extract import backbones
from extract.backbones import Backbone, efficientnet_lite


@dataclass(frozen=True)
class Network:
    """One architecture in both forms."""

    name: str
    build: Callable[[], keras.Model]  # from images float32 [N, H, W, 3] in 0..255, with the preprocessing inside
    export: Callable[[keras.Model], str]  # makes a backbone of the model; returns the value of --module

    @cached_property
    def model(self) -> keras.Model:
        keras.utils.set_random_seed(0)
        model = self.build()
        _set_statistics(model)
        return model

    @cached_property
    def backbone(self) -> Backbone:
        return backbones.load(self.module, None)

    @cached_property
    def module(self) -> str:
        return self.export(self.model)


@functools.cache
def both(scratch: Path) -> tuple[Network, Network]:
    """EfficientNet-Lite0, whose backbone is the built-in one, and Inception V3, which is exported into `scratch`."""

    def export(model: keras.Model) -> str:
        folder = scratch / "inception_v3"
        if not folder.exists():
            # The images that a backbone gets are in 0..1.
            images = keras.Input((299, 299, 3), name="images")
            with contextlib.redirect_stdout(io.StringIO()):
                keras.Model(images, model(images * 255.0)).export(folder)
        return str(folder)

    return (
        Network("EfficientNet-Lite0", _lite0, lambda _: backbones.DEFAULT),
        Network("Inception V3", _inception_v3, export),
    )


def random_images(network: Network, count: int) -> tf.Tensor:
    """uint8 [count, H, W, 3], in the memory of the CPU, where decoded photos are."""
    shape = [count, *network.backbone.image_size, 3]
    with tf.device("CPU:0"):
        return tf.cast(tf.random.uniform(shape, 0, 256, tf.int32, seed=0), tf.uint8)


def _inception_v3() -> keras.Model:
    images = keras.Input((299, 299, 3))
    network = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg", input_shape=(299, 299, 3))
    return keras.Model(images, network(keras.applications.inception_v3.preprocess_input(images)))


def _lite0() -> keras.Model:
    """Built as keras.applications builds its EfficientNets: convolutions without bias, each before a batch norm."""
    images = keras.Input((*efficientnet_lite.IMAGE_SIZE, 3))
    x = _norm_and_activate(keras.layers.Conv2D(32, 3, 2, "same", use_bias=False)((images - 127.0) / 128.0))
    width = 32
    for stage in efficientnet_lite.STAGES:
        for index in range(stage.blocks):
            shortcut, stride = x, stage.stride if index == 0 else 1
            if stage.expansion > 1:
                x = _norm_and_activate(keras.layers.Conv2D(width * stage.expansion, 1, use_bias=False)(x))
            x = _norm_and_activate(keras.layers.DepthwiseConv2D(stage.kernel, stride, "same", use_bias=False)(x))
            x = keras.layers.Conv2D(stage.filters, 1, use_bias=False)(x)
            x = keras.layers.BatchNormalization(epsilon=1e-3)(x)
            if stride == 1 and width == stage.filters:
                x = x + shortcut
            width = stage.filters
    x = _norm_and_activate(keras.layers.Conv2D(1280, 1, use_bias=False)(x))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def _norm_and_activate(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(epsilon=1e-3)(x))


def _set_statistics(model: keras.Model) -> None:
    """Gives the batch norms statistics like those of a trained model.

    In a new model they are zeros and ones, and an optimizer may leave out what changes nothing.
    """
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _set_statistics(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([array + random.uniform(-0.1, 0.1, array.shape) for array in layer.get_weights()])
