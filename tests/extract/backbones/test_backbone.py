"""Freezing: what is left of a module, whatever its kind, and modules that cannot be frozen."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from extract import backbones
from tests import modules
from tests.extract.backbones.helpers import error_of


def test_the_dimension_may_be_known_only_when_the_network_runs(tmp_path: Path) -> None:
    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # With an open batch size, the -1 could stand for anything.
        return {"vector": tf.reshape(tf.reduce_mean(images, axis=[2, 3]), [tf.shape(images)[0], -1])}

    loaded = backbones.load(modules.save_signature(tmp_path / "module", call, modules.image_spec((16, 16))))
    assert loaded.dimension == 16
    assert loaded.features.output_shapes.as_list() == [None, 16]
    images = modules.random_images(2)
    np.testing.assert_allclose(loaded.features(tf.constant(images)), images.mean(axis=(2, 3)), atol=1e-6)


def test_a_network_is_bound_to_no_device(module: str) -> None:
    for loaded in (backbones.load(module), modules.efficientnet_lite()):
        graph = loaded.features.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        assert len(nodes) > 10
        assert {node.device for node in nodes} == {""}


def test_float16_features_become_float32(tmp_path: Path) -> None:
    def call(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"vector": tf.cast(tf.reduce_mean(images, axis=[1, 2]), tf.float16)}

    loaded = backbones.load(modules.save_signature(tmp_path / "module", call, modules.image_spec((16, 16))))
    features = loaded.features(tf.fill([2, 16, 16, 3], 0.25))
    assert features.dtype == tf.float32
    assert np.array_equal(features, np.full((2, 3), 0.25))


@pytest.mark.parametrize("make", [modules.make_tf2_hub_module, modules.make_tf1_hub_module])
def test_frozen_features_can_be_saved_mapped_and_distributed(tmp_path: Path, make) -> None:
    loaded = backbones.load(make(tmp_path / "module"))
    images = modules.random_images(7)
    expected = modules.reference(images)

    holder = tf.Module()
    holder.features = tf.function(loaded.features, input_signature=[modules.image_spec((16, 16))])
    tf.saved_model.save(holder, str(tmp_path / "saved"))
    shutil.rmtree(tmp_path / "module")
    again = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(again.features(images), expected, atol=1e-5)

    piped = tf.data.Dataset.from_tensor_slices(images).batch(3).map(loaded.features)
    np.testing.assert_allclose(np.concatenate(list(piped)), expected, atol=1e-5)

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    run = tf.function(lambda batch: strategy.run(loaded.features, args=(batch,)))
    np.testing.assert_allclose(run(tf.constant(images)), expected, atol=1e-5)


def test_other_outputs_than_a_feature_vector_are_errors(tmp_path: Path) -> None:
    def save(name: str, function) -> str:
        return modules.save_signature(tmp_path / name, function, modules.image_spec((16, 16)))

    two = save("two", lambda images: {"left": images[:, 0, 0], "right": images[:, 0, 1]})
    assert "left, right" in error_of(two)
    maps = save("maps", lambda images: {"maps": tf.nn.avg_pool2d(images, 4, 4, "SAME")})
    message = error_of(maps)
    assert "gives feature maps of shape (1, 4, 4, 3): choose a module that gives one feature vector" in message
    whole = save("whole", lambda images: {"mean": tf.reduce_mean(images, axis=[0, 1, 2])})
    assert "feature vector is (1, D)" in error_of(whole)
    labels = save("labels", lambda images: {"labels": tf.argmax(images[:, 0], axis=-1)})
    assert "int64" in error_of(labels)


def test_a_table_cannot_be_frozen(tmp_path: Path) -> None:
    module = tf.Module()
    values = tf.lookup.KeyValueTensorInitializer([0], [1.0])
    module.table = tf.lookup.StaticHashTable(values, default_value=0.0)
    spec = [modules.image_spec((16, 16))]
    factor = tf.constant(0)
    module.__call__ = tf.function(
        lambda images: tf.reduce_mean(images, axis=[1, 2]) * module.table.lookup(factor), input_signature=spec
    )
    tf.saved_model.save(module, str(tmp_path / "module"))
    assert "state" in error_of(str(tmp_path / "module"))
