"""Merging small shards and dropping unused rows, and what readers see meanwhile."""

import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

import cache
from cache import console, info, layout, shard, verify
from cache import index as indexes
from cache.__main__ import main
from cache.compact import Result, compact
from tests.damage import flip, place_of
from tests.numbered_cache import BACKBONE, DIMENSION, commit, numbers_of, rows, write_index
from tests.random_cache import NAME


@pytest.fixture
def made(tmp_path):
    """Three small shards, and the numbers in the index's order: 3 and 5 occur twice, 1 and 7 not at all."""
    directory = tmp_path / NAME
    for numbers in ([0, 1, 2], [3, 4, 5, 6], [7, 8]):
        commit(directory, numbers)
    view = [8, 5, 3, 0, 2, 5, 6, 4, 3]
    write_index(directory, view)
    return directory, view


def test_small_shards_become_one_in_the_order_of_the_index_without_unused_rows(made):
    directory, view = made
    before = cache.open(directory)
    vectors, labels, paths = before.bottlenecks(np.arange(9)), before.label_ids.tolist(), list(before.paths)
    old = [opened.path for opened in before.shards]
    result = compact(directory)
    assert (result.shards_before, result.shards_after, result.rows_dropped) == (3, 1, 2)
    after = cache.open(directory)
    np.testing.assert_array_equal(after.bottlenecks(np.arange(9)), vectors)
    assert (after.label_ids.tolist(), list(after.paths)) == (labels, paths)
    [only] = after.shards
    assert only.rows.fingerprints.tolist() == [8, 5, 3, 0, 2, 6, 4]
    expected = rows(only.rows.fingerprints.astype(int))
    assert list(only.rows.paths) == list(expected.paths)
    for name in shard.NUMBERS:
        np.testing.assert_array_equal(getattr(only.rows, name), getattr(expected, name))
    assert not any(path.exists() for path in old)
    assert verify.find(directory) == []
    # What was open goes on reading, and a second time there is nothing to do.
    assert numbers_of(before) == view
    assert compact(directory).shards_after == 1
    assert layout.shard_names(directory) == [only.path.name]


KINDS = [  # dtype, precision and engine of shards, each of which differs from the first in one thing alone
    ("float16", "float32", "tensorflow"),
    ("float32", "float32", "tensorflow"),
    ("float16", "mixed_float16", "tensorflow"),
    ("float16", "float32", "openvino"),
]


def test_shards_of_different_kinds_are_not_merged(tmp_path):
    for start in (0, 10):
        for number, kind in enumerate(KINDS):
            commit(tmp_path, [start + number], *kind)
    view = [0, 1, 2, 3, 10, 11, 12, 13]
    write_index(tmp_path, view)
    assert compact(tmp_path).shards_after == len(KINDS)
    opened = cache.open(tmp_path)
    assert numbers_of(opened) == view
    lengths = {
        (s.rows.bottlenecks.dtype.name, s.attributes["precision"], s.attributes["engine"]): len(s)
        for s in opened.shards
    }
    assert lengths == dict.fromkeys(KINDS, 2)


@pytest.mark.parametrize("other", [None, *KINDS[1:]])
def test_a_small_shard_stays_if_there_is_none_to_merge_it_with(tmp_path, other):
    commit(tmp_path, [0, 1])
    if other:
        commit(tmp_path, [2], *other)
    write_index(tmp_path, [1, 0, 2] if other else [1, 0])
    before = layout.shard_names(tmp_path)
    result = compact(tmp_path)
    assert result == Result(len(before), len(before), 0, 0, 0, 0, 0)
    assert layout.shard_names(tmp_path) == before


def test_two_small_shards_merge_although_every_row_is_used(tmp_path):
    commit(tmp_path, [0, 1])
    commit(tmp_path, [2])
    write_index(tmp_path, [2, 0, 1])
    result = compact(tmp_path)
    assert (result.shards_before, result.shards_after, result.rows_dropped) == (2, 1, 0)
    assert numbers_of(cache.open(tmp_path)) == [2, 0, 1]


def test_a_shard_of_half_the_full_size_stays_and_one_below_is_merged(tmp_path, monkeypatch):
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 8 * DIMENSION * 2)
    for numbers in (range(4), range(10, 13), range(20, 23), range(30, 38)):
        commit(tmp_path, numbers)
    write_index(tmp_path, [*range(30, 38), *range(4), *range(20, 23), *range(10, 13)])
    half, _, _, full = layout.shard_names(tmp_path)
    compact(tmp_path)
    assert layout.shard_names(tmp_path)[:2] == [half, full]
    assert [len(s) for s in cache.open(tmp_path).shards] == [4, 8, 6]


def test_a_lone_shard_is_rewritten_for_one_unused_row(tmp_path):
    commit(tmp_path, [0, 1, 2])
    write_index(tmp_path, [2, 0])
    assert compact(tmp_path).rows_dropped == 1
    assert numbers_of(cache.open(tmp_path)) == [2, 0]
    [only] = cache.open(tmp_path).shards
    assert len(only) == 2


def test_shards_that_no_index_names_stay(made):
    directory, view = made
    commit(directory, [100, 101])  # by an extraction that is running
    [new] = set(layout.shard_names(directory)) - set(indexes.read(directory)[1].shards)
    compact(directory)
    assert shard.read(directory / layout.SHARDS / new).rows.fingerprints.tolist() == [100, 101]
    assert numbers_of(cache.open(directory)) == view


def test_a_large_cache_is_written_in_several_shards(made, monkeypatch):
    directory, view = made
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 2 * DIMENSION * 2)
    compact(directory)
    opened = cache.open(directory)
    # The second shard is full, and all its rows are used: it stays. The three used rows of the others need two shards.
    assert [len(s) for s in opened.shards] == [4, 2, 1]
    assert numbers_of(opened) == view


def test_damaged_rows_get_no_new_checksums(made):
    directory, _ = made
    path = directory / layout.SHARDS / layout.shard_names(directory)[1]
    flip(path, place_of(path, "bottlenecks", 0))
    before = sorted(layout.shard_names(directory))
    with pytest.raises(cache.CacheError, match=f"{path.name} is damaged"):
        compact(directory)
    assert sorted(layout.shard_names(directory)) == before


def test_a_reader_sees_the_old_or_the_new_while_a_cache_is_compacted(made):
    directory, view = made
    opened, problems, ended = 0, [], threading.Event()

    def read():
        nonlocal opened
        while not ended.is_set():
            try:
                assert numbers_of(cache.open(directory)) == view
                opened += 1
            except Exception as problem:
                problems.append(problem)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200, 215):
        _, index = indexes.read(directory)
        commit(directory, [number])
        indexes.write(directory, BACKBONE, replace(index, shards=layout.shard_names(directory)))
        # A shard without a used row: there is always something to do.
        assert compact(directory).rows_dropped >= 1
    ended.set()
    reader.join()
    assert problems == []
    assert opened > 0


def at_first_call(monkeypatch, module, name, action, after=False):
    """Runs `action` just before, or just `after`, the first call of a function."""
    function, calls = getattr(module, name), []

    def watched(*arguments):
        calls.append(arguments)
        is_first = len(calls) == 1
        if is_first and not after:
            action()
        result = function(*arguments)
        if is_first and after:
            action()
        return result

    monkeypatch.setattr(module, name, watched)


@pytest.mark.parametrize("moment", ["before a shard is opened", "after the index was read"])
def test_a_compaction_during_verify_is_no_damage(made, monkeypatch, moment):
    directory, view = made
    if moment == "before a shard is opened":
        at_first_call(monkeypatch, shard, "read", lambda: compact(directory))
    else:
        at_first_call(monkeypatch, indexes, "read_table", lambda: compact(directory), after=True)
    assert verify.find(directory) == []
    assert len(layout.shard_names(directory)) == 1
    assert numbers_of(cache.open(directory)) == view


def test_a_compaction_during_info_is_no_damage(made, monkeypatch):
    directory, _ = made
    commit(directory, [100])  # in no index: it stays
    at_first_call(monkeypatch, shard, "read", lambda: compact(directory))
    content = info.describe(directory)
    assert (content["images"], [s["rows"] for s in content["shards"]], content["unused_rows"]) == (9, [1], 1)


def write_index_into(path, directory, index):
    """Writes the index into the file `path`, which then gets the index's name: so a file system reuses an inode."""
    indexes.write(directory, BACKBONE, index)
    path.write_bytes((directory / layout.INDEX).read_bytes())
    path.replace(directory / layout.INDEX)


@pytest.mark.parametrize("same", ["inode", "time"])
def test_a_new_index_with_the_inode_or_the_time_of_the_old_is_another(made, monkeypatch, same):
    """A reader that compared only one of the two would report the shards of the old index as missing."""
    directory, view = made
    path, first = directory / layout.INDEX, directory / "first"
    os.utime(path, ns=(1, 1))
    os.link(path, first)  # keeps the inode from being reused before it is to be

    def another_index():
        index = indexes.read(directory)[1]
        indexes.write(directory, BACKBONE, index)

    def compacted():
        compact(directory)
        if same == "inode":
            write_index_into(first, directory, indexes.read(directory)[1])
            os.utime(path, ns=(2, 2))
        else:
            os.utime(path, ns=(1, 1))

    if same == "inode":
        at_first_call(monkeypatch, indexes, "read_table", another_index)
    inode = path.stat().st_ino
    at_first_call(monkeypatch, shard, "read", compacted)
    assert numbers_of(cache.open(directory)) == view
    assert (path.stat().st_ino == inode) == (same == "inode")


def test_the_commands_print_for_people_and_for_programs(made, capsys):
    directory, _ = made
    assert console.run(main, ["info", "--json", str(directory)]) == 0
    [content] = json.loads(capsys.readouterr().out)
    assert (content["images"], content["rows"], content["unused_rows"]) == (9, 9, 2)
    assert content["classes"] == {"a": 5, "b": 4}
    assert [s["rows"] for s in content["shards"]] == [3, 4, 2]
    kinds = {(s["engine"], s["precision"], s["dtype"]) for s in content["shards"]}
    assert kinds == {("tensorflow", "float32", "float16")}
    assert console.run(main, ["compact", str(directory)]) == 0
    assert "3 shards became 1, 2 unused bottlenecks dropped" in capsys.readouterr().out
    assert console.run(main, ["compact", "--json", str(directory)]) == 0
    [content] = json.loads(capsys.readouterr().out)
    assert (content["shards_before"], content["shards_after"], content["rows_dropped"]) == (1, 1, 0)
    assert console.run(main, ["verify", "--json", str(directory)]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"directory": str(directory), "sound": True, "repaired": False, "damage": []}
    ]
