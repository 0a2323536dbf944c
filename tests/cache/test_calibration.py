"""From which probability on an answer is reliable, beside a slow reference."""

import numpy as np
import pytest

from cache.calibration import Calibration


def calibration(counts, hits):
    return Calibration(np.array(counts), np.array(hits), np.array(counts) * 0.5)


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("seed", range(5))
def test_where_answers_are_doubtful_is_that_of_a_slow_reference(accuracy, seed):
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 4, 10)
    counts[0] += seed == 0
    hits = generator.binomial(counts, np.linspace(0.2, 1, 10))
    edges = [0]
    for edge in range(1, 11):
        below = slice(0, edge)
        if counts[below].sum() and hits[below].sum() / counts[below].sum() < accuracy:
            edges.append(edge)
    lowest = next(place for place in range(10) if counts[place])
    assert calibration(counts, hits).doubtful_below(accuracy) == pytest.approx(max(max(edges), lowest) / 10)


def test_where_answers_are_doubtful_at_the_ends():
    assert calibration([0, 5, 5], [0, 4, 5]).doubtful_below(0.95) == 1
    assert calibration([0, 5, 5], [0, 4, 5]).doubtful_below(0.9) == pytest.approx(2 / 3)
    assert calibration([0, 5, 5], [0, 5, 5]).doubtful_below(0.9) == pytest.approx(1 / 3)  # nothing is known below
    assert calibration([0, 0, 0], [0, 0, 0]).doubtful_below(0.0) is None
