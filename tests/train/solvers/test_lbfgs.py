"""lbfgs against scikit-learn, what it chooses, and its last fit."""

import re
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.problems import assert_same_head, problem_of, softmax, vectors_of
from train import solvers
from train.data.batches import Images
from train.report.evaluate import evaluate
from train.solvers import lbfgs


def assert_agrees_with_scikit_learn(found, images, c, class_weights):
    x, y = vectors_of(images)
    weighting = {"balanced": "balanced", "none": None}[class_weights]
    reference = LogisticRegression(C=c, class_weight=weighting, tol=1e-8, max_iter=10_000).fit(x, y)

    def objective(weights, biases):
        importance = len(y) / 3 / np.bincount(y)[y] if class_weights == "balanced" else np.ones(len(y))
        losses = -np.log(softmax(x @ weights + biases)[np.arange(len(y)), y])
        return (importance * losses).mean() + (weights**2).sum() / (2 * c * len(y))

    best = objective(reference.coef_.T, reference.intercept_)
    assert best - 1e-6 <= objective(found.weights, found.biases) <= best * (1 + 1e-5)
    ours = softmax(x @ found.weights + found.biases)
    np.testing.assert_allclose(ours, reference.predict_proba(x), atol=0.01)


@pytest.mark.parametrize("class_weights", ["balanced", "none"])
@pytest.mark.parametrize("l2", [0.3, 0.01, 1e-4])
def test_lbfgs_agrees_with_scikit_learn(opened, path, l2, class_weights):
    problem = problem_of(opened, solver="lbfgs", l2=l2, class_weights=class_weights)
    *_, last = solvers.solve(problem)
    assert_agrees_with_scikit_learn(last.head, problem.training, 1 / (l2 * len(problem.training)), class_weights)
    (trial,) = last.grid
    assert (trial.l2, trial.learning_rate, trial.class_weights, trial.chosen) == (l2, None, class_weights, True)


def test_lbfgs_reports_its_own_head_on_all_training_images(opened, path):
    problem = problem_of(opened, solver="lbfgs", l2=0.01, class_weights="none")
    *_, last = solvers.solve(problem)
    whole = evaluate(last.head, problem.training)
    assert last.accuracy == pytest.approx(whole.accuracy)
    assert last.cross_entropy == pytest.approx(whole.cross_entropy, rel=1e-4)


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_both_curves_weight_the_classes_alike_in_every_fit(opened, class_weights):
    # The two parts are one: then so are the two cross entropies, whatever the fit minimises.
    problem = problem_of(opened, solver="lbfgs", l2=0.01, class_weights=class_weights)
    fits = {}
    for progress in solvers.solve(replace(problem, validation=problem.training)):
        assert progress.cross_entropy == pytest.approx(progress.validation.cross_entropy, rel=1e-4)
        fits[len(progress.grid)] = progress
    assert [trial.class_weights for trial in fits[len(fits) - 1].grid] == (
        ["balanced"] if class_weights else ["none", "balanced"]
    )


def test_lbfgs_chooses_the_strength_with_the_least_validation_cross_entropy(opened):
    problem = problem_of(opened, solver="lbfgs", class_weights="none")
    *_, last = solvers.solve(problem)
    (chosen,) = [trial for trial in last.grid if trial.chosen]
    assert chosen.validation_cross_entropy == min(trial.validation_cross_entropy for trial in last.grid)
    assert evaluate(last.head, problem.validation).cross_entropy == pytest.approx(
        chosen.validation_cross_entropy, rel=1e-4
    )
    assert 3 <= len(last.grid) < 11  # two strengths after the best one, and no more
    assert [trial.l2 for trial in last.grid][:3] == pytest.approx([0.1, 0.1 / 10**0.5, 0.01])
    assert last.grid[-3].chosen
    # A strength of the path, though it starts where the last one ended, has the same minimum as one alone.
    *_, alone = solvers.solve(problem_of(opened, solver="lbfgs", l2=chosen.l2, class_weights="none"))
    assert_same_head(alone.head, last.head, 0.02)


@pytest.mark.parametrize("rare", [True, False])
def test_lbfgs_tries_balanced_classes_at_the_best_strength_by_default(opened, rare):
    problem = problem_of(opened, solver="lbfgs")
    rows = problem.validation.rows
    # A fit that counts images alike neglects the rare classes.
    problem = replace(problem, validation=Images(opened, rows[(opened.label_ids[rows] > 0) == rare]))
    *_, last = solvers.solve(problem)
    *_, along = solvers.solve(replace(problem, settings=replace(problem.settings, class_weights="none")))
    (chosen,) = [trial for trial in along.grid if trial.chosen]
    settings = replace(problem.settings, class_weights="balanced", l2=chosen.l2)
    *_, balanced = solvers.solve(replace(problem, settings=settings))
    assert [replace(trial, chosen=False) for trial in last.grid[:-1]] == [
        replace(trial, chosen=False) for trial in along.grid
    ]
    assert (last.grid[-1].l2, last.grid[-1].class_weights) == (chosen.l2, "balanced")
    # Images count alike in both fits' cross entropy: else they could not be compared.
    plain = evaluate(balanced.head, problem.validation).cross_entropy
    assert last.grid[-1].validation_cross_entropy == pytest.approx(plain, rel=1e-3)
    assert rare == (balanced.validation.cross_entropy != pytest.approx(plain, rel=1e-3))
    is_better = plain < chosen.validation_cross_entropy
    assert [trial.chosen for trial in last.grid].index(True) == (
        len(along.grid) if is_better else along.grid.index(chosen)
    )
    assert_same_head(last.head, (balanced if is_better else along).head, 0.02)
    assert is_better == rare


def test_balanced_classes_count_alike_in_the_choice_too(opened):
    problem = problem_of(opened, solver="lbfgs", class_weights="balanced")
    *_, last = solvers.solve(problem)
    x, y = vectors_of(problem.validation)
    losses = -np.log(softmax(x @ last.head.weights + last.head.biases)[np.arange(len(y)), y])
    by_class = [losses[y == label_id].mean() for label_id in range(3)]
    assert len(set(np.bincount(y).tolist())) == 3, "classes of one size would weigh alike anyway"
    (chosen,) = [trial for trial in last.grid if trial.chosen]
    assert chosen.validation_cross_entropy == pytest.approx(np.mean(by_class), rel=1e-4)
    assert chosen.validation_cross_entropy == min(trial.validation_cross_entropy for trial in last.grid)
    assert {trial.class_weights for trial in last.grid} == {"balanced"}


def test_lbfgs_does_not_weight_classes_of_one_size(opened):
    rows = np.concatenate([np.flatnonzero(opened.label_ids == label_id)[:20] for label_id in range(3)])
    problem = replace(problem_of(opened, solver="lbfgs"), training=Images(opened, rows))
    *_, last = solvers.solve(problem)
    assert {trial.class_weights for trial in last.grid} == {"none"}


def test_lbfgs_without_validation_images_takes_a_middling_strength(opened):
    problem = problem_of(opened, solver="lbfgs")
    *_, last = solvers.solve(replace(problem, validation=Images(opened, np.arange(0))))
    assert [(trial.l2, trial.validation_accuracy, trial.chosen) for trial in last.grid] == [(1e-3, None, True)]
    assert last.validation is None


@pytest.mark.parametrize("limit", ["_ITERATIONS", "_EVALUATIONS"])
def test_a_fit_that_ends_before_it_converges_prints_a_warning(opened, monkeypatch, capsys, limit):
    monkeypatch.setattr(lbfgs, limit, 5)
    *_, last = solvers.solve(problem_of(opened, solver="lbfgs", l2=1e-4, class_weights="none"))
    assert last.step <= 5
    (warning,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"warning: L2 0.0001 has not converged in [345] iterations; a stronger --l2 converges sooner", warning
    )


def test_a_fit_that_finds_no_better_step_prints_a_warning(opened, monkeypatch, capsys):
    add_up = lbfgs._add_up

    def misleading(*arguments):
        sums, for_weights, for_biases = add_up(*arguments)
        return sums, -for_weights, -for_biases

    monkeypatch.setattr(lbfgs, "_add_up", misleading)
    list(solvers.solve(problem_of(opened, solver="lbfgs", l2=1e-4, class_weights="none")))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "has not converged in 0 iterations, and no further step makes it better; a stronger --l2" in warning


def test_neither_a_fit_that_converges_nor_one_that_is_stopped_warns(opened, capsys):
    problem = problem_of(opened, solver="lbfgs", l2=0.01, class_weights="none")
    assert len(list(solvers.solve(problem))) > 5
    stopped = solvers.solve(problem)
    next(stopped)
    stopped.close()
    assert capsys.readouterr().err == ""


# --- the last fit ----------------------------------------------------------------------------------------------


def with_a_last_fit(problem):
    rows = np.concatenate([problem.training.rows, problem.validation.rows])
    return replace(problem, training_and_validation=Images(problem.training.cache, np.sort(rows)))


@pytest.mark.parametrize("class_weights", ["balanced", "none"])
def test_the_last_fit_is_scikit_learns_of_training_and_validation_images(opened, path, class_weights):
    problem = with_a_last_fit(problem_of(opened, solver="lbfgs", class_weights=class_weights))
    *_, last = solvers.solve(problem)
    (chosen,) = [trial for trial in last.grid if trial.chosen]
    # C as the validation images chose it, and not L2: there are more images now.
    c = 1 / (chosen.l2 * len(problem.training))
    assert_agrees_with_scikit_learn(last.head, problem.training_and_validation, c, class_weights)
    assert last.accuracy == pytest.approx(evaluate(last.head, problem.training_and_validation).accuracy)
    x, y = vectors_of(problem.training_and_validation)
    losses = -np.log(softmax(x @ last.head.weights + last.head.biases)[np.arange(len(y)), y])
    by_class = [losses[y == label_id].mean() for label_id in range(3)]
    assert last.cross_entropy == pytest.approx(
        losses.mean() if class_weights == "none" else np.mean(by_class), rel=1e-4
    )


def test_the_last_fit_weights_the_classes_as_the_chosen_one_did(opened):
    problem = problem_of(opened, solver="lbfgs")
    rows = problem.validation.rows
    # A fit that counts images alike neglects the rare classes.
    problem = with_a_last_fit(replace(problem, validation=Images(opened, rows[opened.label_ids[rows] > 0])))
    *_, last = solvers.solve(problem)
    (chosen,) = [trial for trial in last.grid if trial.chosen]
    assert chosen.class_weights == "balanced"
    training, both = problem.training, problem.training_and_validation
    assert len({tuple(np.bincount(images.label_ids) / len(images)) for images in (training, both)}) == 2
    assert_agrees_with_scikit_learn(last.head, both, 1 / (chosen.l2 * len(training)), "balanced")


def test_the_last_fit_changes_nothing_of_what_was_chosen(opened):
    problem = problem_of(opened, solver="lbfgs")
    plain, found = list(solvers.solve(problem)), list(solvers.solve(with_a_last_fit(problem)))
    before, refit = found[: len(plain)], found[len(plain) :]
    assert [(p.step, p.validation, p.head_before_refit) for p in before] == [
        (p.step, p.validation, None) for p in plain
    ]
    assert [p.step for p in refit] == [*range(before[-1].step + 1, refit[-1].step + 1), refit[-1].step]
    assert [p.is_last for p in found] == [False] * (len(found) - 1) + [True]
    for progress in refit:
        assert progress.grid == plain[-1].grid
        assert progress.validation is None, "images that train judge nothing"
        assert_same_head(progress.head_before_refit, plain[-1].head)
        # Until it is done, the run would end with the head that was judged.
        assert progress.is_last or progress.head is progress.head_before_refit
    # It begins where the chosen fit ended, which is close: no iteration is worse.
    chosen = evaluate(plain[-1].head, Images(opened, np.arange(len(opened))))
    assert all(progress.cross_entropy < 1.02 * chosen.cross_entropy for progress in refit)
    assert np.abs(refit[-1].head.weights - plain[-1].head.weights).max() > 1e-3


def test_a_last_fit_that_has_nothing_to_do_is_a_step_all_the_same(opened):
    problem = problem_of(opened, solver="lbfgs", l2=0.3, class_weights="none")
    *_, plain = solvers.solve(problem)
    *_, found = solvers.solve(replace(problem, training_and_validation=problem.training))
    assert (found.step, found.is_last, found.validation) == (plain.step + 1, True, None)
    assert_same_head(found.head, plain.head)


def test_a_last_fit_that_was_interrupted_begins_anew(opened):
    problem = with_a_last_fit(problem_of(opened, solver="lbfgs"))
    whole = list(solvers.solve(problem))
    refit = [progress for progress in whole if progress.head_before_refit]
    for stopped in (whole[len(whole) - len(refit) - 1], refit[0], refit[-2]):
        went_on = list(solvers.solve(problem, stopped.state))
        assert [progress.step for progress in went_on] == [progress.step for progress in refit]
        assert_same_head(went_on[-1].head, whole[-1].head, 1e-6)
        assert_same_head(went_on[-1].head_before_refit, whole[-1].head_before_refit, 1e-6)
