"""Networks of keras.applications, their weights from a local file or unreachable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from extract import backbones
from extract.backbones.names import KERAS_MODULES
from tests import modules
from tests.extract.backbones.helpers import error_of

# A warning of Keras 3.15 with numpy 2, and not about our code.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def keras_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for downloaded weights. Keras reads KERAS_HOME only when it is imported, into this variable."""
    from keras.src.backend import config

    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_unreachable_weights_are_one_quiet_line(keras_weights: Path, capfd) -> None:
    message = error_of("keras:mobilenet", kind=backbones.UnreachableError)
    assert "keras:MobileNet cannot be downloaded" in message
    assert "efficientnet_lite0" in message
    assert capfd.readouterr() == ("", "")


def test_a_network_is_loaded_with_its_own_preprocessing(keras_weights: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    shape = (64, 96, 3)
    network = keras.applications.MobileNet(include_top=False, weights=None, pooling="avg", input_shape=shape)
    # The statistics of some images let the batch norms keep random features from fading away.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(modules.random_images(8, (64, 96), seed=2) * 2 - 1, training=True)
    network.save(keras_weights / "mobilenet_1_0_224_tf_no_top.h5")
    loaded = backbones.load("keras:MobileNet", (64, 96))
    assert (loaded.image_size, loaded.dimension) == ((64, 96), 1024)
    assert not loaded.features.captured_inputs
    images = modules.random_images(3, (64, 96))
    expected = network(images * 2 - 1, training=False).numpy()  # this network was trained on pixels from -1 to 1
    assert expected.std(axis=0).mean() > 0.01  # or the comparison would mean nothing
    np.testing.assert_allclose(loaded.features(tf.constant(images)), expected, atol=1e-3)


def test_an_image_size_that_a_network_cannot_take_is_an_error() -> None:
    message = error_of("keras:MobileNet", (16, 16))  # it needs 32 pixels or more
    assert message.startswith("keras:MobileNet cannot be built for images of 16 by 16 pixels: ")


def test_a_network_of_the_caffe_kind_gets_blue_green_red(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    layer = keras.layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones")
    network = keras.Sequential([keras.Input((16, 16, 3)), layer, keras.layers.GlobalAveragePooling2D()])

    def constructor(**options: object) -> keras.Model:
        assert options == {"include_top": False, "weights": "imagenet", "pooling": "avg", "input_shape": (16, 16, 3)}
        return network

    constructor.__module__ = keras.applications.VGG16.__module__
    monkeypatch.setattr(keras.applications, "VGG16", constructor)
    images = modules.random_images(2)
    # Blue, green and red, minus ImageNet's mean pixel.
    expected = 255 * images.mean(axis=(1, 2))[:, ::-1] - [103.939, 116.779, 123.68]
    loaded = backbones.load("keras:vgg16", (16, 16))
    np.testing.assert_allclose(loaded.features(tf.constant(images)), expected, rtol=1e-4, atol=1e-3)

    assert backbones.load("keras:VGG16", (16, 16)).weights_digest == loaded.weights_digest
    network.set_weights([2 * array for array in network.get_weights()])
    assert backbones.load("keras:VGG16", (16, 16)).weights_digest != loaded.weights_digest


def test_names_and_image_sizes_are_those_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from keras.src.applications import imagenet_utils

    assert set(KERAS_MODULES) == {name for name in dir(keras.applications) if name[0].isupper()}

    class DefaultSize(Exception):
        pass

    def obtain_input_shape(_shape: object, default_size: int, **_options: object) -> None:
        raise DefaultSize(default_size)

    # Every constructor calls this function, for its input shape, before it builds anything.
    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", obtain_input_shape)
    for name, size in KERAS_MODULES.items():
        if not name.startswith("MobileNetV3"):  # the exception: these two choose 224 without asking
            with pytest.raises(DefaultSize) as caught:
                getattr(keras.applications, name)(weights=None)
            assert caught.value.args == (size,), name
