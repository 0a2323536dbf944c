"""The photos nearest to one, and copies, held against a comparison of all with all."""

import json

import numpy as np
import pytest

import cache
from cache import console, near, shard
from cache import index as indexes
from cache.__main__ import main
from cache.strings import Strings
from cache.writer import Writer
from tests.numbered_cache import BACKBONE, DIMENSION

PHOTOS = 60


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Two shards of random directions, compared in blocks of a few. Photo 7 is file 3 again, under another label."""
    monkeypatch.setattr(near, "_BLOCK", 9)
    directory = tmp_path / "cache" / "tiny-0123456789abcdef"
    vectors = np.random.default_rng(0).normal(size=(PHOTOS, DIMENSION))
    vectors[20] = 1.001 * vectors[50]  # another file of nearly the same picture
    vectors[30] = 0
    numbers = np.arange(PHOTOS)
    paths = [f"{'ab'[number % 2]}/{number:02}.jpg" for number in range(PHOTOS)]
    for part, dtype in ((numbers[::2], "f4"), (numbers[1::2], "f2")):
        with Writer(directory, BACKBONE.attributes()) as writer:
            fingerprints = part.astype("u8")
            writer.append(
                shard.Rows(Strings.of([paths[n] for n in part]), part, part, fingerprints, vectors[part].astype(dtype))
            )
    shard_ids, shard_rows = numbers % 2, numbers // 2
    shard_ids[7], shard_rows[7] = shard_ids[3], shard_rows[3]
    names = sorted(path.name for path in (directory / "shards").iterdir())
    index = indexes.Index(
        "/photos", ["a", "b"], names, Strings.of(paths), numbers, numbers, numbers % 3 // 2, shard_ids, shard_rows
    )
    indexes.write(directory, BACKBONE, index)
    return directory


def cosines_of(opened):
    """float64 [N, N], the obvious way."""
    vectors = opened.bottlenecks(np.arange(len(opened))).astype(np.float64)
    lengths = np.maximum(np.linalg.norm(vectors, axis=1), 1e-30)
    return vectors @ vectors.T / np.outer(lengths, lengths)


@pytest.mark.parametrize("count", [1, 5, 9, 25, PHOTOS, 2 * PHOTOS])
def test_the_nearest_are_those_of_a_comparison_with_all(directory, count):
    opened = cache.open(directory)
    expected = cosines_of(opened)
    rows, cosines = near.nearest(opened, 3 * opened.bottlenecks(np.array([0, 3, 59])), count)
    assert rows.shape == cosines.shape == (3, min(count, PHOTOS))
    for query, found, scores in zip((0, 3, 59), rows, cosines, strict=True):
        assert len(set(found.tolist())) == len(found)
        np.testing.assert_allclose(scores, expected[query, found], atol=1e-5)
        np.testing.assert_allclose(scores, np.sort(expected[query])[::-1][:count], atol=1e-5)
    assert sorted(rows[1, :2].tolist()) == [3, 7][: min(count, 2)]


@pytest.mark.parametrize(("least", "count"), [(0.5, 1000), (0.5, 7), (0.95, 3), (-2, 10_000), (0.9995, 5)])
def test_pairs_are_those_of_a_comparison_with_all(directory, least, count):
    opened = cache.open(directory)
    expected = cosines_of(opened)
    expected[3, 7] = -np.inf  # the same file
    first, second = np.nonzero(np.triu(np.ones_like(expected), 1) * (expected > -np.inf))
    scores = np.sort(expected[first, second])[::-1]
    assert np.abs(scores - least).min() > 1e-4  # or rounding would decide
    found = near.pairs(opened, least, count)
    assert found.total == np.count_nonzero(scores >= least)
    assert (found.first < found.second).all()
    assert len({*zip(found.first.tolist(), found.second.tolist(), strict=True)}) == len(found.first)
    np.testing.assert_allclose(found.cosines, expected[found.first, found.second], atol=1e-5)
    np.testing.assert_allclose(found.cosines, scores[: min(count, found.total)], atol=1e-5)


def test_near_prints_other_photos_with_their_labels(directory, capsys):
    for name in ("b/03.jpg", "/photos/b/03.jpg"):
        assert console.run(main, ["near", str(directory), name, "--count", "2"]) == 0
        photo, first, second = capsys.readouterr().out.splitlines()
        assert photo == "b/03.jpg  a"
        assert first == "  1.000  b/07.jpg  a"
        assert second.split()[1] != "b/03.jpg"
    assert console.run(main, ["near", str(directory.parent), "b/03.jpg", "a/00.jpg", "--json"]) == 0
    [content] = json.loads(capsys.readouterr().out)
    assert [photo["path"] for photo in content["photos"]] == ["b/03.jpg", "a/00.jpg"]
    assert [len(photo["nearest"]) for photo in content["photos"]] == [10, 10]


def test_duplicates_prints_equal_files_and_pairs(directory, capsys):
    assert console.run(main, ["duplicates", str(directory), "--cosine", "0.99999"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{directory}: 1 group of equal files"
    assert lines[1:3] == ["  b/03.jpg  a", "  b/07.jpg  a"]
    assert lines[4] == "1 pair of other photos with a cosine of at least 0.99999"
    assert lines[5] == "  1.000  a/20.jpg  a/50.jpg"
    assert console.run(main, ["duplicates", str(directory), "--cosine", "0.5", "--count", "3", "--json"]) == 0
    [content] = json.loads(capsys.readouterr().out)
    assert [[photo["path"] for photo in group] for group in content["equal"]] == [["b/03.jpg", "b/07.jpg"]]
    assert len(content["similar"]) == 3 < content["similar_pairs"]


def test_a_photo_that_is_not_there_is_one_line_with_one_that_is(directory, capsys):
    assert console.run(main, ["near", str(directory), "b/03.jpg", "b/99.jpg"]) == 2
    assert capsys.readouterr().err == (
        f"error: b/99.jpg is no photo of {directory}; name one below /photos, such as a/00.jpg\n"
    )
