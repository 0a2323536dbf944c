"""Training on a small real cache: the solver, the draws, the evaluation, the command and what it leaves behind."""

import json
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

from cache import command, store
from cache.errors import CacheError, UserError
from tests import small_cache
from tests.problems import softmax, vectors_of
from tests.test_split import by_the_book
from train import evaluate, head, run, split, stream
from train.__main__ import main
from train.settings import SOLVERS
from train.stream import Images


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return small_cache.make(tmp_path_factory.mktemp("small"), dtypes=("f2", "f4"))


@pytest.fixture(scope="module")
def opened(cache_dir):
    return run.bottlenecks.open(cache_dir)


@pytest.fixture(scope="module")
def trained(cache_dir, tmp_path_factory):
    return run.train(quick(cache_dir, tmp_path_factory.mktemp("trained") / "out"))


RATE, STEPS = ["--learning_rate", "0.1"], ["--how_many_training_steps", "100"]


def quick(cache_dir, output_dir, **settings):
    """Settings of a run that takes a moment."""
    values = {"solver": "sgd", "how_many_training_steps": 205, "learning_rate": 0.1, "train_batch_size": 20, **settings}
    return run.TrainSettings(cache_dir, output_dir, **values)


# --- the draws ------------------------------------------------------------------------------------------------


def test_draws_are_balanced_over_classes_and_images(tmp_path):
    counts = (60, 12, 3)
    opened = small_cache.open_with(tmp_path, counts=counts)
    images = Images(opened, np.arange(len(opened)))
    rows, _, _ = images.by_class
    drawn = np.bincount(rows[stream.draw(images, np.random.default_rng(1), (30_000,))], minlength=len(opened))
    per_class = np.bincount(opened.label_ids, weights=drawn)
    # Binomial counts: within five standard deviations, for the 3 classes and each of the 75 images.
    for expected, found in [(1 / 3, per_class), (1 / 3 / np.repeat(counts, counts), drawn)]:
        sigma = np.sqrt(30_000 * expected * (1 - expected))
        assert (np.abs(found - 30_000 * expected) < 5 * sigma).all()


def test_only_images_of_the_set_are_drawn_and_empty_classes_are_not(opened):
    images = Images(opened, np.array([3, 5, 120]))  # none of the middle class
    rows, _, _ = images.by_class
    assert set(rows[stream.draw(images, np.random.default_rng(0), (50, 4))].ravel()) == {3, 5, 120}


@pytest.mark.parametrize("balanced", [True, False])
def test_runs_of_images_are_drawn_and_mixed(tmp_path, balanced):
    counts, run = (60, 12, 3), 6
    opened = small_cache.open_with(tmp_path, counts=counts)
    images = Images(opened, np.arange(len(opened)))
    drawn = stream.draw(images, np.random.default_rng(1), (500, 60), balanced, run)
    assert drawn.shape == (500, 60)
    # Every image is as likely as alone. A run's images come together: deviations are up to sqrt(6) times larger, and
    # again twice where a class of 3 has each image twice in a run.
    expected = np.repeat(np.array([1 / 3] * 3) / counts, counts) if balanced else np.full(75, 1 / 75)
    found = np.bincount(drawn.reshape(-1), minlength=75)
    deviation = np.sqrt(2 * run * 30_000 * expected)
    assert (np.abs(found - 30_000 * expected) < 5 * deviation).all()
    # Each first image is followed by the next ones of its class, and behind the last one by the first.
    one = sorted(stream.draw(images, np.random.default_rng(2), (run,), balanced, run).tolist())
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
    assert stream.run_of(images, drawn) == 1  # a resident set needs none
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(stream, "RUN_BYTES", 128 * images.row_bytes)
    assert stream.run_of(images, drawn) == run


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_blocks_hold_the_bottlenecks_of_the_drawn_images(opened, monkeypatch, resident_bytes):
    monkeypatch.setattr(stream, "RESIDENT_BYTES", resident_bytes)
    images = Images(opened, np.arange(1, len(opened), 2))
    rows, _, _ = images.by_class
    batches = [stream.draw(images, np.random.default_rng(seed), (length, 5)) for seed, length in enumerate((3, 3, 1))]
    for places, block in zip(batches, stream.blocks(images, batches, "/CPU:0"), strict=True):
        expected, label_ids = vectors_of(Images(opened, rows[places].ravel()))
        assert block.places.shape == block.label_ids.shape == places.shape
        np.testing.assert_array_equal(block.bottlenecks.numpy()[block.places].reshape(-1, 16), expected)
        np.testing.assert_array_equal(block.label_ids.ravel(), label_ids)


def test_passes_hold_each_image_once_time_after_time(opened, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 7 * small_cache.DIMENSION * 4)
    images = Images(opened, np.arange(0, 100, 3))
    expected, label_ids = vectors_of(images)
    for resident_bytes in (0, 1 << 30):
        monkeypatch.setattr(stream, "RESIDENT_BYTES", resident_bytes)
        for _, blocks in zip(range(2), stream.passes(images, "/CPU:0"), strict=False):
            found = list(blocks)
            assert [len(ids) for _, ids in found] == [7, 7, 7, 7, 6]
            np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in found]), expected)
            np.testing.assert_array_equal(np.concatenate([ids for _, ids in found]), label_ids)


def test_sequential_blocks_are_bounded_and_hold_each_image_once(opened, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 7 * small_cache.DIMENSION * 4)
    images = Images(opened, np.arange(0, 100, 3))
    blocks = list(stream.sequential(images))
    assert [len(label_ids) for _, label_ids in blocks] == [7, 7, 7, 7, 6]
    expected, label_ids = vectors_of(images)
    np.testing.assert_array_equal(np.concatenate([bottlenecks for bottlenecks, _ in blocks]), expected)
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in blocks]), label_ids)


def test_an_error_while_gathering_ahead_reaches_the_caller(opened, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", small_cache.DIMENSION * 4)
    broken = Images(opened, np.array([0, 10**6]))  # a row that the index does not have
    with pytest.raises(IndexError):
        list(stream.sequential(broken))
    monkeypatch.setattr(stream, "RESIDENT_BYTES", 0)
    with pytest.raises(IndexError):
        list(stream.blocks(broken, [np.zeros((1, 4), int), np.ones((1, 4), int)], "/CPU:0"))


# --- the head and its solver ----------------------------------------------------------------------------------


def test_the_head_starts_as_the_tutorials():
    start = head.initial(300, 40, np.random.default_rng(0))
    assert start.weights.dtype == start.biases.dtype == np.float32
    assert not start.biases.any()
    assert np.abs(start.weights).max() <= 0.002
    # A normal cut off at two standard deviations keeps a standard deviation of 0.8796 of them.
    assert start.weights.std() == pytest.approx(0.0008796, rel=0.02)
    assert abs(start.weights.mean()) < 5 * 0.00088 / np.sqrt(start.weights.size)


def test_a_learning_rate_that_diverges_is_named(cache_dir, tmp_path):
    with pytest.raises(UserError, match=r"--learning_rate.*1e\+38"):
        run.fit(quick(cache_dir, tmp_path, learning_rate=1e38))


# --- evaluation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_bytes", [stream.BLOCK_BYTES, 1000])
def test_evaluation_agrees_with_numpy(opened, monkeypatch, block_bytes):
    monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
    generator = np.random.default_rng(6)
    images = Images(opened, generator.permutation(len(opened))[:111])
    x, label_ids = vectors_of(images)
    weights = generator.normal(size=(small_cache.DIMENSION, 3)).astype(np.float32)
    random_head = head.Head(weights, -(x.mean(axis=0) @ weights).astype(np.float32))  # so that no class wins always
    probabilities = softmax(x @ random_head.weights + random_head.biases)
    predicted = probabilities.argmax(axis=1)
    found = evaluate.evaluate(random_head, images)

    wrong = np.flatnonzero(predicted != label_ids)
    assert 0 < len(wrong) < 111, "a test of mistakes needs some"
    assert set(predicted) == {0, 1, 2}
    assert found.count == 111
    assert found.accuracy == pytest.approx(1 - len(wrong) / 111)
    assert found.cross_entropy == pytest.approx(-np.log(probabilities[range(111), label_ids]).mean(), rel=1e-4)
    for truth in range(3):
        for taken in range(3):
            assert found.confusion[truth, taken] == sum((label_ids == truth) & (predicted == taken))
        assert found.recall[truth] == pytest.approx((predicted[label_ids == truth] == truth).mean())
        assert found.precision[truth] == pytest.approx((label_ids[predicted == truth] == truth).mean())
    np.testing.assert_array_equal(found.mistakes, images.rows[wrong])
    np.testing.assert_array_equal(found.predicted, predicted[wrong])
    np.testing.assert_allclose(found.probabilities, probabilities[wrong].max(axis=1), rtol=1e-4)


def test_the_calibration_is_that_of_a_slow_reference(opened, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1000)  # several blocks: their bins add up
    weights = np.random.default_rng(7).normal(size=(small_cache.DIMENSION, 3)).astype(np.float32) * 4
    images = Images(opened, np.arange(len(opened)))
    x, label_ids = vectors_of(images)
    some_head = head.Head(weights, -(x.mean(axis=0) @ weights).astype(np.float32))
    probabilities = softmax(x @ some_head.weights + some_head.biases)
    right, top = probabilities.argmax(axis=1) == label_ids, probabilities.max(axis=1)
    found = evaluate.evaluate(some_head, images).calibration
    error = 0.0
    for b in range(15):
        inside = (top > b / 15) & (top <= (b + 1) / 15)
        assert found.counts[b] == inside.sum()
        assert found.hits[b] == right[inside].sum()
        if not inside.any():
            assert np.isnan(found.accuracy[b])
            assert np.isnan(found.confidence[b])
            continue
        assert found.accuracy[b] == pytest.approx(right[inside].mean())
        assert found.confidence[b] == pytest.approx(top[inside].mean(), rel=1e-4)
        error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    assert np.count_nonzero(found.counts) > 5, "a test of bins needs several"
    assert found.error == pytest.approx(error, rel=1e-3)
    assert found.excess == pytest.approx(top.mean() - right.mean(), abs=1e-4)


def test_a_sure_head_falls_into_the_last_bin(opened):
    sure = head.Head(np.zeros((16, 3), np.float32), np.float32([200, 0, 0]))  # its probability rounds to 1
    found = evaluate.evaluate(sure, Images(opened, np.arange(60))).calibration  # 50 images of the first class
    assert (found.counts[14], found.hits[14], found.counts[:14].sum()) == (60, 50, 0)
    assert found.error == found.excess == pytest.approx(1 / 6)


def test_a_class_without_images_has_no_recall(opened):
    found = evaluate.evaluate(
        head.Head(np.zeros((16, 3), np.float32), np.float32([1, 0, 0])), Images(opened, np.arange(10))
    )
    assert found.recall[0] == found.precision[0] == 1
    assert np.isnan(found.recall[1:]).all()
    assert np.isnan(found.precision[1:]).all()


def test_an_empty_set_cannot_be_evaluated(opened):
    empty = head.Head(np.zeros((16, 3), np.float32), np.zeros(3, np.float32))
    assert evaluate.evaluate(empty, Images(opened, np.arange(0))) is None


# --- a whole run ----------------------------------------------------------------------------------------------


def test_a_run_learns_and_tells_so(cache_dir, tmp_path, capsys):
    arguments = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out")]
    assert command.run(main, [*arguments, "--solver", "sgd", "--how_many_training_steps", "300", *RATE]) == 0
    out = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.8
    accuracy, count = re.fullmatch(r"Final test accuracy = (\d+\.\d)% \(N=(\d+)\)", out[-1]).groups()
    assert int(count) == metrics["test"]["count"] == metrics["images"]["test"] == np.sum(metrics["test"]["confusion"])
    assert float(accuracy) == round(100 * metrics["test"]["accuracy"], 1)
    assert out[-2].endswith(f"python -m train.predict --model {tmp_path / 'out'} photo.jpg")
    assert sum(line.startswith("Step ") for line in out) == 10
    assert sum(metrics["images"].values()) == 150
    assert (tmp_path / "out" / "labels.txt").read_text().splitlines() == small_cache.LABELS == metrics["labels"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "saved_model",
        "labels.txt",
        "metrics.json",
        "report.html",
        "logs",
    }


def test_a_seed_repeats_a_run_and_another_does_not(trained, cache_dir, tmp_path):
    again = run.fit(quick(cache_dir, tmp_path / "again"))
    np.testing.assert_array_equal(again.head.weights, trained.head.weights)
    assert again.curve == trained.curve
    other = run.fit(quick(cache_dir, tmp_path / "other", seed=1))
    assert not np.array_equal(other.head.weights, trained.head.weights)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float16_and_float32_shards_train_as_float32_alone_does(opened, cache_dir, tmp_path, solver):
    assert {s.rows.bottlenecks.dtype.name for s in opened.shards} == {"float16", "float32"}
    settings = {"solver": solver, "l2": None if solver == "sweep" else 0.01}
    mixed = run.fit(quick(cache_dir, tmp_path / "mixed", **settings))
    whole = run.fit(quick(small_cache.make(tmp_path), tmp_path / "whole", **settings))
    assert whole.cache.dtype == np.float32
    rounding = np.abs(mixed.cache.bottlenecks(np.arange(150)) - whole.cache.bottlenecks(np.arange(150)))
    assert 0 < rounding.max() < 0.002
    assert mixed.head.weights.dtype == mixed.head.biases.dtype == np.float32
    scale = np.abs(whole.head.weights).max()
    np.testing.assert_allclose(mixed.head.weights, whole.head.weights, atol=0.002 * scale)
    np.testing.assert_allclose(mixed.head.biases, whole.head.biases, atol=0.002 * scale)
    assert mixed.test.confusion.tolist() == whole.test.confusion.tolist()


def test_a_cache_of_float16_alone_trains(tmp_path):
    cache_dir = small_cache.make(tmp_path, dtypes=("f2",))
    result = run.fit(quick(cache_dir, tmp_path / "out"))
    assert result.cache.dtype == np.float16
    assert result.head.weights.dtype == np.float32
    assert result.test.accuracy > 0.8


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_ends_with_a_classifier_and_says_how(cache_dir, tmp_path, capsys, solver):
    steps = {"sgd": [*STEPS, *RATE], "sweep": STEPS, "lbfgs": []}[solver]
    flags = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out"), "--solver", solver, *steps]
    assert command.run(main, flags) == 0
    out = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.75
    chosen = [trial for trial in metrics["grid"] if trial["chosen"]]
    (line,) = [line for line in out if line.startswith(f"{solver}, ")]
    if solver == "sgd":
        assert not metrics["grid"]
        assert line.startswith("sgd, 100 steps in ")
    if solver == "lbfgs":
        weights = f"L2 {chosen[0]['l2']:.2g}, class weights {chosen[0]['class_weights']}"
        fits = f"{metrics['curve'][-1]['step']} iterations: {weights} chosen from {len(metrics['grid'])} fits"
        assert line.startswith(f"lbfgs, {fits}, refitted with the validation images in ")
    if solver == "sweep":
        assert re.search(rf"learning rate {chosen[0]['learning_rate']:g}, L2 .* chosen from 64 heads", line)
    steps = [point["step"] for point in metrics["curve"]]
    assert steps == sorted(set(steps))
    assert metrics["solver"] == metrics["settings"]["solver"] == solver
    report = (tmp_path / "out" / "report.html").read_text()
    assert ("What was tried" in report) == (solver != "sgd")


def test_what_a_former_run_exported_does_not_stay_beside_another_classifier(cache_dir, tmp_path):
    left = [tmp_path / name for name in ("classifier_int8.tflite", "frozen_graph.pb", "interrupted.npz")]
    for path in left:
        path.write_bytes(b"of a former run")
    (tmp_path / "mine.txt").write_text("stays")
    run.train(quick(cache_dir, tmp_path))
    assert not any(path.exists() for path in left)
    assert (tmp_path / "mine.txt").exists()


def test_the_default_needs_no_flag(cache_dir, tmp_path, capsys):
    assert command.run(main, ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out")]) == 0
    assert "\nlbfgs, " in capsys.readouterr().out


def test_evaluation_points_follow_the_interval(cache_dir, tmp_path):
    result = run.fit(quick(cache_dir, tmp_path, how_many_training_steps=25, eval_step_interval=7))
    assert [point.step for point in result.curve] == [7, 14, 21, 25]


def test_a_test_batch_is_a_part_of_the_test_set(cache_dir, tmp_path, trained):
    steps = {"how_many_training_steps": 10}
    few = run.fit(quick(cache_dir, tmp_path, test_batch_size=4, **steps))
    assert (few.test.count, few.validation.count) == (4, trained.counts[1])
    assert run.fit(quick(cache_dir, tmp_path, test_batch_size=10**6, **steps)).test.count == trained.counts[2]


def test_empty_validation_and_test_sets(cache_dir, tmp_path, capsys):
    result = run.train(quick(cache_dir, tmp_path, testing_percentage=0.0, validation_percentage=0.0))
    told = capsys.readouterr()
    assert result.counts == (150, 0, 0)
    assert result.test is None
    assert "no image fell into the validation set" in told.err
    assert told.out.splitlines()[-1].startswith("Final test accuracy cannot be told: no image fell into the test set")
    assert "Validation accuracy = unknown (N=0)" in told.out
    assert json.loads((tmp_path / "metrics.json").read_text())["test"] is None
    assert "No test images" in (tmp_path / "report.html").read_text()


def test_misclassified_images_are_printed(tmp_path, capsys):
    cache_dir = small_cache.make(tmp_path, noise=90)
    result = run.fit(quick(cache_dir, tmp_path / "out", print_misclassified_test_images=True, testing_percentage=40.0))
    lines = capsys.readouterr().out.partition("Misclassified test images:\n")[2].splitlines()
    mistakes = list(zip(result.test.mistakes, result.test.predicted, strict=True))
    assert mistakes, "a test of mistakes needs some"
    assert lines == [f"{result.cache.paths[row]}  {small_cache.LABELS[label]}" for row, label in mistakes]


# --- errors ---------------------------------------------------------------------------------------------------

TELLING = """
import sys
from cache import command
from {module} import main
status = command.run(main, sys.argv[1:])
print("tensorflow" in sys.modules)
sys.exit(status)
"""


def tell(module, *arguments):
    """The one line on standard error of a command that must fail before TensorFlow is imported."""
    done = subprocess.run(
        [sys.executable, "-c", TELLING.format(module=module), *map(str, arguments)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cache_dir", ""], "--cache_dir: an empty path; name a file or folder"),
        (["--output_dir", ""], "--output_dir: an empty path; name a file or folder"),
        (["--split", ""], "--split: an empty path; name a file or folder"),
        (["--train_batch_size", "0"], "--train_batch_size: '0' is not a whole number of 1 or more"),
        (["--validation_batch_size", "0"], "or -1 for all"),
        (["--learning_rate", "-1"], "a number above 0"),
        (["--how_many_training_steps", "many"], "'many'"),
        (["--seed", "-1"], "--seed: '-1' is not a whole number from 0 to"),
        (["--testing_percentage", "60", "--validation_percentage", "50"], "their sum must be below 100"),
        (["--testing_percentage", "101"], "a number from 0 to 100"),
        (["--nonsense", "1"], "-h"),
        (
            ["--learning_rate", "0.1"],
            "--learning_rate means nothing to --solver lbfgs; add --solver sgd, or leave it out",
        ),
        (["--solver", "sweep", "--l2", "0"], "--l2 means nothing to --solver sweep; add --solver lbfgs or sgd"),
        (["--solver", "sweep", "--validation_percentage", "0"], "a sweep needs validation images to choose by"),
        (["--module", "another"], "holds no bottlenecks of another"),
    ],
)
def test_flag_errors_are_one_line_and_need_no_tensorflow(cache_dir, tmp_path, flags, message):
    assert message in tell("train.__main__", "--cache_dir", cache_dir, "--output_dir", tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_errors_of_folders_are_one_line_and_need_no_tensorflow(cache_dir, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    output = ["--output_dir", tmp_path / "out"]
    assert "no cache at" in tell("train.__main__", "--cache_dir", tmp_path / "none", *output)
    assert "holds no bottlenecks" in tell("train.__main__", "--cache_dir", tmp_path / "empty", *output)
    assert "no run was interrupted" in tell("train.__main__", "--cache_dir", cache_dir, *output, "--resume")
    assert not (tmp_path / "out").exists()
    line = tell("train.__main__", "--cache_dir", cache_dir, "--output_dir", tmp_path / "file" / "out")
    assert line.startswith(f"error: cannot write {tmp_path / 'file' / 'out'}: ")
    assert "--output_dir" in line


def test_a_class_of_one_image_trains(tmp_path, capsys):
    cache_dir = small_cache.make(tmp_path, counts=(50, 50, 1))
    only = "red things/000.png"
    share = float(next(p for p in range(30, 100) if by_the_book(only, p, 0) == split.TEST))
    result = run.fit(quick(cache_dir, tmp_path / "out", testing_percentage=share, validation_percentage=0.0))
    assert result.test.confusion.sum(axis=1)[2] == 0
    assert "so one trains: 'red things'" in capsys.readouterr().err


def test_a_cache_without_its_backbone_is_refused_before_training(tmp_path):
    cache_dir = small_cache.make(tmp_path)
    (folder,) = store.directories(cache_dir)
    (folder / "backbone" / "saved_model.pb").unlink()
    with pytest.raises(CacheError, match="holds no SavedModel"):
        run.fit(quick(cache_dir, tmp_path / "out"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def places(folder):
    """A byte of each kind of thing that a training reads: (file, where)."""
    path = folder / "shards" / store.shard_names(folder)[0]
    with h5py.File(path) as file:
        yield path, file["bottlenecks"].id.get_offset() + 100
    with h5py.File(folder / store.INDEX) as file:
        yield folder / store.INDEX, file["label_ids"].id.get_offset()
    yield folder / "backbone" / "saved_model.pb", 2000


@pytest.mark.parametrize("which", range(3))
def test_a_flipped_bit_ends_training_instead_of_making_a_worse_classifier(tmp_path, capsys, which):
    cache_dir = small_cache.make(tmp_path, dtypes=("f4", "f2"))
    (folder,) = store.directories(cache_dir)
    path, place = list(places(folder))[which]
    flip(path, place)
    assert command.run(main, ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path if path.suffix == '.h5' else path.parent} is damaged")
    assert "verify --repair" in line
    assert not (tmp_path / "out").exists()


def test_help_teaches_without_numpy():
    script = "import sys; from train.__main__ import parser; print(parser().format_help(), 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
    assert "--eval_step_interval" in done.stdout


@pytest.mark.parametrize("solver", ["sgd", "sweep"])
def test_a_batch_beyond_memory_is_one_line(cache_dir, tmp_path, capsys, solver):
    flags = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out"), "--train_batch_size", str(10**14)]
    assert command.run(main, [*flags, "--solver", solver]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(
        f"error: not enough memory for {solver}; lower --train_batch_size, it is 100,000,000,000,000"
    )
