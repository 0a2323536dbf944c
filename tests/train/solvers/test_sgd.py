"""sgd against the textbook in float64."""

import numpy as np
import pytest

from cache.errors import UserError
from tests.problems import assert_same_head, cross_entropy_of, descent, problem_of, vectors_of
from train import solvers
from train.data import batches, schedule
from train.report.evaluate import evaluate
from train.solvers import head, sgd


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("class_weights", ["balanced", "none"])
def test_sgd_takes_the_steps_of_a_slow_reference(opened, path, class_weights, compiled):
    problem = problem_of(opened, solver="sgd", class_weights=class_weights, l2=0.01, eval_step_interval=8)
    expected = list(descent(problem, 0.1, 0.01))
    found = list(sgd.sgd(problem, None, compiled))
    assert [progress.step for progress in found] == [8, 16, 24, 32, 40, 48, 56, 60]
    assert [progress.is_last for progress in found] == [False] * 7 + [True]
    for progress in found:
        weights, biases, accuracy, cross_entropy = expected[progress.step - 1]
        assert_same_head(progress.head, head.Head(weights, biases), 1e-4)
        assert progress.accuracy == pytest.approx(accuracy)
        assert progress.cross_entropy == pytest.approx(cross_entropy, rel=1e-4)


@pytest.fixture
def watched(monkeypatch):
    """The blocks that a solver gets, by the number of images that it draws them from."""
    watched = {}

    def blocks(images, *others):
        for block in made(images, *others):
            watched.setdefault(len(images), []).append(block)
            yield block

    made = batches.blocks
    monkeypatch.setattr(batches, "blocks", blocks)
    return watched


def test_all_calls_of_sgd_have_blocks_of_one_shape(opened, path, watched, monkeypatch):
    # XLA compiles for each shape: half a second, again and again.
    monkeypatch.setattr(schedule, "LONGEST_CALL", 15)
    problem = problem_of(opened, solver="sgd", eval_step_interval=7, intermediate_store_frequency=4)
    assert len(list(solvers.solve(problem))) == 21
    for images in (problem.training, problem.validation):
        blocks = watched[len(images)]
        assert len(blocks) >= 4
        assert len({(tuple(block.bottlenecks.shape), block.places.shape) for block in blocks}) == 1


def test_validation_draws_of_a_call_fit_into_a_block(opened, watched, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 40_000)
    problem = problem_of(opened, solver="sgd", eval_step_interval=1, validation_batch_size=1000)
    counts = [progress.validation.count for progress in solvers.solve(problem)]
    assert counts == [1000] * 60
    drawn = watched[len(problem.validation)]
    assert len(drawn) == 20
    assert all(block.places.nbytes + block.label_ids.nbytes <= 40_000 for block in drawn)


def test_sgd_validates_on_draws(opened, path):
    problem = problem_of(opened, solver="sgd", validation_batch_size=7, eval_step_interval=8)
    x, y = vectors_of(problem.validation)
    rows, _, _ = problem.validation.by_class
    place_of = {row: place for place, row in enumerate(problem.validation.rows.tolist())}
    found = list(solvers.solve(problem))
    assert len(found) == 8
    for progress in found:
        generator = np.random.default_rng([problem.settings.seed, 2, progress.step])
        drawn = [place_of[row] for row in rows[schedule.draw(problem.validation, generator, (7,))].tolist()]
        scores = x[drawn] @ progress.head.weights + progress.head.biases
        assert progress.validation.count == 7
        assert progress.validation.accuracy == pytest.approx((scores.argmax(1) == y[drawn]).mean())
        expected = cross_entropy_of(progress.head.weights, progress.head.biases, x[drawn], y[drawn])
        assert progress.validation.cross_entropy == pytest.approx(expected, rel=1e-4)


def test_sgd_validates_on_everything(opened, path):
    problem = problem_of(opened, solver="sgd", validation_batch_size=-1)
    *_, last = solvers.solve(problem)
    whole = evaluate(last.head, problem.validation)
    assert last.validation.count == 25
    assert last.validation.accuracy == pytest.approx(whole.accuracy)
    assert last.validation.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-5)


def test_a_learning_rate_that_diverges_is_named(opened):
    with pytest.raises(UserError, match=r"after \d+ steps; lower --learning_rate, it is 1e\+38"):
        list(solvers.solve(problem_of(opened, solver="sgd", learning_rate=1e38)))
