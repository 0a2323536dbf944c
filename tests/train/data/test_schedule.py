"""The batches of gradient descent: fair draws, the same for a step however the steps are cut into calls."""

import numpy as np
import pytest

from tests import small_cache
from tests.problems import COUNTS
from train.data import batches, schedule
from train.data.batches import Images
from train.data.schedule import Schedule


def test_draws_are_balanced_over_classes_and_images(tmp_path):
    counts = (60, 12, 3)
    opened = small_cache.open_with(tmp_path, counts=counts)
    images = Images(opened, np.arange(len(opened)))
    rows, _, _ = images.by_class
    drawn = np.bincount(rows[schedule.draw(images, np.random.default_rng(1), (30_000,))], minlength=len(opened))
    per_class = np.bincount(opened.label_ids, weights=drawn)
    # Binomial counts: within five standard deviations, for the 3 classes and each of the 75 images.
    for expected, found in [(1 / 3, per_class), (1 / 3 / np.repeat(counts, counts), drawn)]:
        sigma = np.sqrt(30_000 * expected * (1 - expected))
        assert (np.abs(found - 30_000 * expected) < 5 * sigma).all()


def test_only_images_of_the_set_are_drawn_and_empty_classes_are_not(opened):
    images = Images(opened, np.array([3, 5, 120]))  # none of the middle class
    rows, _, _ = images.by_class
    assert set(rows[schedule.draw(images, np.random.default_rng(0), (50, 4))].ravel()) == {3, 5, 120}


@pytest.mark.parametrize("balanced", [True, False])
def test_runs_of_images_are_drawn_and_mixed(tmp_path, balanced):
    counts, run = (60, 12, 3), 6
    opened = small_cache.open_with(tmp_path, counts=counts)
    images = Images(opened, np.arange(len(opened)))
    drawn = schedule.draw(images, np.random.default_rng(1), (500, 60), balanced=balanced, run=run)
    assert drawn.shape == (500, 60)
    # Every image is as likely as alone. A run's images come together: deviations are up to sqrt(6) times larger, and
    # again twice where a class of 3 has each image twice in a run.
    expected = np.repeat(np.array([1 / 3] * 3) / counts, counts) if balanced else np.full(75, 1 / 75)
    found = np.bincount(drawn.reshape(-1), minlength=75)
    deviation = np.sqrt(2 * run * 30_000 * expected)
    assert (np.abs(found - 30_000 * expected) < 5 * deviation).all()
    # Each first image is followed by the next ones of its class, and behind the last one by the first.
    one = sorted(schedule.draw(images, np.random.default_rng(2), (run,), balanced=balanced, run=run).tolist())
    assert one in [sorted(behind(place, run, counts, balanced)) for place in range(75)]
    # Mixed: the images of a run are no neighbours any more, and lie in different batches.
    assert (np.diff(drawn, axis=1) == 1).mean() < 0.1
    assert len({batch.tobytes() for batch in drawn}) == 500


def behind(place, run, counts, balanced):
    """The images of the run that begins at `place`."""
    if not balanced:
        return ((place + np.arange(run)) % sum(counts)).tolist()
    label_id = np.repeat(np.arange(len(counts)), counts)[place]
    start = sum(counts[:label_id])
    return (start + (place - start + np.arange(run)) % counts[label_id]).tolist()


@pytest.mark.parametrize(("drawn", "run"), [(10_000, 128), (1000, 41), (24, 1), (10, 1)])
def test_runs_are_short_enough_for_each_class_to_be_in_the_buffer(opened, monkeypatch, drawn, run):
    images = Images(opened, np.arange(len(opened)))
    assert schedule.run_length(images, drawn) == 1  # a resident set needs none
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(schedule, "RUN_BYTES", 128 * images.row_bytes)
    assert schedule.run_length(images, drawn) == run


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Classes of different sizes."""
    opened = small_cache.open_with(tmp_path_factory.mktemp("unequal"), counts=COUNTS)
    return Images(opened, np.arange(len(opened)))


@pytest.mark.parametrize("balanced", [True, False])
def test_classes_are_drawn_alike_or_images_are(training, balanced):
    rows, _, _ = training.by_class
    (places,) = Schedule(training, 100, balanced, seed=0).batches(0, [300])
    shares = np.bincount(training.labels_of(rows[places]).ravel()) / places.size
    expected = np.full(3, 1 / 3) if balanced else np.array(COUNTS) / sum(COUNTS)
    # Five standard deviations of 30,000 draws.
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / places.size)).all()


def test_a_step_draws_the_same_however_the_calls_are_cut(training):
    drawn = Schedule(training, 20, balanced=True, seed=0)
    (whole,) = drawn.batches(0, [260])
    parts = list(drawn.batches(0, [1, 99, 100, 101, 260]))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    (rest,) = drawn.batches(150, [260])
    np.testing.assert_array_equal(rest, whole[150:])
    assert len({batch.tobytes() for batch in whole}) == 260


@pytest.mark.parametrize(
    ("done", "steps", "intervals", "points", "expected"),
    [
        (0, 25, [10], 9, [[10, 15], [20, 25]]),
        (0, 25, [10, 4], 9, [[4, 8, 10, 12, 15], [16, 20, 24, 25]]),
        (0, 25, [10, 4], 2, [[4, 8], [10, 12], [15], [16, 20], [24, 25]]),
        (12, 25, [10], 9, [[15], [20, 25]]),
        (25, 25, [10], 9, []),
    ],
)
def test_calls_end_at_what_is_asked_for_and_at_the_longest(
    training, monkeypatch, done, steps, intervals, points, expected
):
    monkeypatch.setattr(schedule, "LONGEST_CALL", 15)
    assert list(Schedule(training, 20, balanced=True, seed=0).calls(done, steps, intervals, points)) == expected
