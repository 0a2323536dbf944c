"""Several extractions of one folder at once: each photo is computed about once, and all of them end with the same."""

import numpy as np
import pytest

from cache import layout, shard, verify
from cache.layout import SHARDS
from tests.fake_photos import Folder, expected, published
from tests.random_cache import shard_paths

CONTENTS = {f"{'ab'[number % 2]}/{number:02}.jpg": number for number in range(12)}


@pytest.fixture
def folder():
    return Folder(CONTENTS)


def commit(folder, plain, work, paths):
    """Another extraction commits the bottlenecks of these photos."""
    positions = np.flatnonzero([path in paths for path in work.photos.paths])
    with plain.writer(work.photos, "float32", "tensorflow") as writer:
        writer.append(folder.rows(work.photos, positions))


def test_pieces_hand_out_each_missing_photo_once_in_random_order(folder, plain):
    work = folder.missing(plain)
    orders = set()
    for _ in range(20):
        pieces = list(work.pieces("-ours.h5"))
        assert [len(piece) for piece in pieces] == [2] * 6
        positions = np.concatenate(pieces)
        assert sorted(positions) == list(range(12))
        orders.add(tuple(positions))
    assert len(orders) > 1


def test_what_others_commit_meanwhile_is_not_computed_again(folder, plain):
    work = folder.missing(plain)
    pieces = work.pieces("-ours.h5")
    first = next(pieces)
    others = [path for position, path in enumerate(work.photos.paths) if position not in first][:5]
    commit(folder, plain, work, others)
    rest = np.concatenate(list(pieces))
    assert sorted([*first, *rest]) == sorted(np.flatnonzero([path not in others for path in work.photos.paths]))
    assert (work.left_out, len(work), work.computed, work.reused) == (5, 7, 7, 5)


def test_photos_that_have_changed_since_others_computed_them_are_computed_here(folder, plain):
    work = folder.missing(plain)
    # The other extraction has seen two of these with another time or size.
    other = Folder(CONTENTS | {"a/02.jpg": 3}, mtimes={"a/04.jpg": 2})
    commit(other, plain, other.missing(plain), ["a/02.jpg", "a/04.jpg", "a/06.jpg"])
    computed = list(work.photos.paths.take(np.concatenate(list(work.pieces("-ours.h5")))))
    assert sorted(computed) == sorted(CONTENTS.keys() - {"a/06.jpg"})


def test_our_own_shards_are_not_read_again(folder, plain, monkeypatch):
    read, paths = shard.read, []
    monkeypatch.setattr(shard, "read", lambda path: paths.append(path) or read(path))
    work = folder.missing(plain)
    assert sorted(folder.compute(plain, work)) == sorted(CONTENTS)
    assert (work.left_out, work.computed) == (0, 12)
    assert paths == []


@pytest.mark.parametrize("order", ["first", "second"])
def test_two_extractions_share_the_work_and_publish_the_same(folder, plain, order):
    first, second = folder.missing(plain), folder.missing(plain)
    iterator = first.pieces("-first.h5")
    begun = next(iterator)
    computed = folder.compute(plain, second)
    assert sorted(computed) == sorted(CONTENTS)  # the first had committed nothing by then
    assert list(iterator) == []
    commit(folder, plain, first, list(first.photos.paths.take(begun)))
    for work in (first, second) if order == "first" else (second, first):
        plain.publish(work, folder.read_fingerprints)
        assert published(plain.directory) == expected(CONTENTS)
    assert (first.computed, first.reused) == (2, 10)
    assert verify.find(plain.directory) == []


def test_an_index_that_others_published_meanwhile_is_not_replaced_by_an_equal_one(folder, plain):
    first, second = folder.missing(plain), folder.missing(plain)
    folder.compute(plain, second)
    plain.publish(second, folder.read_fingerprints)
    before = (plain.directory / layout.INDEX).stat().st_ino
    assert list(first.pieces("-first.h5")) == []
    assert (first.computed, first.reused) == (0, 12)
    plain.publish(first, folder.read_fingerprints)
    assert (plain.directory / layout.INDEX).stat().st_ino == before


def test_a_damaged_shard_of_another_extraction_is_computed_here(folder, plain):
    work = folder.missing(plain)
    commit(folder, plain, work, list(CONTENTS))
    [path] = shard_paths(plain.directory)
    path.write_bytes(path.read_bytes()[:1000])
    assert len(np.concatenate(list(work.pieces("-ours.h5")))) == 12


def test_a_shard_that_is_gone_again_is_no_error(folder, plain, monkeypatch):
    work = folder.missing(plain)
    commit(folder, plain, work, list(CONTENTS))
    read = shard.read

    def read_too_late(path):
        path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(shard, "read", read_too_late)
    assert len(np.concatenate(list(work.pieces("-ours.h5")))) == 12


def test_the_folder_of_shards_may_not_exist_while_pieces_are_handed_out(folder, plain):
    work = folder.missing(plain)
    assert not (plain.directory / SHARDS).exists()
    assert len(list(work.pieces("-ours.h5"))) == 6
