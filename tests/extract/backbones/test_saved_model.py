"""SavedModels in every format, compared with numpy, and SavedModels that are no backbones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from extract import backbones
from tests import modules
from tests.extract.backbones.helpers import assert_is_the_network, error_of

# A warning of Keras 3.15 with numpy 2, and not about our code.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# Every format


def test_tf2_hub_module(tmp_path: Path) -> None:
    assert_is_the_network(backbones.load(modules.make_tf2_hub_module(tmp_path / "module")))


@pytest.mark.parametrize("resource_variables", [True, False])
@pytest.mark.parametrize("control_flow_v2", [True, False])
def test_tf1_hub_module(tmp_path: Path, resource_variables: bool, control_flow_v2: bool) -> None:
    module = modules.make_tf1_hub_module(
        tmp_path / "module", resource_variables=resource_variables, control_flow_v2=control_flow_v2
    )
    assert_is_the_network(backbones.load(module))


@pytest.mark.parametrize("name", ["serving_default", "default", "embed"])
def test_serving_signature(tmp_path: Path, name: str) -> None:
    assert_is_the_network(backbones.load(modules.make_serving_module(tmp_path / "module", name=name)))


def test_the_output_named_default_is_the_feature_vector(tmp_path: Path) -> None:
    kernel, bias = modules.parameters(8, 0)

    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        vector = modules.network(images, tf.constant(kernel, tf.float32), tf.constant(bias, tf.float32))
        return {"default": vector, "another": -vector}

    module = modules.save_signature(tmp_path / "module", call, modules.image_spec((16, 16)))
    assert_is_the_network(backbones.load(module))


def test_the_signature_of_hub_is_preferred_to_the_serving_signature(tmp_path: Path) -> None:
    spec = [modules.image_spec((16, 16))]
    mean = tf.function(lambda images: tf.reduce_mean(images, axis=[1, 2]), input_signature=spec)
    largest = tf.function(lambda images: tf.reduce_max(images, axis=[1, 2]), input_signature=spec)
    signatures = {"serving_default": largest, "default": mean}
    tf.saved_model.save(tf.Module(), str(tmp_path / "module"), signatures=signatures)
    images = modules.random_images(2)
    features = backbones.load(str(tmp_path / "module")).features(tf.constant(images))
    np.testing.assert_allclose(features, images.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("height", [16, None])
def test_exported_keras_model(tmp_path: Path, height: int | None) -> None:
    import keras

    model = keras.Sequential([keras.Input((height, 16, 3)), keras.layers.GlobalAveragePooling2D()])
    model.export(tmp_path / "module", verbose=False)
    loaded = backbones.load(str(tmp_path / "module"), (16, 16))
    images = modules.random_images(3)
    np.testing.assert_allclose(loaded.features(tf.constant(images)), images.mean(axis=(1, 2)), atol=1e-6)


# The image size


@pytest.mark.parametrize(
    "make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module, modules.make_serving_module]
)
def test_an_open_image_size_must_be_chosen(tmp_path: Path, make) -> None:
    module = make(tmp_path / "module", image_size=None)
    assert "--image_size" in error_of(module)
    assert_is_the_network(backbones.load(module, (20, 12)), image_size=(20, 12))


def test_a_fixed_image_size_may_be_repeated_but_not_contradicted(tmp_path: Path) -> None:
    module = modules.make_tf2_hub_module(tmp_path / "module", image_size=(16, 24))
    assert backbones.load(module, (16, 24)).image_size == (16, 24)
    message = error_of(module, (24, 16))
    assert "takes images of 16 by 24 pixels, not 24 by 16: leave out --image_size" in message


def test_an_image_size_that_the_network_cannot_take_is_an_error(tmp_path: Path) -> None:
    module = modules.make_tf2_hub_module(tmp_path / "module", image_size=None)
    assert "17 by 16" in error_of(module, (17, 16))
    assert "0 by 16" in error_of(module, (0, 16))


# Modules that are no backbones


def test_the_input_must_be_images(tmp_path: Path) -> None:
    def first_pixel(images: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.reshape(images, [tf.shape(images)[0], -1])[:, :3], tf.float32)

    uint8 = modules.image_spec((16, 16), tf.uint8)
    flat = tf.TensorSpec([None, 768], tf.float32)
    grey = tf.TensorSpec([None, 16, 16, 1], tf.float32)
    four = tf.TensorSpec([4, 16, 16, 3], tf.float32)
    assert "uint8 (None, 16, 16, 3)" in error_of(modules.save_signature(tmp_path / "1", first_pixel, uint8))
    assert "float32 (None, 768)" in error_of(modules.save_signature(tmp_path / "2", first_pixel, flat))
    assert "float32 (None, 16, 16, 1)" in error_of(modules.save_signature(tmp_path / "3", first_pixel, grey))
    assert "batches of 4" in error_of(modules.save_signature(tmp_path / "4", first_pixel, four))


def test_images_must_be_the_only_input(tmp_path: Path) -> None:
    def scaled(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(images, axis=[1, 2]) * factor

    factor = tf.TensorSpec([], tf.float32, name="factor")
    module = modules.save_signature(tmp_path / "module", scaled, modules.image_spec((16, 16)), factor)
    assert "factor, images" in error_of(module)


def test_the_signature_must_be_unambiguous(tmp_path: Path) -> None:
    spec = [modules.image_spec((16, 16))]
    mean = tf.function(lambda images: tf.reduce_mean(images, axis=[1, 2]), input_signature=spec)
    tf.saved_model.save(tf.Module(), str(tmp_path / "two"), signatures={"one": mean, "other": mean})
    assert "one, other" in error_of(str(tmp_path / "two"))
    tf.saved_model.save(tf.Module(), str(tmp_path / "none"))
    assert "no signatures" in error_of(str(tmp_path / "none"))


@pytest.mark.parametrize("make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module])
@pytest.mark.parametrize("damage", ["graph", "variables", "no variables"])
def test_a_damaged_module_is_one_quiet_line(tmp_path: Path, make, damage: str, capfd) -> None:
    module = make(tmp_path / "module")
    graph, values = tmp_path / "module" / "saved_model.pb", tmp_path / "module" / "variables"
    if damage == "graph":
        graph.write_bytes(graph.read_bytes()[:-200] + b"\xff" * 100)
    elif damage == "variables":
        data = next(values.glob("*.data*"))
        data.write_bytes(data.read_bytes()[:-64])
    else:
        shutil.rmtree(values)
    capfd.readouterr()
    assert str(module) in error_of(module)
    assert capfd.readouterr() == ("", "")
