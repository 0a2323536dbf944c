"""The temperature, beside a grid of temperatures, in float64 and one photo at a time."""

import numpy as np
import pytest

from tests import small_cache
from tests.problems import softmax, vectors_of
from train.data import batches
from train.data.batches import Images
from train.report import temperature
from train.report.evaluate import evaluate
from train.solvers.head import Head


def centroids(images, scale=1.0):
    """A head that tells most of the images apart: by the distance to the mean of each class."""
    x, y = vectors_of(images)
    means = np.stack([x[y == label_id].mean(axis=0) for label_id in range(3)])
    return Head((scale * means.T).astype(np.float32), (-scale / 2 * (means**2).sum(axis=1)).astype(np.float32))


def cross_entropy(head, images, divisor):
    """That of softmax(logits / divisor), the mean over the images, in nats."""
    x, y = vectors_of(images)
    logits = (x @ head.weights.astype(float) + head.biases) / divisor
    return np.mean([np.logaddexp.reduce(row) - row[label_id] for row, label_id in zip(logits, y, strict=True)])


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    """600 photos whose classes overlap."""
    return small_cache.open_with(tmp_path_factory.mktemp("hard"), counts=(200, 250, 150), noise=90)


@pytest.mark.parametrize("scale", [0.01, 1, 30])
@pytest.mark.parametrize("block_bytes", [batches.BLOCK_BYTES, 1000])
def test_the_temperature_minimises_the_cross_entropy(hard, monkeypatch, scale, block_bytes):
    monkeypatch.setattr(batches, "BLOCK_BYTES", block_bytes)
    images = Images(hard, np.random.default_rng(1).permutation(len(hard))[:400])
    head = centroids(images, scale)
    found = temperature.fit(head, images)
    assert abs(np.log(found)) > 0.1, "a test of temperatures needs one that is not 1"
    grid = np.exp(np.linspace(-7, 7, 701))
    losses = [cross_entropy(head, images, divisor) for divisor in grid]
    assert 0 < np.argmin(losses) < 700
    assert abs(np.log(found / grid[np.argmin(losses)])) <= 0.02
    assert cross_entropy(head, images, found) <= min(losses)
    near = [cross_entropy(head, images, found * factor) for factor in (0.999, 1, 1.001)]
    assert near[1] == min(near)


def test_logits_that_are_twice_as_large_have_twice_the_temperature(hard):
    images = Images(hard, np.arange(len(hard)))
    once, twice = (temperature.fit(centroids(images, scale), images) for scale in (2, 4))
    assert twice == pytest.approx(2 * once, rel=1e-4)


def test_a_temperature_that_cannot_be_fitted_is_one(hard):
    head = centroids(Images(hard, np.arange(len(hard))), scale=5)
    x, y = vectors_of(Images(hard, np.arange(len(hard))))
    is_right = (x @ head.weights + head.biases).argmax(axis=1) == y
    right, wrong = np.flatnonzero(is_right), np.flatnonzero(~is_right)
    assert len(right) > 200 and len(wrong) > 20, "a test of mistakes needs some"
    for rows in (right, right[:0], wrong, np.array([right[0], wrong[0]])):
        assert temperature.fit(head, Images(hard, rows)) == 1
    constant = Head(np.zeros_like(head.weights), np.zeros(3, np.float32))
    assert temperature.fit(constant, Images(hard, np.arange(len(hard)))) == 1
    infinite = Head(np.full_like(head.weights, np.inf), head.biases)
    with np.errstate(invalid="ignore"):
        assert temperature.fit(infinite, Images(hard, np.arange(len(hard)))) == 1


def test_few_photos_fit_no_temperature_and_many_do(hard):
    random = np.random.default_rng(3)
    head = centroids(Images(hard, np.arange(len(hard))), scale=5)
    few = [temperature.fit(head, Images(hard, random.choice(len(hard), 4, replace=False))) for _ in range(20)]
    assert few.count(1) >= 19
    many = [temperature.fit(head, Images(hard, random.choice(len(hard), 200, replace=False))) for _ in range(20)]
    assert many.count(1) == 0
    assert max(many) / min(many) < 2


def test_the_calibration_is_that_of_logits_over_the_temperature(hard):
    validation, test = Images(hard, np.arange(0, 600, 2)), Images(hard, np.arange(1, 600, 2))
    before, final = centroids(validation, 5), centroids(test, 6)
    found = temperature.calibrate(before, final, validation, test)
    assert found.temperature == temperature.fit(before, validation) > 1.1
    for calibration, head, images in ((found.validation, before, validation), (found.test, final, test)):
        x, y = vectors_of(images)
        probabilities = softmax((x @ head.weights + head.biases) / found.temperature)
        right, top = probabilities.argmax(axis=1) == y, probabilities.max(axis=1)
        for b in range(15):
            inside = (top > b / 15) & (top <= (b + 1) / 15)
            assert calibration.counts[b] == inside.sum()
            assert calibration.hits[b] == right[inside].sum()
            assert calibration.sums[b] == pytest.approx(top[inside].sum(), rel=1e-4)
        assert calibration.error < evaluate(head, images).calibration.error
    nothing = Images(hard, np.arange(0))
    alone = temperature.calibrate(before, final, nothing, nothing)
    assert (alone.temperature, alone.validation, alone.test) == (1, None, None)
