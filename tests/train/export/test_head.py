"""`head.h5` as `python -m train` writes it: the classifier's own head, its temperature, and examples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import cache
from cache import console, head, layout, thumbnails
from cache import index as indexes
from cache.errors import CacheError
from tests import small_cache
from tests.problems import softmax, vectors_of
from tests.thumbnail_cache import jpeg
from train.__main__ import main
from train.data.batches import Images
from train.data.parts import TEST, VALIDATION
from train.data.split import split
from train.export import head as export
from train.solvers.head import Head

PERCENT = {"testing_percentage": 30, "validation_percentage": 30}
WITHOUT = 60  # photos of the second class have no thumbnail, and none of the third has one


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A cache whose classes overlap, with thumbnails of most photos of the first and second class."""
    cache_dir = small_cache.make(tmp_path_factory.mktemp("noisy"), counts=(120, 120, 60), noise=80)
    opened = cache.open(cache_dir)
    rows = np.setdiff1d(np.flatnonzero(opened.label_ids < 2), np.arange(120, 120 + WITHOUT))
    thumbnails.write(opened.directory, [thumbnails.of(opened.index, rows, [jpeg(row) for row in rows])])
    return cache_dir


def train(cache_dir, out, *more, **percent):
    """The head, the metrics and the report of a run of the command."""
    flags = ["--cache_dir", cache_dir, "--output_dir", out, *more]
    for name, value in {**PERCENT, **percent}.items():
        flags += [f"--{name}", value]
    assert console.run(main, list(map(str, flags))) == 0
    latest = out / "latest"
    return head.read(out), json.loads((latest / "metrics.json").read_text()), (latest / "report.html").read_text()


@pytest.fixture(scope="module")
def refitted(noisy, tmp_path_factory):
    out = tmp_path_factory.mktemp("refitted") / "out"
    return out, *train(noisy, out)


@pytest.fixture(scope="module")
def not_refitted(noisy, tmp_path_factory):
    out = tmp_path_factory.mktemp("not") / "out"
    return out, *train(noisy, out, "--no_refit")


def part(cache_dir, number):
    """The photos of a part."""
    opened = cache.open(cache_dir)
    columns = opened.paths, opened.labels, opened.label_ids, opened.fingerprints
    parts = split("hash", *columns, testing_percentage=30.0, validation_percentage=30.0).parts
    return Images(opened, np.flatnonzero(parts == number))


def sure_and_right(opened, images):
    """The rows of the images that a head gets right, the surest first."""
    x, y = vectors_of(images)
    probabilities = softmax(x @ opened.weights.astype(float) + opened.biases)
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    return [int(images.rows[i]) for i in order if probabilities[i].argmax() == y[i]]


def test_the_probabilities_are_those_of_the_exported_classifier(refitted, noisy):
    out, found, metrics, _ = refitted
    opened = cache.open(noisy)
    model = tf.saved_model.load(str(out / "latest" / "saved_model"))
    photos = [noisy.parent / "photos" / path for path in opened.paths]
    images = tf.stack([model.backbone.decode(path.read_bytes()) for path in photos])
    expected = model.classify_decoded(images)["probabilities"].numpy()
    bottlenecks = model.backbone.features(tf.cast(images, tf.float32) / 255).numpy()
    # Sums of 16 products in float32, in another order.
    np.testing.assert_allclose(found.probabilities(bottlenecks, temperature=1), expected, atol=1e-5)
    assert np.abs(found.probabilities(bottlenecks) - expected).max() > 1e-3, "a temperature that does nothing"
    assert list(found.labels) == (out / "latest" / "labels.txt").read_text().splitlines() == small_cache.LABELS
    assert found.backbone == opened.backbone
    assert (found.test_accuracy, found.test_photos) == (metrics["test"]["accuracy"], metrics["test"]["count"])


def test_the_temperature_is_that_of_the_head_before_the_last_fit(refitted, not_refitted, noisy):
    (_, last, metrics, page), (_, before, metrics_before, _) = refitted, not_refitted
    assert (metrics["refitted"], metrics_before["refitted"]) == (True, False)
    assert np.abs(last.weights - before.weights).max() > 1e-3
    assert last.temperature == before.temperature == metrics["temperature"] != 1
    x, y = vectors_of(part(noisy, VALIDATION))
    logits = x @ before.weights.astype(float) + before.biases

    def cross_entropy(divisor):
        return -np.log(softmax(logits / divisor)[np.arange(len(y)), y]).mean()

    grid = np.exp(np.linspace(-3, 3, 601))
    best = grid[np.argmin([cross_entropy(divisor) for divisor in grid])]
    assert abs(np.log(last.temperature / best)) <= 0.01
    probabilities = softmax(logits / last.temperature)
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == y
    for found in (last, before):
        assert found.calibration.counts.tolist() == np.histogram(top, np.linspace(0, 1, 16))[0].tolist()
        assert found.calibration.hits.sum() == right.sum()
        assert found.calibration.sums.sum() == pytest.approx(top.sum(), rel=1e-5)
    assert f"fit a temperature of {last.temperature:.2f}." in page
    assert f"the\nerror on the test photos is {metrics['ece_with_temperature']:.1%}." in page


def test_examples_are_the_surest_right_test_photos_with_their_thumbnails(refitted, noisy):
    _, found, _, _ = refitted
    opened = cache.open(noisy)
    right, label_ids = sure_and_right(found, part(noisy, TEST)), opened.label_ids
    expected = []
    for label_id in range(3):
        surest = [row for row in right if label_ids[row] == label_id][: head.EXAMPLES]
        assert len(surest) == 4
        pictures = thumbnails.find(opened, np.array(surest))
        expected += [(label_id, picture) for picture in pictures if picture is not None]
    assert 4 <= len(expected) < 12
    assert [(example.label_id, example.thumbnail) for example in found.examples] == expected


def test_without_test_photos_examples_are_validation_photos_that_the_last_head_gets_right(noisy, tmp_path):
    found, metrics, page = train(noisy, tmp_path / "out", testing_percentage=0)
    assert (found.test_accuracy, found.test_photos, metrics["test"]) == (None, 0, None)
    assert metrics["ece_with_temperature"] is None and "temperature" not in page.replace("_with_temperature", "")
    opened = cache.open(noisy)
    columns = opened.paths, opened.labels, opened.label_ids, opened.fingerprints
    parts = split("hash", *columns, testing_percentage=0.0, validation_percentage=30.0).parts
    right = set(sure_and_right(found, Images(opened, np.flatnonzero(parts == VALIDATION))))
    row_of = {jpeg(row): row for row in range(240)}
    rows = [row_of[example.thumbnail] for example in found.examples]
    assert {example.label_id for example in found.examples} >= {0}
    assert len(rows) == len(set(rows)) and set(rows) <= right
    assert [opened.label_ids[row] for row in rows] == [example.label_id for example in found.examples]


def test_photos_that_the_last_head_gets_wrong_are_no_examples(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "find", lambda _, rows: [jpeg(row) for row in rows.tolist()])
    rolled = Head(np.roll(trained.head.weights, 1, axis=1), np.roll(trained.head.biases, 1))  # to the wrong class
    for last, has_examples in ((trained.head, True), (rolled, False)):
        export.write(tmp_path / "head.h5", replace(trained, head=last))
        assert bool(head.read(tmp_path / "head.h5").examples) == has_examples


def test_without_thumbnails_there_are_no_examples(trained):
    found = head.read(trained.settings.output_dir)
    assert found.examples == []
    np.testing.assert_array_equal(found.weights, trained.head.weights)


def test_without_validation_photos_the_temperature_is_one(cache_dir, tmp_path):
    found, metrics, page = train(cache_dir, tmp_path / "out", validation_percentage=0)
    assert found.temperature == metrics["temperature"] == 1
    assert found.calibration.counts.tolist() == [0] * 15 and found.calibration.doubtful_below(0.5) is None
    assert "There is no temperature" in page


def test_labels_may_hold_anything(tmp_path):
    cache_dir = small_cache.make(tmp_path, counts=(30, 30, 30))
    [directory] = layout.directories(cache_dir)
    info, index = indexes.read(directory)
    labels = sorted(["caf\udce9", "猫 💐", "\u202egnp.sesor"])
    indexes.write(directory, info, replace(index, labels=labels))
    found, _, _ = train(cache_dir, tmp_path / "out")
    assert found.labels == labels


def test_the_output_of_an_earlier_version_says_to_train_again(noisy, refitted, tmp_path):
    out = tmp_path / "out"
    train(noisy, out, "--no_refit")
    (out / "latest" / "head.h5").unlink()
    with pytest.raises(CacheError, match=r"has no head\.h5; .* train again$"):
        head.read(out)
    train(noisy, out)
    np.testing.assert_array_equal(head.read(out).weights, refitted[1].weights)
