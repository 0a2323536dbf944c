"""1,120 classes: what a run writes stays small enough to open, and all numbers are in it."""

import json

import numpy as np
import pytest

from cache import index as indexes
from cache import layout
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer
from tests import small_cache
from tests.train.runs import quick
from train import run

CLASSES, EACH = 1120, 4


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Of a run that has learned next to nothing, so that its confusions are many."""
    root = tmp_path_factory.mktemp("many")
    directory = root / "cache" / "tiny-0123456789abcdef"
    small_cache.write_backbone(directory / layout.BACKBONE)
    shape = small_cache.HEIGHT, small_cache.WIDTH
    module = layout.BackboneInfo("tiny", "identity", "0123456789abcdef", *shape, "bilinear", small_cache.DIMENSION)
    label_ids, numbers = np.repeat(np.arange(CLASSES), EACH), np.arange(CLASSES * EACH)
    labels = [f"class {label_id:04}" for label_id in range(CLASSES)]
    paths = Strings.of([f"{labels[label_id]}/{number}.png" for number, label_id in enumerate(label_ids)])
    vectors = np.random.default_rng(0).normal(size=(len(numbers), small_cache.DIMENSION)).astype("f4")
    with Writer(directory, module.attributes()) as writer:
        writer.append(Rows(paths, numbers, numbers, numbers.astype("u8"), vectors))
    shards, zeros = layout.shard_names(directory), np.zeros_like(numbers)
    index = indexes.Index(str(root / "gone"), labels, shards, paths, numbers, numbers, label_ids, zeros, numbers)
    indexes.write(directory, module, index)
    return run.train(quick(root / "cache", root / "out", testing_percentage=40.0, how_many_training_steps=10))


def test_the_metrics_hold_the_confusions_and_not_the_empty_pairs(result):
    path = result.settings.output_dir / "latest/metrics.json"
    assert path.stat().st_size < 250_000
    metrics = json.loads(path.read_text())
    for name, evaluation in (("test", result.test), ("validation", result.validation)):
        columns = metrics[name]["confusion"]
        confusion = np.zeros((CLASSES, CLASSES), int)
        confusion[columns["true"], columns["predicted"]] = columns["photos"]
        np.testing.assert_array_equal(confusion, evaluation.confusion)
        assert confusion.sum() == evaluation.count > 400
        assert min(columns["photos"]) > 0
        assert len(metrics[name]["recall"]) == len(metrics[name]["precision"]) == CLASSES


def test_the_report_has_a_row_for_each_class_and_no_matrix(result):
    page = (result.settings.output_dir / "latest/report.html").read_text()
    assert len(page) < 250_000
    assert "Confusion matrix" not in page
    assert "Most frequent confusions" in page
    for label in result.cache.labels:
        assert label in page
