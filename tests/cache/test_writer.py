"""Bottlenecks are committed in the background, and a failed commit costs nothing that was committed before."""

import resource
import threading

import numpy as np
import pytest

from cache import layout, shard
from cache.errors import UserError
from cache.shard import Rows
from cache.writer import Writer
from tests.random_cache import BACKBONE, rows, shard_paths


def lengths_of(directory):
    return sorted(len(shard.read(path)) for path in shard_paths(directory))


def test_rows_are_taken_while_others_are_written(tmp_path, monkeypatch):
    write, appended = shard.write, threading.Event()

    def slow_write(*arguments):
        assert appended.wait(60)
        return write(*arguments)

    monkeypatch.setattr(shard, "write", slow_write)
    monkeypatch.setattr("cache.writer.COMMIT_BYTES", 1)
    with Writer(tmp_path, BACKBONE.attributes()) as writer:
        writer.append(rows(3, 0))  # would wait for ever if it waited for the disk
        assert writer.committed == 0
        appended.set()
        writer.append(rows(2, 1))
    assert writer.committed == 5
    assert lengths_of(tmp_path) == [2, 3]


@pytest.mark.parametrize(
    ("limit", "value", "lengths"),
    [("COMMIT_SECONDS", 0, [2, 3, 4]), ("COMMIT_BYTES", 5 * 6 * 2, [4, 5]), ("COMMIT_BYTES", 1000, [9])],
)
def test_a_commit_comes_after_a_time_or_a_number_of_bytes(tmp_path, monkeypatch, limit, value, lengths):
    monkeypatch.setattr(f"cache.writer.{limit}", value)
    with Writer(tmp_path, BACKBONE.attributes()) as writer:
        for seed, count in enumerate((2, 3, 4)):
            writer.append(rows(count, seed))
    assert lengths_of(tmp_path) == lengths


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_appended_before_an_error_is_committed(tmp_path, error):
    with pytest.raises(error), Writer(tmp_path, BACKBONE.attributes()) as writer:
        writer.append(rows(3, 0))
        raise error
    assert writer.committed == 3
    assert lengths_of(tmp_path) == [3]


def test_nothing_is_written_for_nothing(tmp_path):
    with Writer(tmp_path, BACKBONE.attributes()) as writer:
        writer.commit()
    assert layout.shard_names(tmp_path) == []


def test_a_failed_write_is_reported_once_and_loses_nothing_committed(tmp_path, monkeypatch):
    monkeypatch.setattr("cache.writer.COMMIT_BYTES", 1)
    with pytest.raises(UserError, match="File too large"), Writer(tmp_path, BACKBONE.attributes()) as writer:
        writer.append(rows(3, 0))
        writer.commit()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            writer.append(rows(3, 1))
            writer.append(rows(3, 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.committed == 3
    [path] = shard_paths(tmp_path)
    np.testing.assert_array_equal(shard.read(path).rows.bottlenecks, rows(3, 0).bottlenecks)


def test_a_folder_that_cannot_be_made_is_reported_with_the_flag(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/shards: Not a directory; choose another --cache_dir"):
        Writer(tmp_path / "file", BACKBONE.attributes())


def test_the_names_of_a_writers_shards_have_an_ending_of_its_own(tmp_path):
    first, second = (Writer(tmp_path, BACKBONE.attributes()) for _ in range(2))
    for writer, seeds in ((first, (0, 1)), (second, (2,))):
        with writer:
            for seed in seeds:
                writer.append(rows(1, seed))
                writer.commit()
    assert first.ending != second.ending
    names = layout.shard_names(tmp_path)
    assert [name.endswith(first.ending) for name in names] == [True, True, False]
    assert names[2].endswith(second.ending)


@pytest.mark.parametrize("part", [slice(0, 2), slice(1, 3), slice(3, 5)])
def test_a_shard_of_a_slice_of_rows_is_sound(tmp_path, part):
    """A slice's paths share the bytes of all paths: written with all of them, the shard would count as damaged."""
    whole = rows(5, 0)
    with Writer(tmp_path, BACKBONE.attributes()) as writer:
        writer.append(Rows(**{name: getattr(whole, name)[part] for name in shard.COLUMNS}))
    [path] = shard_paths(tmp_path)
    opened = shard.check(shard.read(path))
    assert list(opened.rows.paths) == list(whole.paths)[part]
    np.testing.assert_array_equal(opened.rows.bottlenecks, whole.bottlenecks[part])
    assert not len(opened.table.damaged())
