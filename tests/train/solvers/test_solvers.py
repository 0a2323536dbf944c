"""What holds for every solver, through `solvers.solve`, on a small real cache."""

from dataclasses import replace

import numpy as np
import pytest

import cache
from tests import small_cache
from tests.problems import assert_same_head, problem_of
from train import solvers
from train.data import batches, schedule
from train.data.batches import Images
from train.report.evaluate import evaluate
from train.settings import SOLVERS


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_way_that_the_data_takes_makes_no_difference(opened, monkeypatch, solver):
    *_, resident = solvers.solve(problem_of(opened, solver=solver))
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(batches, "BLOCK_BYTES", 30 * small_cache.DIMENSION * 4)
    monkeypatch.setattr(schedule, "RUN_BYTES", 0)  # the images of a resident set are drawn one by one
    *_, streamed = solvers.solve(problem_of(opened, solver=solver))
    assert_same_head(streamed.head, resident.head, 1e-3)
    assert streamed.validation.count == resident.validation.count
    assert streamed.validation.accuracy == resident.validation.accuracy


@pytest.mark.parametrize("solver", ["sgd", "sweep"])
def test_neither_the_shuffle_buffer_nor_the_order_of_extraction_changes_the_accuracy(tmp_path, monkeypatch, solver):
    opened = small_cache.open_with(tmp_path, counts=(250, 250, 250), noise=60)
    by_class = problem_of(opened, solver=solver, how_many_training_steps=1000, learning_rate=0.02)
    rows = np.random.default_rng(0).permutation(by_class.training.rows)
    found = []
    for problem in (by_class, replace(by_class, training=Images(opened, rows))):
        for resident_bytes, run in ((1 << 30, 1), (0, 83)):
            monkeypatch.setattr(batches, "RESIDENT_BYTES", resident_bytes)
            assert schedule.run_length(problem.training, 2000) == run
            *_, last = solvers.solve(problem)
            found.append(evaluate(last.head, problem.validation))
    accuracies = [evaluation.accuracy for evaluation in found]
    assert min(accuracies) > 0.85
    assert max(accuracies) - min(accuracies) < 0.035
    losses = [evaluation.cross_entropy for evaluation in found]
    assert max(losses) < 1.1 * min(losses)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_goes_on_from_a_state_as_if_nothing_had_happened(opened, solver):
    problem = problem_of(opened, solver=solver)
    whole = list(solvers.solve(problem))
    for stopped in (0, len(whole) // 2, len(whole) - 2):
        went_on = list(solvers.solve(problem, whole[stopped].state))
        assert went_on[-1].step == whole[-1].step
        assert_same_head(went_on[-1].head, whole[-1].head, 1e-6)
        assert went_on[-1].grid == whole[-1].grid
        assert len(went_on) < len(whole) or solver == "lbfgs"  # which begins the strength that it was at once more


@pytest.mark.parametrize("solver", ["sgd", "sweep"])
def test_a_seed_repeats_a_fit_and_another_does_not(opened, solver):
    heads = []
    for seed in (0, 0, 1):
        *_, last = solvers.solve(problem_of(opened, solver=solver, seed=seed))
        heads.append(last.head)
    np.testing.assert_array_equal(heads[0].weights, heads[1].weights)
    assert np.abs(heads[0].weights - heads[2].weights).max() > 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_fit_that_nobody_waits_for_ends(opened, solver):
    fitting = solvers.solve(problem_of(opened, solver=solver))
    next(fitting)
    fitting.close()  # this would hang if it did not stop its thread


@pytest.mark.parametrize("solver", ["sgd", "sweep"])
def test_the_runs_of_every_augmentation_are_read_ahead_of_need(tmp_path, monkeypatch, solver):
    plain = small_cache.open_with(tmp_path / "plain", counts=(40, 40, 40))
    augmentation = small_cache.open_with(tmp_path / "augmentation", counts=(50, 50, 50))
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    asked = []
    monkeypatch.setattr(cache.reader.Cache, "will_need", lambda where, rows: asked.append((where, rows)))
    problem = problem_of(plain, solver=solver, how_many_training_steps=100)
    rows = problem.training.rows
    # Photo i of the plain cache is photo i + 7 of the augmentation.
    images = Images(plain, np.concatenate([rows, rows + len(plain)]), (augmentation,), (np.arange(len(plain)) + 7,))
    list(solvers.solve(replace(problem, training=images)))
    found = {id(where): set() for where in (plain, augmentation)}
    for where, some in asked:
        found[id(where)].update(some.tolist())
    # Not of the validation photos: those are drawn one by one.
    assert found == {id(plain): set(rows.tolist()), id(augmentation): set((rows + 7).tolist())}
