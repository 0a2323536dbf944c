"""The last fit of a run, on training and validation photos: which photos take part, and what is reported."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cache import console, reader
from cache.errors import UserError
from extract.run import extract
from extract.settings import Settings
from tests import small_cache
from train import run
from train.__main__ import main
from train.checkpoint import FILE
from train.data import split
from train.data.batches import Images
from train.report.evaluate import evaluate
from train.settings import TrainSettings


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return small_cache.make(tmp_path_factory.mktemp("small"), counts=(60, 80, 100), noise=80)


def settings(cache_dir, output_dir, **others):
    return TrainSettings(cache_dir, output_dir, **{"testing_percentage": 30.0, "class_weights": "none", **others})


@pytest.fixture(scope="module")
def both(cache_dir, tmp_path_factory):
    """The same run with the last fit and without."""
    root = tmp_path_factory.mktemp("both")
    return tuple(run.train(settings(cache_dir, root / f"{no_refit}", no_refit=no_refit)) for no_refit in (False, True))


def parts(result, *names):
    return Images(result.cache, np.flatnonzero(np.isin(result.parts, names)))


def test_test_photos_judge_the_last_fit_and_validation_photos_the_one_before(both):
    result, without = both
    assert (result.is_refitted, without.is_refitted) == (True, False)
    assert np.abs(result.head.weights - without.head.weights).max() > 1e-3
    for found, head in ((result.validation, without.head), (result.test, result.head)):
        part = split.VALIDATION if found is result.validation else split.TEST
        expected = evaluate(head, parts(result, part))
        assert found.count == expected.count > 20
        assert found.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-5)
    assert result.grid == without.grid
    # The photos that may train are fitted better than before.
    together = parts(result, split.TRAIN, split.VALIDATION)
    assert evaluate(result.head, together).cross_entropy < evaluate(without.head, together).cross_entropy


def test_what_is_written_says_which_head_it_is_of(both):
    _, without = both
    for one in both:
        folder = one.settings.output_dir / "latest"
        metrics, page = json.loads((folder / "metrics.json").read_text()), (folder / "report.html").read_text()
        assert metrics["refitted"] == one.is_refitted
        assert ("validation accuracy before the refit" in page) == one.is_refitted
        assert ("fits, refitted on training and validation photos in" in page) == one.is_refitted
        assert one.how_fitted.endswith(" fits, refitted on training and validation photos") == one.is_refitted
        validated = [point["validation_accuracy"] is not None for point in metrics["curve"]]
        begins = len(without.curve)
        assert validated == [True] * begins + [False] * (len(validated) - begins)
        assert (len(validated) > begins) == one.is_refitted
        starts = re.findall(r"Refitted on training and validation photos from iteration (\d+) on", page)
        assert starts == ([str(without.curve[-1].step + 1)] if one.is_refitted else [])


def test_lines_report_the_last_fit(cache_dir, tmp_path, capsys):
    run.fit(settings(cache_dir, tmp_path))
    *_, before, last = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Step ")]
    assert "Validation accuracy = " in before
    start = r"Step \d+, refitted on training and validation photos: "
    assert re.fullmatch(start + r"Train accuracy = \d+\.\d%, Cross entropy = \d\.\d+", last)


@pytest.mark.parametrize(
    ("others", "refits"),
    [
        ({}, True),
        ({"l2": 0.01}, True),
        ({"validation_percentage": 0.0}, False),
        ({"solver": "sgd"}, False),
        ({"solver": "sweep"}, False),
    ],
    ids=str,
)
def test_which_settings_have_a_last_fit(cache_dir, tmp_path, others, refits):
    assert run.fit(settings(cache_dir, tmp_path, how_many_training_steps=50, **others)).is_refitted == refits


@pytest.mark.parametrize("named", [True, False])
def test_validation_photos_that_the_user_names_never_train(both, tmp_path, named):
    result, _ = both
    chosen = [path for path, part in zip(result.cache.paths, result.parts, strict=True) if part == split.VALIDATION]
    lines = [f"{path},{'validation' if named and path in chosen else 'train'}\n" for path in result.cache.paths]
    left_out = {line for line in lines[::3] if line.endswith(",train\n")}
    (tmp_path / "parts.csv").write_text("".join(line for line in lines if line not in left_out))
    some = settings(result.settings.cache_dir, tmp_path / "out", split=str(tmp_path / "parts.csv"), l2=0.1)
    found = run.fit(some)
    assert (found.parts == split.LEFT_OUT).sum() == len(left_out) > 50
    assert found.validation.count > 10
    assert found.is_refitted != named
    training, together = parts(found, split.TRAIN), parts(found, split.TRAIN, split.VALIDATION)
    fitted, other = (training, together) if named else (together, training)
    assert steepest(found.head, fitted, 0.1 * len(training) / len(fitted)) < 1e-4
    assert steepest(found.head, other, 0.1 * len(training) / len(other)) > 1e-3


def test_augmentations_of_validation_photos_train_with_them(tmp_path, module):
    paths = [f"{kind}/{i:02}.png" for kind in ("a", "b") for i in range(30)]
    small_cache.write_photos(tmp_path / "photos", paths, np.repeat([0, 1], 30), noise=90)
    directory = extract(
        Settings(str(tmp_path / "photos"), str(tmp_path / "cache"), module, image_size=(16, 16), augment=2)
    ).directory
    result = run.fit(settings(directory, tmp_path / "out", l2=0.1))
    augmentations = reader.augmentations(result.cache)
    assert result.is_refitted
    assert len(augmentations) == 2
    fits = {}
    for names in ((split.TRAIN,), (split.TRAIN, split.VALIDATION)):
        images = parts(result, *names)
        fits[names] = images, images.augmented(augmentations)
    (_, training), (plain, together) = fits.values()
    assert len(together) == 3 * len(plain) > len(training)
    # At the minimum the gradient is that of the penalty alone, whose C is the same as before.
    l2 = 0.1 * len(training) / len(together)
    assert steepest(result.head, together, l2) < 1e-4
    assert steepest(result.head, plain, l2) > 1e-3


def steepest(head, images, l2):
    """The largest part of the gradient of mean cross entropy + l2 / 2 |weights|^2 for the weights."""
    x, y = images.bottlenecks(images.rows).astype(np.float64), images.label_ids
    scores = x @ head.weights + head.biases
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    error = powers / powers.sum(axis=1, keepdims=True) - np.eye(len(head.biases))[y]
    return np.abs(x.T @ error / len(y) + l2 * head.weights).max()


def test_a_run_that_was_interrupted_in_its_last_fit_goes_on_to_the_same_end(both, tmp_path, monkeypatch):
    whole, without = both
    folder, fit = tmp_path / "out", run.fit

    def stopped(some, each):
        def keep(progress, fitting):
            each(progress, fitting)
            if progress.head_before_refit and progress.step > without.curve[-1].step + 2:
                raise KeyboardInterrupt

        return fit(some, keep)

    same = settings(whole.settings.cache_dir, folder)
    monkeypatch.setattr(run, "fit", stopped)
    with pytest.raises(console.Interrupted, match="goes on from there"):
        run.train(same)
    monkeypatch.undo()
    with np.load(folder / FILE) as saved:
        np.testing.assert_array_equal(saved["weights"], without.head.weights)
    arguments = ["--cache_dir", same.cache_dir, "--output_dir", folder, "--testing_percentage", "30", "--resume"]
    arguments = [*map(str, arguments), "--class_weights", "none"]
    with pytest.raises(UserError, match="belongs to a run without --no_refit; do the same"):
        main([*arguments, "--no_refit"])
    named = [f"{path},{split.NAMES[part]}\n" for path, part in zip(whole.cache.paths, whole.parts, strict=True)]
    (tmp_path / "parts.csv").write_text("".join(named))  # the same parts, but now validation photos may not train
    with pytest.raises(UserError, match="on other photos, or on photos split otherwise"):
        main([*arguments, "--split", str(tmp_path / "parts.csv")])
    main(arguments)
    found = json.loads((folder / "latest/metrics.json").read_text())
    expected = json.loads((Path(whole.settings.output_dir) / "latest/metrics.json").read_text())
    for name in ("curve", "grid", "validation", "test", "refitted"):
        assert found[name] == expected[name]


def test_the_flag_is_for_lbfgs(cache_dir, tmp_path):
    with pytest.raises(UserError, match="--no_refit means nothing to --solver sgd; add --solver lbfgs"):
        main(["--cache_dir", str(cache_dir), "--output_dir", str(tmp_path), "--solver", "sgd", "--no_refit"])
