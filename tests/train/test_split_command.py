"""`python -m train --split`: from folders of photos to a classifier of the classes below the parts."""

import itertools
import json

import numpy as np
import pytest

import cache
from cache import console
from extract.run import extract
from extract.settings import Settings
from tests import small_cache
from train.__main__ import main
from train.report import evaluate

COUNTS = {"train": 40, "val": 12, "test": 15}
CLASSES = ["dark blue", "green"]


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory, module):
    """The cache of photos such as train/Dark-Blue/000.png."""
    root = tmp_path_factory.mktemp("folders")
    places = [(part, c, i) for part, count in COUNTS.items() for c in range(2) for i in range(count)]
    paths = [f"{part}/{('Dark-Blue', 'green')[c]}/{i:03}.png" for part, c, i in places]
    small_cache.write_photos(root / "photos", paths, np.array([c for _, c, _ in places]), noise=20)
    settings = Settings(str(root / "photos"), str(root / "cache"), module, image_size=(16, 16), engine="tensorflow")
    return extract(settings).directory


def train(capsys, cache_dir, output_dir, *flags):
    """(the line on the classes, standard error, metrics.json) of a short run."""
    arguments = [
        "--cache_dir",
        cache_dir,
        "--output_dir",
        output_dir,
        "--solver",
        "sgd",
        "--how_many_training_steps",
        200,
    ]
    status = console.run(main, [*map(str, arguments), "--learning_rate", "0.5", *map(str, flags)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    (line,) = [line for line in printed.out.splitlines() if " classes, " in line]
    return line, printed.err, json.loads((output_dir / "latest/metrics.json").read_text())


@pytest.mark.parametrize("flags", [[], ["--split", "folders"]])
def test_folders_split_and_the_classes_lie_below(laid_out, tmp_path, capsys, flags):
    line, errors, metrics = train(capsys, laid_out, tmp_path / "out", *flags)
    assert line == "2 classes, 134 photos: 80 train, 24 validate, 30 test; split by folders"
    assert errors == ""
    assert (tmp_path / "out" / "latest/labels.txt").read_text().splitlines() == CLASSES == metrics["labels"]
    assert metrics["images"] == {"train": 80, "validation": 24, "test": 30}
    assert np.sum(metrics["test"]["confusion"], axis=1).tolist() == [15, 15]
    assert metrics["test"]["accuracy"] > 0.9


def test_the_hash_sees_the_parts_as_classes(laid_out, tmp_path, capsys):
    line, _, metrics = train(capsys, laid_out, tmp_path / "out", "--split", "hash")
    assert line.startswith("6 classes, 134 photos: ")
    assert line.endswith(" test; split by hash")
    assert metrics["labels"] == [f"{part} {name}" for part in ("test", "train", "val") for name in CLASSES]


def test_a_file_splits(cache_dir, tmp_path, capsys, monkeypatch):
    paths = list(cache.open(cache_dir).paths)
    parts = dict(zip(paths, np.random.default_rng(0).permutation(np.repeat(["train", "val", "test"], 50)), strict=True))
    (tmp_path / "parts.csv").write_text("path,part\n" + "".join(f"{path},{parts[path]}\n" for path in paths))
    seen = []
    evaluation = evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda h, images: seen.append(images) or evaluation(h, images))
    line, errors, metrics = train(capsys, cache_dir, tmp_path / "out", "--split", tmp_path / "parts.csv")
    assert line == f"3 classes, 150 photos: 50 train, 50 validate, 50 test; split by {tmp_path / 'parts.csv'}"
    assert errors == ""
    assert metrics["images"] == {"train": 50, "validation": 50, "test": 50}
    assert metrics["settings"]["split"] == str(tmp_path / "parts.csv")
    for images, part in ((seen[0], "val"), (seen[-1], "test")):
        assert {parts[images.cache.paths[row]] for row in images.rows} == {part}


def test_photos_that_a_file_leaves_out_take_part_in_nothing(cache_dir, tmp_path, capsys):
    kept = [path for path in cache.open(cache_dir).paths if not path.startswith("green")]
    parts = itertools.cycle(["train", "train", "train", "val", "test"])
    (tmp_path / "parts.csv").write_text("".join(f"{path},{next(parts)}\n" for path in kept))
    line, errors, metrics = train(capsys, cache_dir, tmp_path / "out", "--split", tmp_path / "parts.csv")
    assert line.startswith("2 classes, 100 photos: ")
    assert "50 photos are left out" in errors
    assert metrics["labels"] == ["blue things", "red things"]
    assert metrics["test"]["accuracy"] > 0.8
