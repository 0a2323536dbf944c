"""The exported SavedModel: the same probabilities as from the cached bottlenecks, and loadable on its own."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cache
from cache.errors import CacheError, UserError
from tests import small_cache
from tests.problems import softmax, vectors_of
from train.data.batches import Images
from train.export import labels, saved_model


def test_prediction_from_the_photo_agrees_with_evaluation_from_the_bottleneck(world, model, photos):
    _, opened, result = world
    contents = tf.constant([path.read_bytes() for path in photos])
    found = model.signatures["serving_default"](image_bytes=contents)
    vectors, _ = vectors_of(Images(opened, np.arange(len(opened))))
    weights = result.head.weights.astype(float)
    # Half of the cached vectors were rounded to float16, by at most 2^-11 of each component. A softmax moves no
    # more than its scores do, and twice 2^-11 |x| |w| bounds how far two scores can move apart.
    bound = 2 * 2**-11 * (np.abs(vectors) @ np.abs(weights)).max(axis=1, keepdims=True) + 1e-5
    expected = softmax(vectors @ weights + result.head.biases)
    assert (np.abs(found["probabilities"] - expected) <= bound).all()
    # Where the two best are further apart than that, image by image the same label.
    first, second = np.sort(expected, axis=1)[:, ::-1][:, :2].T
    clear = first - second > 2 * bound[:, 0]
    assert clear.mean() > 0.9
    labels = np.array([label.decode() for label in found["label"].numpy()])
    expected_labels = np.array(small_cache.LABELS)[expected.argmax(axis=1)]
    np.testing.assert_array_equal(labels[clear], expected_labels[clear])


def test_signatures_and_methods_agree(model, photos):
    paths = photos[:6]
    contents = tf.constant([path.read_bytes() for path in paths])
    from_bytes = model.signatures["serving_default"](image_bytes=contents)["probabilities"].numpy()
    assert from_bytes.dtype == np.float32
    np.testing.assert_allclose(from_bytes.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(model.classify(contents)["probabilities"], from_bytes)
    for path, expected in zip(paths, from_bytes, strict=True):  # each has a size of its own
        image = tf.constant(np.asarray(Image.open(path))[None])
        found = model.signatures["images"](images=image)
        np.testing.assert_allclose(found["probabilities"][0], expected, atol=1e-6)
        assert found["label"][0].numpy().decode() == small_cache.LABELS[expected.argmax()]
        np.testing.assert_array_equal(model.classify_images(image)["probabilities"], found["probabilities"])
    decoded = tf.stack([model.backbone.decode(content) for content in contents])
    np.testing.assert_allclose(model.classify_decoded(decoded)["probabilities"], from_bytes, atol=1e-6)


def test_decoding_stays_on_the_processor_and_the_network_goes_where_it_likes(world):
    _, opened, result = world
    graph = saved_model.Classifier(opened, result.head).classify.get_concrete_function().graph.as_graph_def()
    loops = [node for node in graph.node if node.op in ("While", "StatelessWhile", "TensorListReserve")]
    assert loops and all(node.device.endswith("CPU:0") for node in loops)
    assert not [node.name for node in graph.node if node.op == "Softmax" and node.device]


def test_an_export_replaces_the_last_one_whole(world, tmp_path):
    _, opened, result = world
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "old").write_text("")
    saved_model.write(tmp_path / "saved_model", opened, result.head)
    assert os.listdir(tmp_path) == ["saved_model"]
    assert not (tmp_path / "saved_model" / "old").exists()
    broken = cache.open(shutil.copytree(opened.directory.parent, tmp_path / "broken"))
    (broken.backbone_dir / "saved_model.pb").write_bytes(b"no protocol buffer")
    with pytest.raises(CacheError, match="backbone is damaged"):
        saved_model.write(tmp_path / "saved_model", broken, result.head)
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()


def test_a_place_that_cannot_be_written_is_named(world, tmp_path):
    _, opened, result = world
    (tmp_path / "file").write_text("")
    for write in (
        lambda: saved_model.write(tmp_path / "file" / "model", opened, result.head),
        lambda: labels.write(tmp_path / "file" / "labels.txt", opened.labels),
    ):
        with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/"):
            write()
