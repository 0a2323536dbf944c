"""The evaluation of a head, beside numpy."""

import numpy as np
import pytest

from tests import small_cache
from tests.problems import softmax, vectors_of
from train.data import batches
from train.data.batches import Images
from train.report import evaluate
from train.solvers import head


@pytest.mark.parametrize("block_bytes", [batches.BLOCK_BYTES, 1000])
def test_evaluation_agrees_with_numpy(opened, monkeypatch, block_bytes):
    monkeypatch.setattr(batches, "BLOCK_BYTES", block_bytes)
    generator = np.random.default_rng(6)
    images = Images(opened, generator.permutation(len(opened))[:111])
    x, label_ids = vectors_of(images)
    weights = generator.normal(size=(small_cache.DIMENSION, 3)).astype(np.float32)
    random_head = head.Head(weights, -(x.mean(axis=0) @ weights).astype(np.float32))  # so that no class wins always
    probabilities = softmax(x @ random_head.weights + random_head.biases)
    predicted = probabilities.argmax(axis=1)
    found = evaluate.evaluate(random_head, images)

    wrong = np.flatnonzero(predicted != label_ids)
    assert 0 < len(wrong) < 111, "a test of mistakes needs some"
    assert set(predicted) == {0, 1, 2}
    assert found.count == 111
    assert found.accuracy == pytest.approx(1 - len(wrong) / 111)
    assert found.cross_entropy == pytest.approx(-np.log(probabilities[range(111), label_ids]).mean(), rel=1e-4)
    for truth in range(3):
        for taken in range(3):
            assert found.confusion[truth, taken] == sum((label_ids == truth) & (predicted == taken))
        assert found.recall[truth] == pytest.approx((predicted[label_ids == truth] == truth).mean())
        assert found.precision[truth] == pytest.approx((label_ids[predicted == truth] == truth).mean())
    np.testing.assert_array_equal(found.mistakes, images.rows[wrong])
    np.testing.assert_array_equal(found.predicted, predicted[wrong])
    np.testing.assert_allclose(found.probabilities, probabilities[wrong].max(axis=1), rtol=1e-4)
    examples = []
    for label_id in range(3):
        right = np.flatnonzero((label_ids == label_id) & (predicted == label_id))
        examples += images.rows[sorted(right, key=lambda i: -probabilities[i].max())[:4]].tolist()
    assert found.examples.tolist() == examples and len(examples) < 111 - len(wrong)


def test_the_calibration_is_that_of_a_slow_reference(opened, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 1000)  # several blocks: their bins add up
    weights = np.random.default_rng(7).normal(size=(small_cache.DIMENSION, 3)).astype(np.float32) * 4
    images = Images(opened, np.arange(len(opened)))
    x, label_ids = vectors_of(images)
    some_head = head.Head(weights, -(x.mean(axis=0) @ weights).astype(np.float32))
    probabilities = softmax(x @ some_head.weights + some_head.biases)
    right, top = probabilities.argmax(axis=1) == label_ids, probabilities.max(axis=1)
    found = evaluate.evaluate(some_head, images).calibration
    error = 0.0
    for b in range(15):
        inside = (top > b / 15) & (top <= (b + 1) / 15)
        assert found.counts[b] == inside.sum()
        assert found.hits[b] == right[inside].sum()
        if not inside.any():
            assert np.isnan(found.accuracy[b])
            assert np.isnan(found.confidence[b])
            continue
        assert found.accuracy[b] == pytest.approx(right[inside].mean())
        assert found.confidence[b] == pytest.approx(top[inside].mean(), rel=1e-4)
        error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert np.count_nonzero(found.counts) > 5, "a test of bins needs several"
    assert found.error == pytest.approx(error, rel=1e-3)
    assert found.excess == pytest.approx(top.mean() - right.mean(), abs=1e-4)


def test_a_sure_head_falls_into_the_last_bin(opened):
    sure = head.Head(np.zeros((16, 3), np.float32), np.float32([200, 0, 0]))  # its probability rounds to 1
    found = evaluate.evaluate(sure, Images(opened, np.arange(60))).calibration  # 50 images of the first class
    assert (found.counts[14], found.hits[14], found.counts[:14].sum()) == (60, 50, 0)
    assert found.error == found.excess == pytest.approx(1 / 6)


def test_a_class_without_images_has_no_recall(opened):
    found = evaluate.evaluate(
        head.Head(np.zeros((16, 3), np.float32), np.float32([1, 0, 0])), Images(opened, np.arange(10))
    )
    assert found.recall[0] == found.precision[0] == 1
    assert np.isnan(found.recall[1:]).all()
    assert np.isnan(found.precision[1:]).all()


def test_an_empty_set_cannot_be_evaluated(opened):
    empty = head.Head(np.zeros((16, 3), np.float32), np.zeros(3, np.float32))
    assert evaluate.evaluate(empty, Images(opened, np.arange(0))) is None
