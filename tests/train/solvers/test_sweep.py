"""The heads of a sweep against each of them alone, and how one is chosen."""

import numpy as np
import pytest

from cache.errors import UserError
from tests.problems import assert_same_head, descent, problem_of
from train import solvers
from train.report.evaluate import evaluate
from train.solvers import head, sweep
from train.solvers.problem import Trial


def test_heads_side_by_side_take_the_steps_of_each_alone(opened, path):
    trials = [Trial(l2, rate, "balanced", None, None, False) for l2, rate in [(0.0, 0.03), (0.1, 0.1), (0.0, 0.3)]]
    *_, last = sweep.sweep(problem_of(opened, solver="sweep"), None, trials)
    for number, trial in enumerate(trials):
        alone = problem_of(opened, solver="sgd", l2=trial.l2, learning_rate=trial.learning_rate)
        *_, expected = solvers.solve(alone)
        columns = slice(3 * number, 3 * number + 3)
        found = head.Head(last.state["weights"][:, columns], last.state["biases"][columns])
        assert_same_head(found, expected.head, 1e-4)


def test_a_head_that_counts_images_alike_weights_its_classes(opened):
    trial = Trial(0.01, 0.1, "none", None, None, False)
    *_, last = sweep.sweep(problem_of(opened, solver="sweep"), None, [trial])
    problem = problem_of(opened, solver="sgd", class_weights="balanced")
    counts = np.bincount(problem.training.label_ids)
    *_, (weights, biases, _, _) = descent(problem, 0.1, 0.01, counts * 3 / counts.sum())
    assert_same_head(head.Head(last.state["weights"], last.state["biases"]), head.Head(weights, biases), 1e-4)


def test_a_sweep_tries_the_whole_grid_and_chooses_by_validation(opened):
    problem = problem_of(opened, solver="sweep", how_many_training_steps=100)
    found = list(solvers.solve(problem))
    assert [progress.step for progress in found] == list(range(5, 101, 5))
    grid = found[-1].grid
    assert len(grid) == 64
    assert len({(trial.l2, trial.learning_rate, trial.class_weights) for trial in grid}) == 64
    (chosen,) = [trial for trial in grid if trial.chosen]
    least = np.nanmin([trial.validation_cross_entropy for trial in grid])
    assert chosen.validation_cross_entropy == least
    whole = evaluate(found[-1].head, problem.validation)
    assert whole.cross_entropy == pytest.approx(least, rel=1e-4)
    assert whole.accuracy == pytest.approx(chosen.validation_accuracy)
    # The better half goes on after points 1, 2, 4 and 8.
    alive = [len(progress.state["alive"]) for progress in found]
    assert alive == [32, 16, 16, 8, 8, 8, 8, *[4] * 13]
    kept = [grid[number].validation_cross_entropy for number in found[-1].state["alive"]]
    assert least in kept


def test_heads_that_diverge_are_marked_and_harm_no_other(opened):
    trials = [Trial(0.0, rate, "none", None, None, False) for rate in (0.1, 1e38)]
    *_, last = sweep.sweep(problem_of(opened, solver="sweep"), None, trials)
    assert [trial.chosen for trial in last.grid] == [True, False]
    assert np.isnan([last.grid[1].validation_accuracy, last.grid[1].validation_cross_entropy]).all()
    *_, alone = sweep.sweep(problem_of(opened, solver="sweep"), None, trials[:1])
    assert_same_head(last.head, alone.head)
    with pytest.raises(UserError, match="all heads of the sweep have diverged"):
        list(sweep.sweep(problem_of(opened, solver="sweep", how_many_training_steps=200), None, [trials[1]]))
