"""The solvers against slow references, through `solvers.solve`, on a small real cache."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import cache
from cache.errors import UserError
from tests import small_cache
from tests.problems import COUNTS, assert_same_head, cross_entropy_of, problem_of, softmax, vectors_of
from train import head, sgd, solvers, stream, sweep
from train.evaluate import evaluate
from train.settings import SOLVERS
from train.stream import Images
from train.trial import Trial


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    # The images of a class are neighbours, as an extraction leaves them.
    return small_cache.open_with(tmp_path_factory.mktemp("small"), counts=COUNTS, dtypes=("f2", "f4"), noise=60)


# --- sgd -------------------------------------------------------------------------------------------------------


def descended(problem, steps, rate, l2, importance=None):
    """Each step's head and its own batch's accuracy and cross entropy, by the textbook, in float64."""
    x, y = vectors_of(problem.training)
    rows, _, _ = problem.training.by_class
    place_of = {row: place for place, row in enumerate(problem.training.rows.tolist())}
    classes = len(problem.training.cache.labels)
    start = head.initial(x.shape[1], classes, np.random.default_rng([problem.settings.seed, 0]))
    weights, biases = start.weights.astype(float), start.biases.astype(float)
    importance = np.ones(classes) if importance is None else importance
    (batches,) = sgd.batches(problem, problem.settings.train_batch_size, 0, [steps])
    for places in batches:
        drawn = np.array([place_of[row] for row in rows[places].tolist()])
        batch, one_hot = x[drawn], np.eye(classes)[y[drawn]]
        error = (softmax(batch @ weights + biases) - one_hot) * importance[y[drawn]][:, None] / len(drawn)
        weights = weights - rate * (batch.T @ error + l2 * weights)
        biases = biases - rate * error.sum(axis=0)
        scores = batch @ weights + biases
        yield weights, biases, (scores.argmax(1) == y[drawn]).mean(), cross_entropy_of(weights, biases, batch, y[drawn])


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("class_weights", ["balanced", "none"])
def test_sgd_takes_the_steps_of_a_slow_reference(opened, path, class_weights, compiled):
    problem = problem_of(opened, solver="sgd", class_weights=class_weights, l2=0.01, eval_step_interval=8)
    expected = list(descended(problem, 60, 0.1, 0.01))
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
    """The blocks that a solver is given, by the number of images that it draws them from."""
    given = {}

    def blocks(images, *others):
        for block in made(images, *others):
            given.setdefault(len(images), []).append(block)
            yield block

    made = stream.blocks
    monkeypatch.setattr(stream, "blocks", blocks)
    return given


def test_all_calls_of_sgd_have_blocks_of_one_shape(opened, path, watched, monkeypatch):
    # XLA compiles for each shape: half a second, again and again.
    monkeypatch.setattr(sgd, "LONGEST", 15)
    problem = problem_of(opened, solver="sgd", eval_step_interval=7, intermediate_store_frequency=4)
    assert len(list(solvers.solve(problem))) == 21
    for images in (problem.training, problem.validation):
        blocks = watched[len(images)]
        assert len(blocks) >= 4
        assert len({(tuple(block.bottlenecks.shape), block.places.shape) for block in blocks}) == 1


def test_validation_draws_of_a_call_fit_into_a_block(opened, watched, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 40_000)
    problem = problem_of(opened, solver="sgd", eval_step_interval=1, validation_batch_size=1000)
    counts = [progress.validation.count for progress in solvers.solve(problem)]
    assert counts == [1000] * 60
    drawn = watched[len(problem.validation)]
    assert len(drawn) == 20
    assert all(block.places.nbytes + block.label_ids.nbytes <= 40_000 for block in drawn)


@pytest.mark.parametrize("class_weights", ["balanced", "none"])
def test_sgd_draws_classes_or_images_alike(opened, class_weights):
    problem = problem_of(opened, solver="sgd", class_weights=class_weights)
    rows, _, _ = problem.training.by_class
    (places,) = sgd.batches(problem, 100, 0, [300])
    shares = np.bincount(opened.label_ids[rows[places]].ravel()) / places.size
    expected = np.full(3, 1 / 3) if class_weights == "balanced" else np.array(COUNTS) / sum(COUNTS)
    # Five standard deviations of 30,000 draws.
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected * (1 - expected) / places.size)).all()


def test_a_step_draws_the_same_however_the_calls_are_cut(opened):
    problem = problem_of(opened, solver="sgd")
    (whole,) = sgd.batches(problem, 20, 0, [260])
    parts = list(sgd.batches(problem, 20, 0, [1, 99, 100, 101, 260]))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    (rest,) = sgd.batches(problem, 20, 150, [260])
    np.testing.assert_array_equal(rest, whole[150:])
    assert len({batch.tobytes() for batch in whole}) == 260


def test_sgd_validates_on_draws(opened, path):
    problem = problem_of(opened, solver="sgd", validation_batch_size=7, eval_step_interval=8)
    x, y = vectors_of(problem.validation)
    rows, _, _ = problem.validation.by_class
    place_of = {row: place for place, row in enumerate(problem.validation.rows.tolist())}
    found = list(solvers.solve(problem))
    assert len(found) == 8
    for progress in found:
        generator = np.random.default_rng([problem.settings.seed, 2, progress.step])
        drawn = [place_of[row] for row in rows[stream.draw(problem.validation, generator, (7,))].tolist()]
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


# --- sweep -----------------------------------------------------------------------------------------------------


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
    *_, (weights, biases, _, _) = descended(problem, 60, 0.1, 0.01, counts * 3 / counts.sum())
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


def test_heads_that_diverge_are_told_and_harm_no_other(opened):
    trials = [Trial(0.0, rate, "none", None, None, False) for rate in (0.1, 1e38)]
    *_, last = sweep.sweep(problem_of(opened, solver="sweep"), None, trials)
    assert [trial.chosen for trial in last.grid] == [True, False]
    assert np.isnan([last.grid[1].validation_accuracy, last.grid[1].validation_cross_entropy]).all()
    *_, alone = sweep.sweep(problem_of(opened, solver="sweep"), None, trials[:1])
    assert_same_head(last.head, alone.head)
    with pytest.raises(UserError, match="all heads of the sweep have diverged"):
        list(sweep.sweep(problem_of(opened, solver="sweep", how_many_training_steps=200), None, [trials[1]]))


# --- all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_way_that_the_data_takes_makes_no_difference(opened, monkeypatch, solver):
    *_, resident = solvers.solve(problem_of(opened, solver=solver))
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 30 * small_cache.DIMENSION * 4)
    monkeypatch.setattr(stream, "RUN_BYTES", 0)  # the images of a resident set are drawn one by one
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
            monkeypatch.setattr(stream, "RESIDENT_BYTES", resident_bytes)
            assert stream.run_of(problem.training, 2000) == run
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
    fitting.close()  # hangs where a thread is not told


# --- distorted versions ----------------------------------------------------------------------------------------


def test_distorted_versions_train_beside_the_plain_images(tmp_path):
    plain = small_cache.open_with(tmp_path / "plain", counts=(4, 3))
    others = [small_cache.open_with(tmp_path / f"{n}", counts=(4, 3), noise=50 + n) for n in (1, 2)]
    images = Images(plain, np.array([1, 2, 5])).with_versions(others)
    assert images.rows.tolist() == [1, 2, 5, 8, 9, 12, 15, 16, 19]
    assert images.label_ids.tolist() == [0, 0, 1] * 3
    order = np.array([15, 2, 8])
    expected = np.concatenate([others[1].bottlenecks([1]), plain.bottlenecks([2]), others[0].bottlenecks([1])])
    np.testing.assert_array_equal(images.bottlenecks(order), expected)
    assert np.ptp(expected, axis=0).all()
    blocks = list(stream.sequential(images))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in blocks]), images.label_ids)


@pytest.mark.parametrize("solver", ["sgd", "sweep"])
def test_the_runs_of_every_version_are_asked_for_ahead_of_need(tmp_path, monkeypatch, solver):
    plain = small_cache.open_with(tmp_path / "plain", counts=(40, 40, 40))
    version = small_cache.open_with(tmp_path / "version", counts=(50, 50, 50))
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    asked = []
    monkeypatch.setattr(cache.reader.Cache, "will_need", lambda where, rows: asked.append((where, rows)))
    problem = problem_of(plain, solver=solver, how_many_training_steps=100)
    rows = problem.training.rows
    # Image i of the plain cache is image i + 7 of the version's.
    images = Images(plain, np.concatenate([rows, rows + len(plain)]), (version,), (np.arange(len(plain)) + 7,))
    list(solvers.solve(replace(problem, training=images)))
    found = {id(where): set() for where in (plain, version)}
    for where, some in asked:
        found[id(where)].update(some.tolist())
    # Not for the images that validate: those are drawn one by one.
    assert found == {id(plain): set(rows.tolist()), id(version): set((rows + 7).tolist())}


def test_an_image_that_a_version_lacks_trains_without_it(tmp_path):
    plain = small_cache.open_with(tmp_path / "plain", counts=(4, 3))
    fewer = small_cache.open_with(tmp_path / "fewer", counts=(2, 3))
    images = Images(plain, np.arange(7)).with_versions([fewer])
    # Sizes and times are made up from each path's place in its shard: only where they agree, it is the same file.
    found = images.rows[7:] - 7
    places = cache.reader.places(fewer, plain)
    assert found.tolist() == np.flatnonzero(places >= 0).tolist()
    np.testing.assert_array_equal(images.bottlenecks(found + 7), fewer.bottlenecks(places[found]))


def test_the_gradient_of_a_block_is_that_of_the_loss():
    generator = np.random.default_rng(2)
    scores = tf.constant(generator.normal(size=(9, 4)), tf.float32)
    label_ids = tf.constant(generator.integers(4, size=9), tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        picked = tf.gather(tf.nn.log_softmax(scores), label_ids, batch_dims=1)
        total = -tf.reduce_sum(picked)
    losses, error = head.loss(scores, label_ids)
    np.testing.assert_allclose(losses, -picked, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error, tape.gradient(total, scores), rtol=1e-5, atol=1e-6)
