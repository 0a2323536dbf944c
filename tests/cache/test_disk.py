"""Compactions and repairs whose disk fills up, breaks down or refuses: one line, and nothing is lost or changed."""

import re
from functools import partial

import numpy as np
import pytest

from cache import files, layout, manifest, rejected, shard, verify
from cache import index as indexes
from cache.compact import compact
from cache.repair import repair
from tests.damage import cut_in_last_row, flip, place_of
from tests.interrupted import Child, Step
from tests.random_cache import NAME, fill, rows, shard_paths, take, vectors_by_path
from tests.trouble import break_down, error_line, fill_up, limit_files, make_room, obey_permissions, remount

UNUSED = 10  # of 21 rows


def make(folder):
    """A backbone's folder of small shards of both dtypes, with some rows that no photo uses."""
    directory = folder / NAME
    fill(directory, [rows(5, 0), rows(3, 1, "float32"), rows(7, 2), rows(6, 3, "float32")])
    info, index = indexes.read(directory)
    indexes.write(directory, info, take(index, np.arange(0, len(index), 2)))
    return directory


def bytes_of(directory):
    """The bytes of every file there, without the lock."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != files.LOCK}


# Where a compaction or a repair is when it happens; None: it begins so.
MOMENTS = {
    "the start": None,
    "a new shard": Step("before", "open", "shard"),
    "the writing of a shard": Step("before", "write", "shard"),
    "the second shard": Step("before", "open", "shard", 2),
    "the index": Step("before", "open", "index"),
    "the writing of the index": Step("before", "write", "index"),
}


def start(moment, then, *arguments):
    at = MOMENTS[moment]
    return Child("cache", arguments, at, then, first=bool if at else then)


def check_compaction(directory, vectors):
    assert verify.find(directory) == []
    assert compact(directory).rows_dropped == UNUSED
    assert vectors_by_path(directory) == vectors
    assert verify.find(directory) == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_compaction_whose_disk_fills_up(disk, moment):
    directory = make(disk)
    before, vectors = bytes_of(directory), vectors_by_path(directory)
    line = error_line(start(moment, partial(fill_up, disk), "compact", directory))
    assert "No space left on device" in line
    assert bytes_of(directory) == before
    make_room(disk)
    check_compaction(directory, vectors)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_compaction_whose_files_may_not_grow(tmp_path, moment):
    directory = make(tmp_path)
    before, vectors = bytes_of(directory), vectors_by_path(directory)
    line = error_line(start(moment, partial(limit_files, 16), "compact", directory))
    assert "File too large" in line
    assert bytes_of(directory) == before
    check_compaction(directory, vectors)


@pytest.mark.parametrize("arguments", [["compact"], ["verify", "--repair"]], ids=" ".join)
def test_shards_that_a_new_index_names_stay_although_the_disk_breaks_down(tmp_path, arguments):
    directory = make(tmp_path)
    vectors = vectors_by_path(directory)
    lost = damage(directory) if "verify" in arguments else set()
    at = Step("before", "fsync", "folder above", 2)  # the first time, it is for the list of old and new files
    line = error_line(Child("cache", [*arguments, directory], at, break_down))
    assert "Input/output error" in line
    repair(directory)
    assert verify.find(directory) == []
    assert vectors_by_path(directory) == {path: vector for path, vector in vectors.items() if path not in lost}


def damage(directory):
    """Flips a bit of one shard and cuts off another in its last row. Returns the paths of the rows that are lost."""
    first, second, *_ = shard_paths(directory)
    flip(first, place_of(first, "bottlenecks", 0))
    cut_in_last_row(second)
    assert [damage.rows.tolist() for damage in verify.find(directory)] == [[0], [2]]
    return {"class 0/0-0.jpg", "class 1/1-2.jpg"}


def check_repair(directory, vectors, lost):
    assert len(repair(directory)) == 2
    assert verify.find(directory) == []
    assert vectors_by_path(directory) == {path: vector for path, vector in vectors.items() if path not in lost}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_repair_whose_disk_fills_up(disk, moment):
    directory = make(disk)
    vectors, lost, before = vectors_by_path(directory), damage(directory), bytes_of(directory)
    line = error_line(start(moment, partial(fill_up, disk), "verify", "--repair", directory))
    assert "No space left on device" in line
    assert bytes_of(directory) == before
    make_room(disk)
    check_repair(directory, vectors, lost)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_repair_whose_files_may_not_grow(tmp_path, moment):
    directory = make(tmp_path)
    vectors, lost, before = vectors_by_path(directory), damage(directory), bytes_of(directory)
    line = error_line(start(moment, partial(limit_files, 16), "verify", "--repair", directory))
    assert "File too large" in line
    assert bytes_of(directory) == before
    check_repair(directory, vectors, lost)


def test_a_repair_without_room_to_look_at_a_shard_does_not_drop_it(tmp_path):
    """There is no index yet, so that nothing else has to be written."""
    directory = make(tmp_path)
    (directory / layout.INDEX).unlink()
    cut_in_last_row(shard_paths(directory)[0])
    before = bytes_of(directory)
    line = error_line(start("the start", partial(limit_files, 16), "verify", "--repair", directory))
    assert "was cut off, and cannot be copied" in line
    assert bytes_of(directory) == before
    repair(directory)
    assert sorted(len(shard.read(path)) for path in shard_paths(directory)) == [3, 4, 6, 7]


@pytest.mark.parametrize("name", ["shard", layout.INDEX, layout.REJECTED, layout.BACKBONE])
def test_a_repair_drops_no_file_that_it_may_not_read(tmp_path, name):
    directory = make(tmp_path)
    rejected.write(directory, [rejected.Rejected("a/broken.jpg", 5, 6, "not an image")])
    (directory / layout.BACKBONE).mkdir()
    manifest.write(directory / layout.BACKBONE)
    path = shard_paths(directory)[0] if name == "shard" else directory / name
    before = bytes_of(directory)
    path.chmod(0)
    line = error_line(Child("cache", ["verify", "--repair", directory], first=obey_permissions))
    assert re.search(f"nothing was dropped: cannot read {path}.*: Permission denied; fix that", line)
    path.chmod(0o700)
    assert bytes_of(directory) == before


@pytest.mark.parametrize("arguments", [["compact"], ["verify", "--repair"]], ids=" ".join)
def test_a_read_only_disk_keeps_a_cache_from_being_changed(disk, arguments):
    directory = make(disk)
    vectors, lost, before = vectors_by_path(directory), damage(directory), bytes_of(directory)
    line = error_line(start("the start", partial(remount, disk, "ro"), *arguments, directory))
    assert "Read-only file system" in line
    damaged = [damage.path for damage in verify.find(directory)]
    assert damaged == shard_paths(directory)[:2]
    remount(disk, "rw")
    assert bytes_of(directory) == before
    check_repair(directory, vectors, lost)
