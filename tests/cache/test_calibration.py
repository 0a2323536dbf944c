"""From which probability on an answer is reliable, beside a slow reference."""

import numpy as np
import pytest

from cache.calibration import Calibration


def calibration(counts, hits):
    return Calibration(np.array(counts), np.array(hits), np.array(counts) * 0.5)


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_that_of_a_slow_reference(accuracy, seed):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 4, 10)
    hits = random.binomial(counts, np.linspace(0.3, 1, 10))
    expected = None
    for b in reversed(range(10)):
        if counts[b:].sum() and hits[b:].sum() / counts[b:].sum() >= accuracy:
            expected = b / 10
    assert calibration(counts, hits).threshold(accuracy) == expected


def test_thresholds_at_the_ends():
    assert calibration([0, 5, 5], [0, 4, 5]).threshold(0.95) == pytest.approx(2 / 3)
    assert calibration([0, 5, 5], [0, 4, 5]).threshold(0.9) == 0
    assert calibration([0, 5, 5], [0, 4, 4]).threshold(0.95) is None
    assert calibration([0, 0, 0], [0, 0, 0]).threshold(0.0) is None
