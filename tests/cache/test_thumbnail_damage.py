"""Damaged, crafted and foreign files of thumbnails: no thumbnail is wrong, and the damage is found and dropped."""

import os
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache
from cache import console, files, layout, table, thumbnails, verify
from cache.__main__ import main
from cache.compact import compact
from cache.errors import UserError
from cache.repair import repair
from cache.strings import Strings
from tests import crafted
from tests.damage import flip, mutated, place_of
from tests.random_cache import NAME, fill, rows
from tests.thumbnail_cache import fill_with_thumbnails, find_all, jpeg, thumbnail_files


@pytest.fixture
def made(tmp_path):
    """A folder with thumbnails in two files, its index, and the thumbnails in the index's order."""
    directory = tmp_path / NAME
    return directory, *fill_with_thumbnails(directory)


def test_a_damaged_thumbnail_is_named_counts_as_none_and_is_dropped_alone(made, capsys):
    directory, index, jpegs = made
    path = thumbnail_files(directory)[1]
    with h5py.File(path) as file:
        start = int(file["thumbnails_offsets"][3])
    flip(path, place_of(path, "thumbnails", start + 40))
    assert find_all(directory) == [None if i == 7 else jpegs[i] for i in range(13)]
    [damage] = verify.find(directory)
    assert (damage.path, damage.rows.tolist()) == (path, [3])
    assert console.run(main, ["verify", str(directory)]) == 2
    assert (
        f"{path}: 1 of 9 rows differ from their checksums or are not finite: 3 ({index.paths[7]})"
        in capsys.readouterr().out
    )
    with pytest.raises(cache.CacheError, match="damaged"):
        compact(directory)
    repair(directory)
    assert verify.find(directory) == [] and not path.exists()
    assert find_all(directory) == [None if i == 7 else jpegs[i] for i in range(13)]
    assert thumbnails.missing(directory, index).tolist() == [7]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile") / NAME
    index, _ = fill(directory, [rows(5, 0)])
    thumbnails.write(directory, [thumbnails.of(index, np.arange(5), [jpeg(seed) for seed in range(5)])])
    return directory


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_do_no_harm(sound, data):
    [path] = thumbnail_files(sound)
    content, opened = path.read_bytes(), cache.open(sound)
    jpegs = [jpeg(seed) for seed in range(5)]
    try:
        path.write_bytes(data.draw(mutated(content, (sound / layout.INDEX).read_bytes())))
        for photo, found in enumerate(thumbnails.find(opened, np.arange(5))):
            assert found in (jpegs[photo], None)
        try:
            thumbnails.missing(sound, opened.index)
        except cache.CacheError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            assert [damage.path for damage in verify.find(sound)] == [path]
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kept", [0, 300, 9000])
def test_a_file_that_was_cut_off_is_dropped(made, kept):
    directory, index, jpegs = made
    path = thumbnail_files(directory)[0]
    path.write_bytes(path.read_bytes()[:kept])
    assert find_all(directory)[4:] == jpegs[4:]
    with pytest.raises(cache.CacheError, match=str(path)):
        thumbnails.missing(directory, index)
    assert [damage.path for damage in repair(directory)] == [path]
    assert verify.find(directory) == []
    assert find_all(directory) == [None] * 4 + jpegs[4:]


def rewrite(path, changes):
    """Writes a file of thumbnails anew, some columns changed by functions, with true checksums."""

    def change(tables):
        tables["rows"] |= {name: change_column(tables["rows"][name]) for name, change_column in changes.items()}

    crafted.rewrite(path, thumbnails.KIND, change, attributes={})


BOMB = bytearray(jpeg(0))
BOMB[BOMB.index(b"\xff\xc0") + 5 : BOMB.index(b"\xff\xc0") + 9] = b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<svg onload='alert(1)'>",
        b"\xff\xd8",
        bytes(BOMB),  # four billion pixels, in 700 bytes
        jpeg(0).replace(b"\x00\x08\x00\x0c", b"\x00\x00\x00\x0c", 1),
        jpeg(0) + bytes(1 << 17),
        # A decoder passes over a marker without a length, and would meet the bomb that is skipped here.
        b"\xff\xd8\xff\xd0" + len(BOMB).to_bytes(2, "big") + bytes(BOMB)[2:] + jpeg(0)[2:],
    ],
    ids=["empty", "markup", "cut off", "bomb", "of no lines", "too long", "hidden bomb"],
)
def test_what_is_no_small_jpeg_is_not_shown(made, content):
    directory, _, jpegs = made
    [path, _] = thumbnail_files(directory)
    rewrite(path, {"thumbnails": lambda column: Strings.of_encoded([content, *list(column.encoded())[1:]])})
    assert find_all(directory) == [None, *jpegs[1:]]


def endless(column):
    """Strings each second of which is the whole column."""
    offsets = np.tile([0, len(column.data)], len(column))[: len(column) + 1]
    return Strings(column.data, offsets.astype(np.int64))


def keep_paths(columns):
    for name in set(columns) - {"paths"}:
        del columns[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"paths": endless},
        {"thumbnails": endless},
        {"sizes": lambda column: np.asarray(column, np.int32)},
        {"mtimes": lambda column: np.asarray(column)[:, None]},
        {"sizes": lambda column: Strings.of("x" for _ in column)},
        {"paths": lambda column: np.arange(len(column))},
        {"thumbnails": lambda column: np.arange(len(column))},
        "one column",
        "one more column",
    ],
)
def test_a_file_with_other_columns_is_refused(made, changes):
    directory, _, jpegs = made
    path = thumbnail_files(directory)[0]
    if changes == "one column":
        crafted.rewrite(path, thumbnails.KIND, lambda tables: keep_paths(tables["rows"]), attributes={})
    elif changes == "one more column":
        crafted.rewrite(path, thumbnails.KIND, crafted.with_column("rows", "more", np.arange(4)), attributes={})
    else:
        rewrite(path, changes)
    found = find_all(directory)
    assert found[4:] == jpegs[4:]
    assert all(content is None or len(content) < sum(map(len, jpegs)) for content in found[:4])
    assert [damage.path for damage in verify.find(directory)] == [path]
    repair(directory)
    assert verify.find(directory) == []


def test_paths_that_share_their_bytes_are_not_read(made):
    # Nine rows would do no harm, but a million would fill the memory.
    directory, index, jpegs = made
    path = thumbnail_files(directory)[1]
    rewrite(path, {"paths": endless})
    with pytest.raises(cache.CacheError, match=r"the offsets of paths"):
        thumbnails.missing(directory, index)
    assert find_all(directory) == [*jpegs[:4], *[None] * 9]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "index", "text"])
def test_what_is_no_file_of_thumbnails_is_skipped_and_named(made, tmp_path, kind):
    directory, _, jpegs = made
    path = thumbnail_files(directory)[0]
    path.rename(tmp_path / "elsewhere.h5")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere.h5")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "index":
        shutil.copyfile(directory / layout.INDEX, path)
    else:
        path.write_text("no HDF5")
    assert find_all(directory) == [None] * 4 + jpegs[4:]
    assert [damage.path for damage in repair(directory)] == [path]
    assert not os.path.lexists(path) and (tmp_path / "elsewhere.h5").exists()


def test_a_folder_that_is_a_link_is_refused_and_nothing_there_is_touched(made, tmp_path):
    """Otherwise a repair would delete whatever is no file of thumbnails in the folder that the link leads to."""
    directory, index, _ = made
    elsewhere = tmp_path / "elsewhere"
    shutil.move(directory / layout.THUMBNAILS, elsewhere)
    for name in ("thesis.h5", f".thesis.h5{files.TEMPORARY}"):
        (elsewhere / name).write_text("years of work")
        os.utime(elsewhere / name, (0, 0))
    (directory / layout.THUMBNAILS).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    for change in (verify.find, repair, compact, lambda directory: thumbnails.missing(directory, index)):
        with pytest.raises(cache.CacheError, match="thumbnails is a link; put the folder itself there"):
            change(directory)
    assert find_all(directory) == [None] * 13
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_a_newer_file_is_left_alone(made):
    directory, _, jpegs = made
    path = thumbnail_files(directory)[0]
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = table.VERSION + 1
    assert find_all(directory) == [None] * 4 + jpegs[4:]
    with pytest.raises(UserError, match=r"nothing was dropped: .* update this program"):
        repair(directory)
    assert path.exists()
