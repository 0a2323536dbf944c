"""Training on a small real cache: the whole command, what it leaves behind, and what it refuses."""

import json
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from cache import console, layout
from cache.errors import CacheError, UserError
from tests import small_cache
from tests.processes import REPO
from tests.train.data.test_split import by_the_book
from tests.train.runs import quick
from train import run
from train.__main__ import main
from train.data import split
from train.settings import SOLVERS

RATE, STEPS = ["--learning_rate", "0.1"], ["--how_many_training_steps", "100"]


def test_a_learning_rate_that_diverges_is_named(cache_dir, tmp_path):
    with pytest.raises(UserError, match=r"--learning_rate.*1e\+38"):
        run.fit(quick(cache_dir, tmp_path, learning_rate=1e38))


def test_a_run_learns_and_prints_how_well(cache_dir, tmp_path, capsys):
    arguments = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out")]
    assert console.run(main, [*arguments, "--solver", "sgd", "--how_many_training_steps", "300", *RATE]) == 0
    out = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "out" / "latest/metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.8
    accuracy, count = re.fullmatch(r"Final test accuracy = (\d+\.\d)% \(N=(\d+)\)", out[-1]).groups()
    assert int(count) == metrics["test"]["count"] == metrics["images"]["test"] == np.sum(metrics["test"]["confusion"])
    assert float(accuracy) == round(100 * metrics["test"]["accuracy"], 1)
    assert out[-2].endswith(f"python -m train.predict --model {tmp_path / 'out'} photo.jpg")
    assert sum(line.startswith("Step ") for line in out) == 10
    assert sum(metrics["images"].values()) == 150
    assert (tmp_path / "out" / "latest/labels.txt").read_text().splitlines() == small_cache.LABELS == metrics["labels"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"latest", "logs", "runs"}
    names = {"saved_model", "labels.txt", "head.h5", "metrics.json", "report.html"}
    assert {p.name for p in (tmp_path / "out" / "latest").iterdir()} == names
    (line,) = [line for line in out if line.startswith("sgd, ")]
    assert line.endswith(
        f"; in {tmp_path / 'out' / 'latest'}: saved_model/, labels.txt, head.h5, metrics.json, report.html"
    )


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
    assert console.run(main, flags) == 0
    out = capsys.readouterr().out.splitlines()
    metrics = json.loads((tmp_path / "out" / "latest/metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.75
    chosen = [trial for trial in metrics["grid"] if trial["chosen"]]
    (line,) = [line for line in out if line.startswith(f"{solver}, ")]
    if solver == "sgd":
        assert not metrics["grid"]
        assert line.startswith("sgd, 100 steps in ")
    if solver == "lbfgs":
        weights = f"L2 {chosen[0]['l2']:.2g}, class weights {chosen[0]['class_weights']}"
        fits = f"{metrics['curve'][-1]['step']} iterations: {weights} chosen from {len(metrics['grid'])} fits"
        assert line.startswith(f"lbfgs, {fits}, refitted on training and validation photos in ")
    if solver == "sweep":
        assert re.search(rf"learning rate {chosen[0]['learning_rate']:g}, L2 .* chosen from 64 heads", line)
    steps = [point["step"] for point in metrics["curve"]]
    assert steps == sorted(set(steps))
    assert metrics["solver"] == metrics["settings"]["solver"] == solver
    report = (tmp_path / "out" / "latest/report.html").read_text()
    assert ("Hyperparameter search" in report) == (solver != "sgd")


def test_the_default_needs_no_flag(cache_dir, tmp_path, capsys):
    assert console.run(main, ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out")]) == 0
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
    printed = capsys.readouterr()
    assert result.counts == (150, 0, 0)
    assert result.test is None
    assert "no photo fell into the validation set" in printed.err
    assert printed.out.splitlines()[-1].startswith("Final test accuracy is unknown: no photo fell into the test set")
    assert "Validation accuracy = unknown (N=0)" in printed.out
    assert json.loads((tmp_path / "latest/metrics.json").read_text())["test"] is None
    assert "No test photos" in (tmp_path / "latest/report.html").read_text()


def test_misclassified_images_are_printed(tmp_path, capsys):
    cache_dir = small_cache.make(tmp_path, noise=90)
    result = run.fit(quick(cache_dir, tmp_path / "out", print_misclassified_test_images=True, testing_percentage=40.0))
    lines = capsys.readouterr().out.partition("Misclassified test images:\n")[2].splitlines()
    mistakes = list(zip(result.test.mistakes, result.test.predicted, strict=True))
    assert mistakes, "a test of mistakes needs some"
    assert lines == [f"{result.cache.paths[row]}  {small_cache.LABELS[label]}" for row, label in mistakes]


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
        (["--solver", "sweep", "--validation_percentage", "0"], "a sweep needs validation photos to choose by"),
        (["--module", "another"], "holds no bottlenecks of another"),
    ],
)
def test_flag_errors_are_one_line_and_need_no_tensorflow(cache_dir, tmp_path, without_tensorflow, flags, message):
    flags = ["--cache_dir", cache_dir, "--output_dir", tmp_path / "out", *flags]
    assert message in without_tensorflow.error("train.__main__", *flags)
    assert not (tmp_path / "out").exists()


def test_errors_of_folders_are_one_line_and_need_no_tensorflow(cache_dir, tmp_path, without_tensorflow):
    def error(cache_dir, *flags, output_dir=tmp_path / "out"):
        return without_tensorflow.error("train.__main__", "--cache_dir", cache_dir, "--output_dir", output_dir, *flags)

    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "no cache at" in error(tmp_path / "none")
    assert "holds no bottlenecks" in error(tmp_path / "empty")
    assert "no run was interrupted" in error(cache_dir, "--resume")
    assert not (tmp_path / "out").exists()
    line = error(cache_dir, output_dir=tmp_path / "file" / "out")
    assert line.startswith(f"error: cannot write {tmp_path / 'file' / 'out'}: ")
    assert "--output_dir" in line


def test_a_class_of_one_photo_trains(tmp_path, capsys):
    cache_dir = small_cache.make(tmp_path, counts=(50, 50, 1))
    only = "red things/000.png"
    share = float(next(p for p in range(30, 100) if by_the_book(only, p, 0) == split.TEST))
    result = run.fit(quick(cache_dir, tmp_path / "out", testing_percentage=share, validation_percentage=0.0))
    assert result.test.confusion.sum(axis=1)[2] == 0
    assert "so one trains: 'red things'" in capsys.readouterr().err


def test_a_cache_without_its_backbone_is_refused_before_training(cache_dir, tmp_path):
    copied = shutil.copytree(cache_dir, tmp_path / "cache")
    (folder,) = layout.directories(copied)
    (folder / "backbone" / "saved_model.pb").unlink()
    with pytest.raises(CacheError, match="holds no SavedModel"):
        run.fit(quick(copied, tmp_path / "out"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def places(folder):
    """One byte of each kind of file that a run reads: (file, offset)."""
    path = folder / "shards" / layout.shard_names(folder)[0]
    with h5py.File(path) as file:
        yield path, file["bottlenecks"].id.get_offset() + 100
    with h5py.File(folder / layout.INDEX) as file:
        yield folder / layout.INDEX, file["label_ids"].id.get_offset()
    yield folder / "backbone" / "saved_model.pb", 2000


@pytest.mark.parametrize("which", range(3))
def test_a_flipped_bit_ends_training_instead_of_making_a_worse_classifier(cache_dir, tmp_path, capsys, which):
    copied = shutil.copytree(cache_dir, tmp_path / "cache")
    (folder,) = layout.directories(copied)
    path, place = list(places(folder))[which]
    flip(path, place)
    assert console.run(main, ["--cache_dir", str(copied), "--output_dir", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path if path.suffix == '.h5' else path.parent} is damaged")
    assert "verify --repair" in line
    assert not (tmp_path / "out").exists()


def test_help_needs_neither_numpy_nor_tensorflow():
    script = """
import sys
import retrain, train.__main__, train.predict
print(*(module.parser().format_help() for module in (retrain, train.__main__, train.predict)))
print([name for name in ("numpy", "tensorflow") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for flag in ("--eval_step_interval", "--top_k", "--tfhub_module"):
        assert flag in done.stdout


@pytest.mark.parametrize("solver", ["sgd", "sweep"])
def test_a_batch_beyond_memory_is_one_line(cache_dir, tmp_path, capsys, solver):
    flags = ["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / "out"), "--train_batch_size", str(10**14)]
    assert console.run(main, [*flags, "--solver", solver]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(
        f"error: not enough memory for {solver}; lower --train_batch_size, it is 100,000,000,000,000"
    )
