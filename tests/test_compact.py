"""Merging small shards and dropping unused rows, and what readers see meanwhile."""

import json
import os
import threading
from dataclasses import replace

import h5py
import numpy as np
import pytest

import cache
from cache import command, info, reader, shard, store, verify
from cache.__main__ import main
from cache.compact import Result, compact
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer

DIMENSION = 4
MODULE = store.Module("tiny", "tiny at its own size", "0123456789abcdef", 16, 16, "none", DIMENSION)


def rows(numbers, dtype="float16"):
    """A row for each number, which can be told from its vector."""
    numbers = np.asarray(numbers)
    vectors = (numbers[:, None] + np.arange(DIMENSION) / 16).astype(dtype)
    return Rows(Strings.of(f"c/{n}.jpg" for n in numbers), numbers + 1, numbers + 2, numbers.astype(np.uint64), vectors)


def commit(directory, numbers, dtype="float16", precision="float32", engine="tensorflow"):
    with Writer(directory, {**MODULE.attributes(), "precision": precision, "engine": engine}) as writer:
        writer.append(rows(numbers, dtype))


def index_of(directory, numbers):
    """An index of the images `numbers`, each where some shard has it."""
    names = store.shard_names(directory)
    where = {}
    for shard_id, name in enumerate(names):
        for row, number in enumerate(shard.read(directory / store.SHARDS / name).rows.fingerprints.tolist()):
            where.setdefault(number, (shard_id, row))
    shard_ids, shard_rows = np.array([where[n] for n in numbers], np.int32).T
    numbers = np.asarray(numbers)
    paths = Strings.of(f"c/{i}-{n}.jpg" for i, n in enumerate(numbers))
    index = store.Index("/photos", ["a", "b"], names, paths, numbers, numbers, numbers % 2, shard_ids, shard_rows)
    store.write_index(directory, MODULE, index)


def numbers_of(opened):
    return opened.bottlenecks(np.arange(len(opened)))[:, 0].astype(int).tolist()


@pytest.fixture
def made(tmp_path):
    """Three small shards; images 3 and 5 are used twice, 1 and 7 by none."""
    directory = tmp_path / "tiny-0123456789abcdef"
    for numbers in ([0, 1, 2], [3, 4, 5, 6], [7, 8]):
        commit(directory, numbers)
    view = [8, 5, 3, 0, 2, 5, 6, 4, 3]
    index_of(directory, view)
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
    assert store.shard_names(directory) == [only.path.name]


KINDS = [  # how two shards may differ in one thing alone
    ("float16", "float32", "tensorflow"),
    ("float32", "float32", "tensorflow"),
    ("float16", "mixed_float16", "tensorflow"),
    ("float16", "float32", "openvino"),
]


def test_what_was_made_differently_is_not_merged(tmp_path):
    for start in (0, 10):
        for number, kind in enumerate(KINDS):
            commit(tmp_path, [start + number], *kind)
    view = [0, 1, 2, 3, 10, 11, 12, 13]
    index_of(tmp_path, view)
    assert compact(tmp_path).shards_after == len(KINDS)
    opened = cache.open(tmp_path)
    assert numbers_of(opened) == view
    found = {
        (s.rows.bottlenecks.dtype.name, s.attributes["precision"], s.attributes["engine"]): len(s)
        for s in opened.shards
    }
    assert found == dict.fromkeys(KINDS, 2)


@pytest.mark.parametrize("other", [None, *KINDS[1:]])
def test_a_small_shard_with_none_to_merge_with_stays_as_it_is(tmp_path, other):
    commit(tmp_path, [0, 1])
    if other:
        commit(tmp_path, [2], *other)
    index_of(tmp_path, [1, 0, 2] if other else [1, 0])
    before = store.shard_names(tmp_path)
    result = compact(tmp_path)
    assert result == Result(len(before), len(before), 0, 0, 0, 0, 0)
    assert store.shard_names(tmp_path) == before


def test_two_small_shards_merge_although_every_row_is_used(tmp_path):
    commit(tmp_path, [0, 1])
    commit(tmp_path, [2])
    index_of(tmp_path, [2, 0, 1])
    result = compact(tmp_path)
    assert (result.shards_before, result.shards_after, result.rows_dropped) == (2, 1, 0)
    assert numbers_of(cache.open(tmp_path)) == [2, 0, 1]


def test_a_shard_of_half_the_full_size_stays_and_one_below_is_merged(tmp_path, monkeypatch):
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 8 * DIMENSION * 2)
    for numbers in (range(4), range(10, 13), range(20, 23), range(30, 38)):
        commit(tmp_path, numbers)
    index_of(tmp_path, [*range(30, 38), *range(4), *range(20, 23), *range(10, 13)])
    half, _, _, full = store.shard_names(tmp_path)
    compact(tmp_path)
    assert store.shard_names(tmp_path)[:2] == [half, full]
    assert [len(s) for s in cache.open(tmp_path).shards] == [4, 8, 6]


def test_one_row_that_nobody_uses_is_enough_to_write_a_lone_shard_anew(tmp_path):
    commit(tmp_path, [0, 1, 2])
    index_of(tmp_path, [2, 0])
    assert compact(tmp_path).rows_dropped == 1
    assert numbers_of(cache.open(tmp_path)) == [2, 0]
    [only] = cache.open(tmp_path).shards
    assert len(only) == 2


def test_shards_that_no_index_names_stay(made):
    directory, view = made
    commit(directory, [100, 101])  # of an extraction that is running
    [new] = set(store.shard_names(directory)) - set(store.read_index(directory)[1].shards)
    compact(directory)
    assert shard.read(directory / store.SHARDS / new).rows.fingerprints.tolist() == [100, 101]
    assert numbers_of(cache.open(directory)) == view


def test_a_large_cache_is_written_in_several_shards(made, monkeypatch):
    directory, view = made
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 2 * DIMENSION * 2)
    compact(directory)
    opened = cache.open(directory)
    # The second one is full, and every row of it used: it stays. The others' three rows need two.
    assert [len(s) for s in opened.shards] == [4, 2, 1]
    assert numbers_of(opened) == view


def test_damage_is_not_given_new_checksums(made):
    directory, _ = made
    path = directory / store.SHARDS / store.shard_names(directory)[1]
    with h5py.File(path) as file:
        place = file["bottlenecks"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    before = sorted(store.shard_names(directory))
    with pytest.raises(cache.CacheError, match=f"{path.name} is damaged"):
        compact(directory)
    assert sorted(store.shard_names(directory)) == before


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
    for number in range(200, 240):
        _, index = store.read_index(directory)
        commit(directory, [number])
        store.write_index(directory, MODULE, replace(index, shards=store.shard_names(directory)))
        # A shard without a used row: there is always something to do.
        assert compact(directory).rows_dropped >= 1
    ended.set()
    reader.join()
    assert problems == []
    assert opened > 0


def meanwhile(monkeypatch, module, name, happens, before=True):
    """Lets something happen just before, or just after, the first call of a function."""
    function, called = getattr(module, name), []

    def watched(*arguments):
        first = not called
        called.append(None)
        if first and before:
            happens()
        result = function(*arguments)
        if first and not before:
            happens()
        return result

    monkeypatch.setattr(module, name, watched)


@pytest.mark.parametrize("moment", ["a shard is opened", "the index was read"])
def test_what_is_compacted_while_it_is_verified_is_no_damage(made, monkeypatch, moment):
    directory, view = made
    if moment == "a shard is opened":
        meanwhile(monkeypatch, shard, "read", lambda: compact(directory))
    else:
        meanwhile(monkeypatch, store, "read_index_table", lambda: compact(directory), before=False)
    assert verify.find(directory) == []
    assert len(store.shard_names(directory)) == 1
    assert numbers_of(cache.open(directory)) == view


def test_what_is_compacted_while_it_is_described_is_no_damage(made, monkeypatch):
    directory, _ = made
    commit(directory, [100])  # in no index: it stays
    meanwhile(monkeypatch, shard, "read", lambda: compact(directory))
    told = info.describe(directory)
    assert (told["images"], [s["rows"] for s in told["shards"]], told["unused_rows"]) == (9, [1], 1)


def rewritten(directory, index, target):
    """Writes the index into the file `target`, which takes the index's name: a file system may give numbers again."""
    store.write_index(directory, MODULE, index)
    content = (directory / store.INDEX).read_bytes()
    target.write_bytes(content)
    target.replace(directory / store.INDEX)


@pytest.mark.parametrize("same", ["number", "time"])
def test_an_index_that_took_the_place_of_the_one_read_is_told_apart(made, monkeypatch, same):
    """By its number alone it would not be, nor by its time: the reader would take the shards for lost."""
    directory, view = made
    path, first = directory / store.INDEX, directory / "first"
    os.utime(path, ns=(1, 1))
    os.link(path, first)  # keeps the number from being given to another

    def another_index():
        index = store.read_index(directory)[1]
        store.write_index(directory, MODULE, index)

    def compacted():
        compact(directory)
        if same == "number":
            rewritten(directory, store.read_index(directory)[1], first)
            os.utime(path, ns=(2, 2))
        else:
            os.utime(path, ns=(1, 1))

    if same == "number":
        meanwhile(monkeypatch, reader, "read_index_table", another_index)
    number = path.stat().st_ino
    meanwhile(monkeypatch, shard, "read", compacted)
    assert numbers_of(cache.open(directory)) == view
    assert (path.stat().st_ino == number) == (same == "number")


def test_the_command_tells_people_and_programs(made, capsys):
    directory, _ = made
    assert command.run(main, ["info", "--json", str(directory)]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert (told["images"], told["rows"], told["unused_rows"]) == (9, 9, 2)
    assert told["classes"] == {"a": 5, "b": 4}
    assert [s["rows"] for s in told["shards"]] == [3, 4, 2]
    assert {(s["engine"], s["precision"], s["dtype"]) for s in told["shards"]} == {("tensorflow", "float32", "float16")}
    assert command.run(main, ["compact", str(directory)]) == 0
    assert "3 shards became 1, 2 unused bottlenecks dropped" in capsys.readouterr().out
    assert command.run(main, ["compact", "--json", str(directory)]) == 0
    [told] = json.loads(capsys.readouterr().out)
    assert (told["shards_before"], told["shards_after"], told["rows_dropped"]) == (1, 1, 0)
    assert command.run(main, ["verify", "--json", str(directory)]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"directory": str(directory), "sound": True, "repaired": False, "damage": []}
    ]
