"""Files of thumbnails: committed, found again, damaged, and looked after like the bottlenecks."""

import dataclasses
import functools
import io
import json
import os
import shutil
import types

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import cache
from cache import columns, command, store, thumbnails, verify, writer
from cache.__main__ import main as cache_main
from cache.compact import compact
from cache.errors import UserError
from cache.strings import Strings
from tests.test_cache import fill, rows
from tests.test_hostile import mutated
from tests.test_repair import flip, place_of
from tests.test_rot import flipped


def jpeg(seed, size=(12, 8)):
    """A small JPEG file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def everything(directory):
    """What each image's thumbnail is found to be."""
    opened = cache.open(directory)
    return thumbnails.find(opened, np.arange(len(opened)))


def files_of(directory):
    return [directory / store.THUMBNAILS / name for name in thumbnails.names(directory)]


@pytest.fixture
def made(tmp_path):
    """A store of thirteen images, their thumbnails in two files, and these in the index's order."""
    directory = tmp_path / "tiny-0123456789abcdef"
    index, _ = fill(directory, [rows(5, 0), rows(1, 1), rows(7, 2)])
    jpegs = [jpeg(seed) for seed in range(13)]
    for images in (np.arange(4), np.arange(4, 13)):
        thumbnails.write(directory, [thumbnails.of(index, images, [jpegs[i] for i in images])])
    return directory, index, jpegs


# --- committed -------------------------------------------------------------------------------------------------


def test_what_came_before_an_interruption_is_committed(made):
    directory, index, jpegs = made
    shutil.rmtree(directory / store.THUMBNAILS)

    def interrupted():
        for image in (3, 4):
            yield thumbnails.of(index, np.array([image]), [jpegs[image]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thumbnails.write_all(directory, interrupted())
    assert everything(directory) == [jpegs[i] if i in (3, 4) else None for i in range(13)]
    assert len(files_of(directory)) == 1


@pytest.mark.parametrize("limit", ["COMMIT_SECONDS", "COMMIT_BYTES"])
def test_commits_are_as_frequent_as_those_of_bottlenecks(made, monkeypatch, limit):
    directory, index, jpegs = made
    shutil.rmtree(directory / store.THUMBNAILS)
    monkeypatch.setattr(writer, limit, 0)
    parts = (thumbnails.of(index, np.array([image]), [jpegs[image]]) for image in range(13))
    assert thumbnails.write_all(directory, parts) == 13
    assert len(files_of(directory)) == 13
    assert everything(directory) == jpegs


def test_the_time_runs_anew_after_each_commit(made, monkeypatch):
    directory, index, jpegs = made
    shutil.rmtree(directory / store.THUMBNAILS)
    monkeypatch.setattr(writer, "COMMIT_SECONDS", 25)
    monkeypatch.setattr(thumbnails, "time", types.SimpleNamespace(monotonic=lambda: seconds))
    seconds = 0

    def slow():
        nonlocal seconds
        for image in range(13):
            seconds += 10
            yield thumbnails.of(index, np.array([image]), [jpegs[image]])

    assert thumbnails.write_all(directory, slow()) == 13
    assert [len(thumbnails.read(path)) for path in files_of(directory)] == [3, 3, 3, 3, 1]


# --- found again -----------------------------------------------------------------------------------------------


def test_they_are_found_by_row_in_any_order_and_number(made):
    directory, _, jpegs = made
    opened = cache.open(directory)
    for wanted in ([], [7], [12, 0, 3, 3, 12], list(range(13))):
        assert thumbnails.find(opened, np.array(wanted, int)) == [jpegs[i] for i in wanted]
    assert len(thumbnails.missing(directory, opened.index)) == 0


@pytest.mark.parametrize("name", ["sizes", "mtimes"])
def test_another_size_or_time_is_another_image(made, name):
    directory, index, jpegs = made
    # Two have each other's, so that none of the numbers is new.
    getattr(index, name)[[5, 6]] = getattr(index, name)[[6, 5]]
    store.write_index(directory, store.module_of(directory), index)
    assert everything(directory) == [None if i in (5, 6) else jpegs[i] for i in range(13)]
    assert thumbnails.missing(directory, index).tolist() == [5, 6]


def test_another_path_is_another_image(made):
    directory, index, jpegs = made
    renamed = dataclasses.replace(index, paths=Strings.of([*list(index.paths)[:-1], "renamed.jpg"]))
    store.write_index(directory, store.module_of(directory), renamed)
    assert everything(directory) == [*jpegs[:12], None]
    assert thumbnails.missing(directory, renamed).tolist() == [12]


def test_reading_meets_compacting(made, monkeypatch):
    directory, _, jpegs = made
    opened = cache.open(directory)
    names, before = thumbnails.names, thumbnails.names(directory)
    assert compact(directory).thumbnail_files_after == 1
    listings = iter([before])  # what the folder held when it was listed, and does not when it is read
    monkeypatch.setattr(thumbnails, "names", lambda directory: next(listings, None) or names(directory))
    assert thumbnails.find(opened, np.arange(13)) == jpegs


# --- damage ----------------------------------------------------------------------------------------------------


def test_a_damaged_thumbnail_is_named_counts_as_none_and_is_dropped_alone(made, capsys):
    directory, index, jpegs = made
    path = files_of(directory)[1]
    with h5py.File(path) as file:
        start = int(file["thumbnails_offsets"][3])
    flip(path, place_of(path, "thumbnails", start + 40))
    assert everything(directory) == [None if i == 7 else jpegs[i] for i in range(13)]
    [found] = verify.find(directory)
    assert (found.path, found.rows.tolist()) == (path, [3])
    assert command.run(cache_main, ["verify", str(directory)]) == 2
    assert f"{path}: 1 of 9 rows differ from their checksums: 3 ({index.paths[7]})" in capsys.readouterr().out
    with pytest.raises(cache.CacheError, match="damaged"):
        compact(directory)
    verify.repair(directory)
    assert verify.find(directory) == [] and not path.exists()
    assert everything(directory) == [None if i == 7 else jpegs[i] for i in range(13)]
    assert thumbnails.missing(directory, index).tolist() == [7]


def test_a_flipped_byte_costs_a_thumbnail_at_most_and_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, "_PAGE", 512)  # most of a real file's pages are empty
    directory = tmp_path / "tiny-0123456789abcdef"
    index, _ = fill(directory, [rows(2, 0)])
    # As much of a JPEG as is looked at: as many flips as bytes.
    jpegs = [b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x01\x00\x01" + name for name in (b"first", b"second")]
    thumbnails.write(directory, [thumbnails.of(index, np.arange(2), jpegs)])
    opened, [path] = cache.open(directory), files_of(directory)
    # Reading what stays as it is anew for each flip would take most of the time.
    monkeypatch.setattr(verify.shard, "read", functools.cache(verify.shard.read))
    monkeypatch.setattr(store, "read_index_table", functools.cache(store.read_index_table))
    wrong = 0
    for place in range(0, path.stat().st_size, 2):
        with flipped(path, {place: (1, 2, 4, 8, 16, 32, 64, 128, 255)[place % 9]}):
            found = thumbnails.find(opened, np.arange(2))
            assert all(content in (jpegs[i], None) for i, content in enumerate(found)), place
            if found != jpegs:
                wrong += 1
                assert [damage.path for damage in verify.find(directory)] == [path], place
    assert wrong > sum(map(len, jpegs)) / 2
    assert thumbnails.find(opened, np.arange(2)) == jpegs


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile") / "tiny-0123456789abcdef"
    index, _ = fill(directory, [rows(5, 0)])
    thumbnails.write(directory, [thumbnails.of(index, np.arange(5), [jpeg(seed) for seed in range(5)])])
    return directory


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_do_no_harm(sound, data):
    [path] = files_of(sound)
    content, opened = path.read_bytes(), cache.open(sound)
    jpegs = [jpeg(seed) for seed in range(5)]
    try:
        path.write_bytes(data.draw(mutated(content, (sound / store.INDEX).read_bytes())))
        for image, found in enumerate(thumbnails.find(opened, np.arange(5))):
            assert found in (jpegs[image], None)
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
    path = files_of(directory)[0]
    path.write_bytes(path.read_bytes()[:kept])
    assert everything(directory)[4:] == jpegs[4:]
    with pytest.raises(cache.CacheError, match=str(path)):
        thumbnails.missing(directory, index)
    assert [damage.path for damage in verify.repair(directory)] == [path]
    assert verify.find(directory) == []
    assert everything(directory) == [None] * 4 + jpegs[4:]


def rewrite(path, **changed):
    """Writes a file of thumbnails anew, some columns changed, with true checksums."""
    _, tables = columns.read(path, thumbnails.KIND)
    part = dict(tables[thumbnails.TABLE].columns)
    part |= {name: change(part[name]) for name, change in changed.items()}
    columns.write(path, thumbnails.KIND, {}, {thumbnails.TABLE: [part]})


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
    rewrite(
        files_of(directory)[0], thumbnails=lambda column: Strings.of_encoded([content, *list(column.encoded())[1:]])
    )
    assert everything(directory) == [None, *jpegs[1:]]


def endless(column):
    """Strings that are all the whole column, which they share."""
    offsets = np.tile([0, len(column.data)], len(column))[: len(column) + 1]
    return Strings(column.data, offsets.astype(np.int64))


@pytest.mark.parametrize(
    "changed",
    [
        {"paths": endless},
        {"thumbnails": endless},
        {"sizes": lambda column: np.asarray(column, np.int32)},
        {"mtimes": lambda column: np.asarray(column)[:, None]},
        {"sizes": lambda column: Strings.of("x" for _ in column)},
        {"paths": lambda column: np.arange(len(column))},
        {"thumbnails": lambda column: np.arange(len(column))},
        {"more": lambda column: column},
    ],
)
def test_other_columns_are_refused(made, changed):
    directory, index, jpegs = made
    path = files_of(directory)[0]
    if "more" in changed:
        columns.write(path, thumbnails.KIND, {}, {thumbnails.TABLE: [{"paths": index.paths}]})
    else:
        rewrite(path, **changed)
    found = everything(directory)
    assert found[4:] == jpegs[4:]
    assert all(content is None or len(content) < sum(map(len, jpegs)) for content in found[:4])
    assert [damage.path for damage in verify.find(directory)] == [path]
    verify.repair(directory)
    assert verify.find(directory) == []


def test_paths_that_share_their_bytes_are_not_read(made):
    # Of nine rows it does no harm, of a million it would fill the memory.
    directory, index, jpegs = made
    path = files_of(directory)[1]
    rewrite(path, paths=endless)
    with pytest.raises(cache.CacheError, match=r"the offsets of paths"):
        thumbnails.missing(directory, index)
    assert everything(directory) == [*jpegs[:4], *[None] * 9]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "index", "text"])
def test_what_is_no_file_of_thumbnails_is_passed_over_and_named(made, tmp_path, kind):
    directory, _, jpegs = made
    path = files_of(directory)[0]
    path.rename(tmp_path / "elsewhere.h5")
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere.h5")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "index":
        shutil.copyfile(directory / store.INDEX, path)
    else:
        path.write_text("no HDF5")
    assert everything(directory) == [None] * 4 + jpegs[4:]
    assert [damage.path for damage in verify.repair(directory)] == [path]
    assert not os.path.lexists(path) and (tmp_path / "elsewhere.h5").exists()


def test_a_folder_that_is_a_link_is_refused_and_nothing_there_is_touched(made, tmp_path):
    """A repair would delete what is no file of thumbnails, wherever the link leads."""
    directory, index, _ = made
    elsewhere = tmp_path / "elsewhere"
    shutil.move(directory / store.THUMBNAILS, elsewhere)
    for name in ("thesis.h5", f".thesis.h5{columns.TEMPORARY}"):
        (elsewhere / name).write_text("years of work")
        os.utime(elsewhere / name, (0, 0))
    (directory / store.THUMBNAILS).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.iterdir()}
    for change in (verify.find, verify.repair, compact, lambda directory: thumbnails.missing(directory, index)):
        with pytest.raises(cache.CacheError, match="thumbnails is a link; put the folder itself there"):
            change(directory)
    assert everything(directory) == [None] * 13
    assert {path: path.read_bytes() for path in elsewhere.iterdir()} == before


def test_a_newer_file_is_left_alone(made):
    directory, _, jpegs = made
    path = files_of(directory)[0]
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = columns.VERSION + 1
    assert everything(directory) == [None] * 4 + jpegs[4:]
    with pytest.raises(UserError, match=r"nothing was dropped: .* update this program"):
        verify.repair(directory)
    assert path.exists()


# --- looked after ----------------------------------------------------------------------------------------------


def test_compact_merges_and_drops_what_no_image_uses(made):
    directory, index, jpegs = made
    copies = thumbnails.of(index, np.array([2, 5]), [jpegs[2], jpegs[5]])
    other = thumbnails.Thumbnails(
        Strings.of(["gone.jpg"]), np.array([1]), np.array([2]), Strings.of_encoded([jpeg(99)])
    )
    thumbnails.write(directory, [copies, other])
    old = files_of(directory)
    result = compact(directory)
    assert (result.thumbnail_files_before, result.thumbnail_files_after, result.thumbnails_dropped) == (3, 1, 3)
    [only] = files_of(directory)
    assert len(thumbnails.read(only)) == 13 and only not in old
    assert everything(directory) == jpegs
    assert verify.find(directory) == []
    again = compact(directory)
    assert (again.thumbnail_files_before, again.thumbnail_files_after, again.bytes_freed) == (1, 1, 0)
    assert files_of(directory) == [only]


def test_compact_leaves_full_files_and_fills_new_ones(made, monkeypatch):
    directory, _, jpegs = made
    monkeypatch.setattr("cache.compact.COMMIT_BYTES", 1000)
    before = files_of(directory)
    assert compact(directory).thumbnail_files_after == 2
    assert files_of(directory) == before
    assert everything(directory) == jpegs


def test_compact_that_fails_leaves_everything_as_it_was(made, monkeypatch):
    directory, _, jpegs = made
    before = files_of(directory)
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
    assert written and files_of(directory) == before
    assert everything(directory) == jpegs


def test_the_commands_tell_of_them(made, capsys):
    directory, index, _ = made
    assert command.run(cache_main, ["info", "--json", str(directory)]) == 0
    [told] = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in files_of(directory))
    assert told["thumbnails"] == {"files": 2, "images": 13, "rows": 13, "bytes": size}
    keep = np.arange(11)
    numbers = {name: getattr(index, name)[keep] for name in store.NUMBERS}
    kept = store.Index(index.image_dir, index.labels, index.shards, index.paths.take(keep), **numbers)
    store.write_index(directory, store.module_of(directory), kept)
    assert command.run(cache_main, ["info", str(directory)]) == 0
    assert f"  thumbnails     of 11 images, {size / 1e6:.1f} MB" in capsys.readouterr().out.splitlines()
    assert command.run(cache_main, ["compact", str(directory)]) == 0
    assert "2 files of thumbnails became 1, 2 unused thumbnails dropped" in capsys.readouterr().out
    shutil.rmtree(directory / store.THUMBNAILS)
    assert command.run(cache_main, ["info", str(directory)]) == 0
    assert "thumbnails     none: `python -m extract --thumbnails` makes them" in capsys.readouterr().out


def test_what_a_killed_run_left_half_written_is_swept(made):
    directory, _, _ = made
    left = directory / store.THUMBNAILS / f".some.h5{columns.TEMPORARY}"
    left.write_text("half")
    os.utime(left, (0, 0))
    compact(directory)
    assert not left.exists()
