"""Modules of TensorFlow Hub, from its cache or unreachable."""

from __future__ import annotations

import pytest
import tensorflow as tf

from extract import backbones
from tests import modules
from tests.extract.backbones.helpers import INCEPTION, assert_is_the_network, error_of, hub_folder


@pytest.mark.parametrize("make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module])
def test_a_module_in_the_cache_of_hub_is_not_downloaded(make) -> None:
    handle = "https://tfhub.dev/somebody/tiny/feature_vector/1"
    folder = make(hub_folder(handle))
    loaded = backbones.load(handle)
    assert_is_the_network(loaded)
    assert loaded.weights_digest == backbones.identity(folder)


def test_a_short_name_stands_for_the_hub_module_and_its_image_size() -> None:
    def mean_colour(images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(images, axis=[1, 2])

    modules.save_signature(hub_folder(INCEPTION), mean_colour, modules.image_spec(None))
    loaded = backbones.load("inception_v3")
    assert (loaded.module, loaded.image_size, loaded.dimension) == ("inception_v3", (299, 299), 3)
    assert backbones.load("inception_v3", (32, 32)).image_size == (32, 32)


def test_the_error_for_a_broken_module_names_its_folder_in_the_cache_of_hub() -> None:
    hub_folder(INCEPTION).mkdir(parents=True)
    (hub_folder(INCEPTION) / "saved_model.pb").write_bytes(b"\xff" * 10)
    message = error_of("inception_v3")
    assert "inception_v3 cannot be loaded" in message and str(hub_folder(INCEPTION)) in message


@pytest.mark.parametrize("module", ["inception_v3", "https://example.org/module.tar.gz"])
def test_an_unreachable_hub_is_one_quiet_line(module: str, capfd) -> None:
    message = error_of(module, kind=backbones.UnreachableError)
    assert "cannot be downloaded" in message and "efficientnet_lite0" in message
    assert "TFHUB_CACHE_DIR" in message and "SavedModel" in message
    assert capfd.readouterr() == ("", "")
