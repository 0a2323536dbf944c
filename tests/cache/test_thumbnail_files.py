"""Files of thumbnails: committed, found again, and compacted like the bottlenecks."""

import dataclasses
import json
import os
import shutil
import types

import numpy as np
import pytest

import cache
from cache import console, files, layout, thumbnails, verify, writer
from cache import index as indexes
from cache.__main__ import main
from cache.compact import compact
from cache.errors import UserError
from cache.strings import Strings
from tests.random_cache import BACKBONE, NAME, take
from tests.thumbnail_cache import fill_with_thumbnails, find_all, jpeg, thumbnail_files


@pytest.fixture
def made(tmp_path):
    """A folder with thumbnails in two files, its index, and the thumbnails in the index's order."""
    directory = tmp_path / NAME
    return directory, *fill_with_thumbnails(directory)


# --- committed -------------------------------------------------------------------------------------------------


def test_what_came_before_an_interruption_is_committed(made):
    directory, index, jpegs = made
    shutil.rmtree(directory / layout.THUMBNAILS)

    def interrupted():
        for photo in (3, 4):
            yield thumbnails.of(index, np.array([photo]), [jpegs[photo]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thumbnails.write_all(directory, interrupted())
    assert find_all(directory) == [jpegs[i] if i in (3, 4) else None for i in range(13)]
    assert len(thumbnail_files(directory)) == 1


@pytest.mark.parametrize("limit", ["COMMIT_SECONDS", "COMMIT_BYTES"])
def test_commits_are_as_frequent_as_those_of_bottlenecks(made, monkeypatch, limit):
    directory, index, jpegs = made
    shutil.rmtree(directory / layout.THUMBNAILS)
    monkeypatch.setattr(writer, limit, 0)
    parts = (thumbnails.of(index, np.array([photo]), [jpegs[photo]]) for photo in range(13))
    assert thumbnails.write_all(directory, parts) == 13
    assert len(thumbnail_files(directory)) == 13
    assert find_all(directory) == jpegs


def test_the_time_to_the_next_commit_starts_at_a_commit(made, monkeypatch):
    directory, index, jpegs = made
    shutil.rmtree(directory / layout.THUMBNAILS)
    monkeypatch.setattr(writer, "COMMIT_SECONDS", 25)
    monkeypatch.setattr(thumbnails, "time", types.SimpleNamespace(monotonic=lambda: seconds))
    seconds = 0

    def slow():
        nonlocal seconds
        for photo in range(13):
            seconds += 10
            yield thumbnails.of(index, np.array([photo]), [jpegs[photo]])

    assert thumbnails.write_all(directory, slow()) == 13
    assert [len(thumbnails.read(path)) for path in thumbnail_files(directory)] == [3, 3, 3, 3, 1]


# --- found again -----------------------------------------------------------------------------------------------


def test_thumbnails_are_found_in_any_order_and_number(made):
    directory, _, jpegs = made
    opened = cache.open(directory)
    for wanted in ([], [7], [12, 0, 3, 3, 12], list(range(13))):
        assert thumbnails.find(opened, np.array(wanted, int)) == [jpegs[i] for i in wanted]
    assert len(thumbnails.missing(directory, opened.index)) == 0


@pytest.mark.parametrize("name", ["sizes", "mtimes"])
def test_another_size_or_time_is_another_photo(made, name):
    directory, index, jpegs = made
    # Two photos swap theirs, so that none of the numbers is new.
    getattr(index, name)[[5, 6]] = getattr(index, name)[[6, 5]]
    indexes.write(directory, BACKBONE, index)
    assert find_all(directory) == [None if i in (5, 6) else jpegs[i] for i in range(13)]
    assert thumbnails.missing(directory, index).tolist() == [5, 6]


def test_another_path_is_another_photo(made):
    directory, index, jpegs = made
    renamed = dataclasses.replace(index, paths=Strings.of([*list(index.paths)[:-1], "renamed.jpg"]))
    indexes.write(directory, BACKBONE, renamed)
    assert find_all(directory) == [*jpegs[:12], None]
    assert thumbnails.missing(directory, renamed).tolist() == [12]


def test_thumbnails_are_found_while_they_are_compacted(made, monkeypatch):
    directory, _, jpegs = made
    opened = cache.open(directory)
    names, before = thumbnails.names, thumbnails.names(directory)
    assert compact(directory).thumbnail_files_after == 1
    listings = iter([before])  # files that were there when the folder was listed, and are not when they are read
    monkeypatch.setattr(thumbnails, "names", lambda directory: next(listings, None) or names(directory))
    assert thumbnails.find(opened, np.arange(13)) == jpegs


# --- compacted ----------------------------------------------------------------------------------------------


def test_compact_merges_files_and_drops_unused_thumbnails(made):
    directory, index, jpegs = made
    copies = thumbnails.of(index, np.array([2, 5]), [jpegs[2], jpegs[5]])
    other = thumbnails.Thumbnails(
        Strings.of(["gone.jpg"]), np.array([1]), np.array([2]), Strings.of_encoded([jpeg(99)])
    )
    thumbnails.write(directory, [copies, other])
    old = thumbnail_files(directory)
    result = compact(directory)
    assert (result.thumbnail_files_before, result.thumbnail_files_after, result.thumbnails_dropped) == (3, 1, 3)
    [only] = thumbnail_files(directory)
    assert len(thumbnails.read(only)) == 13 and only not in old
    assert find_all(directory) == jpegs
    assert verify.find(directory) == []
    again = compact(directory)
    assert (again.thumbnail_files_before, again.thumbnail_files_after, again.bytes_freed) == (1, 1, 0)
    assert thumbnail_files(directory) == [only]


def test_compact_leaves_full_files_alone(made, monkeypatch):
    directory, _, jpegs = made
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 1000)
    before = thumbnail_files(directory)
    assert compact(directory).thumbnail_files_after == 2
    assert thumbnail_files(directory) == before
    assert find_all(directory) == jpegs


def test_compact_that_fails_leaves_everything_as_it_was(made, monkeypatch):
    directory, _, jpegs = made
    before = thumbnail_files(directory)
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 1)  # a file for each
    monkeypatch.setattr("cache.compact._FULL", 1e9)
    write, written = thumbnails.write, []

    def write_one(*arguments):
        if written:
            raise UserError("the disk is full")
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(thumbnails, "write", write_one)
    with pytest.raises(UserError, match="the disk is full"):
        compact(directory)
    assert written and thumbnail_files(directory) == before
    assert find_all(directory) == jpegs


def test_the_commands_report_thumbnails(made, capsys):
    directory, index, _ = made
    assert console.run(main, ["info", "--json", str(directory)]) == 0
    [content] = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in thumbnail_files(directory))
    assert content["thumbnails"] == {"files": 2, "images": 13, "rows": 13, "bytes": size}
    indexes.write(directory, BACKBONE, take(index, np.arange(11)))
    assert console.run(main, ["info", str(directory)]) == 0
    assert f"  thumbnails     of 11 photos, {size / 1e6:.1f} MB" in capsys.readouterr().out.splitlines()
    assert console.run(main, ["compact", str(directory)]) == 0
    assert "2 files of thumbnails became 1, 2 unused thumbnails dropped" in capsys.readouterr().out
    shutil.rmtree(directory / layout.THUMBNAILS)
    assert console.run(main, ["info", str(directory)]) == 0
    assert "thumbnails     none: `python -m extract --thumbnails` makes them" in capsys.readouterr().out


def test_what_a_killed_run_left_half_written_is_swept(made):
    directory, _, _ = made
    half_written = directory / layout.THUMBNAILS / f".some.h5{files.TEMPORARY}"
    half_written.write_text("half")
    os.utime(half_written, (0, 0))
    compact(directory)
    assert not half_written.exists()
