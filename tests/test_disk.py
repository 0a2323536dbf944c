"""The disk fills up, the permission goes, the folder disappears: one line, and nothing committed is lost."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import resource
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

import cache
from cache import files, layout, manifest, rejected, repair, shard, verify
from cache import index as indexes
from cache.compact import compact
from extract.run import extract
from extract.settings import Settings
from tests.damage import flip, place_of
from tests.interrupted import Child, Step
from tests.pictures import make_folder
from tests.random_cache import fill, rows

PHOTOS = 12  # readable ones
pytestmark = pytest.mark.usefixtures("loaded_once")  # in this process; children load it themselves
CHOICES = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "batch_size": 2}


def fill_up(disk):
    with contextlib.suppress(OSError), open(disk / "ballast", "ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def make_room(disk):
    (disk / "ballast").unlink()


def remount(disk, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def limit_files(size):
    """No file may grow beyond so many bytes, which stands in for a full disk where none can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def obey_permissions():
    """Gives up the right of root to ignore permissions, and every other right."""
    version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version, nothing) == 0


def chmod(cache_dir, mode):
    cache_dir.chmod(0o700)
    for folder in [*cache_dir.glob("*/shards"), *cache_dir.glob("*"), cache_dir]:
        folder.chmod(mode)


def lose_shards(cache_dir):
    for folder in cache_dir.glob("*/shards"):
        shutil.rmtree(folder)


def the_error(child):
    """The one line that the child ended with."""
    status, errors = child.wait()
    assert status == 2, errors
    assert "Traceback" not in errors
    *bars, line = errors.splitlines()
    assert line.startswith("error: "), errors
    assert all(not bar or bar.startswith(("extract:", "compact:", "verify:")) for bar in bars), errors
    return line


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    photos = make_folder(tmp_path_factory.mktemp("disk") / "photos", {"a": PHOTOS - 5, "b": 5})
    (photos / "a" / "broken.jpg").write_text("no image")
    return photos


@pytest.fixture
def start(photos, module):
    """Starts an extraction into a cache_dir that something happens to."""

    def start_extraction(cache_dir, at, then, first=bool):
        choices = {"image_dir": photos, "cache_dir": cache_dir, "module": module} | CHOICES
        return Child("extract", [f"--{name}={value}" for name, value in choices.items()], at, then, first=first)

    return start_extraction


@pytest.fixture
def finish(photos, module):
    """Checks what an extraction left in a cache_dir, and that the next goes on from there."""

    def finish_extraction(cache_dir, committed):
        for directory in cache_dir.iterdir():
            assert verify.find(directory) == []
        assert not list(cache_dir.rglob("*.tmp"))
        names = [path for path in cache_dir.glob("*/shards/*") if layout.is_committed_name(path.name)]
        assert sum(len(shard.read(path)) for path in names) == committed
        result = extract(Settings(str(photos), str(cache_dir), module, **CHOICES))
        assert (result.computed, result.reused) == (PHOTOS - committed, committed)
        assert len(cache.open(cache_dir)) == PHOTOS
        assert verify.find(result.directory) == []

    return finish_extraction


# Where it happens, and how many bottlenecks were committed before.
MOMENTS = {
    "a new shard": (Step("before", "open", "shard", 3), 4),
    "the writing of a shard": (Step("before", "write", "shard", 3), 4),
    "the list of rejected photos": (Step("before", "open", "rejected"), PHOTOS),
    "the index": (Step("before", "open", "index"), PHOTOS),
    "the writing of the index": (Step("before", "write", "index"), PHOTOS),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_extraction_whose_disk_fills_up(disk, start, finish, moment):
    at, committed = MOMENTS[moment]
    line = the_error(start(disk / "cache", at, partial(fill_up, disk)))
    assert "No space left on device" in line
    assert "free some space" in line
    make_room(disk)
    finish(disk / "cache", committed)


def test_an_extraction_that_begins_on_a_full_disk(disk, start, finish):
    line = the_error(start(disk / "cache", None, bool, first=partial(fill_up, disk)))
    assert "cannot write" in line
    make_room(disk)
    finish(disk / "cache", 0)


@pytest.mark.parametrize("moment", MOMENTS)
def test_an_extraction_whose_files_may_not_grow(tmp_path, start, finish, moment):
    at, committed = MOMENTS[moment]
    line = the_error(start(tmp_path / "cache", at, partial(limit_files, 16)))
    assert "File too large" in line
    finish(tmp_path / "cache", committed)


def test_an_extraction_whose_disk_becomes_read_only(disk, start, finish):
    at, committed = MOMENTS["a new shard"]  # later a lock is open, and a disk with open files is not remounted
    line = the_error(start(disk / "cache", at, partial(remount, disk, "ro")))
    assert "Read-only file system" in line
    remount(disk, "rw")
    finish(disk / "cache", committed)


BETWEEN = "between the last shard and the index"
MOMENTS_OF_NAMES = {
    "the network beside it": (Step("before", "rename", "backbone"), 0),
    **{moment: MOMENTS[moment] for moment in ("a new shard", "the list of rejected photos", "the index")},
    "the renaming of a shard": (Step("before", "replace", "shard", 3), 4),
    BETWEEN: (Step("after", "fsync", "folder of shards", PHOTOS // 2), PHOTOS),
    "the renaming of the index": (Step("before", "replace", "index"), PHOTOS),
}


@pytest.mark.parametrize("mode", [0o500, 0])
@pytest.mark.parametrize("moment", MOMENTS_OF_NAMES)
def test_an_extraction_whose_permission_goes(tmp_path, start, finish, moment, mode):
    at, committed = MOMENTS_OF_NAMES[moment]
    cache_dir = tmp_path / "cache"
    line = the_error(start(cache_dir, at, partial(chmod, cache_dir, mode), first=obey_permissions))
    assert "Permission denied" in line
    assert str(cache_dir) in line
    chmod(cache_dir, 0o700)
    for left in cache_dir.rglob("*.tmp"):  # without the permission to delete it
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    finish(cache_dir, committed)


@pytest.mark.parametrize("moment", MOMENTS_OF_NAMES)
def test_an_extraction_whose_folder_vanishes(tmp_path, start, finish, moment):
    at, _ = MOMENTS_OF_NAMES[moment]
    line = the_error(start(tmp_path / "cache", at, partial(shutil.rmtree, tmp_path / "cache")))
    assert re.search(r"No such file or directory|are gone", line)
    assert str(tmp_path / "cache") in line
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    finish(tmp_path / "cache", 0)


@pytest.mark.parametrize("moment", ["the renaming of a shard", BETWEEN])
def test_an_extraction_whose_shards_vanish(tmp_path, start, finish, moment):
    at, _ = MOMENTS_OF_NAMES[moment]
    line = the_error(start(tmp_path / "cache", at, partial(lose_shards, tmp_path / "cache")))
    assert re.search(r"No such file or directory|are gone", line)
    finish(tmp_path / "cache", 0)


def content_of(directory):
    """The bytes of every file there, without the lock."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != files.LOCK}


UNUSED = 10  # of 21 rows


def make_store(folder):
    """A folder of small shards of both dtypes, with some rows that no photo uses."""
    directory = folder / "tiny-0123456789abcdef"
    fill(directory, [rows(5, 0), rows(3, 1, "float32"), rows(7, 2), rows(6, 3, "float32")])
    info, index = indexes.read(directory)
    used = np.arange(0, len(index), 2)
    columns = {
        name: index.paths.take(used) if name == "paths" else getattr(index, name)[used]
        for name in indexes.SCHEMAS["images"]
    }
    indexes.write(directory, info, replace(index, **columns))
    return directory


def vectors_of(directory):
    opened = cache.open(directory)
    vectors = opened.bottlenecks(np.arange(len(opened)))
    return {path: vector.tobytes() for path, vector in zip(opened.paths, vectors, strict=True)}


# Where a compaction or a repair is when it happens; None: it begins so.
CHANGES = {
    "the start": None,
    "a new shard": Step("before", "open", "shard"),
    "the writing of a shard": Step("before", "write", "shard"),
    "the second shard": Step("before", "open", "shard", 2),
    "the index": Step("before", "open", "index"),
    "the writing of the index": Step("before", "write", "index"),
}


def start_change(moment, then, *arguments):
    at = CHANGES[moment]
    return Child("cache", [str(argument) for argument in arguments], at, then, first=bool if at else then)


def check_compaction(directory, vectors):
    assert verify.find(directory) == []
    assert compact(directory).rows_dropped == UNUSED
    assert vectors_of(directory) == vectors
    assert verify.find(directory) == []


@pytest.mark.parametrize("moment", CHANGES)
def test_a_compaction_whose_disk_fills_up(disk, moment):
    directory = make_store(disk)
    before, vectors = content_of(directory), vectors_of(directory)
    line = the_error(start_change(moment, partial(fill_up, disk), "compact", directory))
    assert "No space left on device" in line
    assert content_of(directory) == before
    make_room(disk)
    check_compaction(directory, vectors)


@pytest.mark.parametrize("moment", CHANGES)
def test_a_compaction_whose_files_may_not_grow(tmp_path, moment):
    directory = make_store(tmp_path)
    before, vectors = content_of(directory), vectors_of(directory)
    line = the_error(start_change(moment, partial(limit_files, 16), "compact", directory))
    assert "File too large" in line
    assert content_of(directory) == before
    check_compaction(directory, vectors)


def break_down():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("arguments", [["compact"], ["verify", "--repair"]], ids=" ".join)
def test_a_disk_that_breaks_down_when_the_index_is_there_keeps_what_it_names(tmp_path, arguments):
    directory = make_store(tmp_path)
    vectors = vectors_of(directory)
    lost = damage(directory) if "verify" in arguments else set()
    at = Step("before", "fsync", "folder above")
    line = the_error(Child("cache", [*arguments, str(directory)], at, break_down))
    assert "Input/output error" in line
    repair.repair(directory)
    assert verify.find(directory) == []
    assert vectors_of(directory) == {path: vector for path, vector in vectors.items() if path not in lost}


def damage(directory):
    """Flips a bit of one shard and cuts off another in its last row. Returns the paths of the rows that are lost."""
    first, second, *_ = [directory / layout.SHARDS / name for name in layout.shard_names(directory)]
    flip(first, place_of(first, "bottlenecks", 0))
    cut_off(second)
    assert [damage.rows.tolist() for damage in verify.find(directory)] == [[0], [2]]
    return {"class 0/0-0.jpg", "class 1/1-2.jpg"}


def cut_off(path):
    with h5py.File(path) as file:
        vectors = file["bottlenecks"]
        os.truncate(path, vectors.id.get_offset() + vectors.nbytes - 1)


def check_repair(directory, vectors, lost):
    assert len(repair.repair(directory)) == 2
    assert verify.find(directory) == []
    assert vectors_of(directory) == {path: vector for path, vector in vectors.items() if path not in lost}


@pytest.mark.parametrize("moment", CHANGES)
def test_a_repair_whose_disk_fills_up(disk, moment):
    directory = make_store(disk)
    vectors, lost, before = vectors_of(directory), damage(directory), content_of(directory)
    line = the_error(start_change(moment, partial(fill_up, disk), "verify", "--repair", directory))
    assert "No space left on device" in line
    assert content_of(directory) == before
    make_room(disk)
    check_repair(directory, vectors, lost)


@pytest.mark.parametrize("moment", CHANGES)
def test_a_repair_whose_files_may_not_grow(tmp_path, moment):
    directory = make_store(tmp_path)
    vectors, lost, before = vectors_of(directory), damage(directory), content_of(directory)
    line = the_error(start_change(moment, partial(limit_files, 16), "verify", "--repair", directory))
    assert "File too large" in line
    assert content_of(directory) == before
    check_repair(directory, vectors, lost)


def test_a_repair_without_room_to_look_at_a_shard_does_not_drop_it(tmp_path):
    """There is no index yet, so that nothing else has to be written."""
    directory = make_store(tmp_path)
    (directory / layout.INDEX).unlink()
    cut_off(directory / layout.SHARDS / layout.shard_names(directory)[0])
    before = content_of(directory)
    line = the_error(start_change("the start", partial(limit_files, 16), "verify", "--repair", directory))
    assert "was cut off, and cannot be copied" in line
    assert content_of(directory) == before
    repair.repair(directory)
    assert sorted(len(shard.read(path)) for path in (directory / layout.SHARDS).glob("*.h5")) == [3, 4, 6, 7]


@pytest.mark.parametrize("name", ["shard", layout.INDEX, layout.REJECTED, layout.BACKBONE])
def test_a_repair_drops_no_file_that_it_may_not_read(tmp_path, name):
    directory = make_store(tmp_path)
    rejected.write(directory, [rejected.Rejected("a/broken.jpg", 5, 6, "not an image")])
    (directory / layout.BACKBONE).mkdir()
    manifest.write(directory / layout.BACKBONE)
    path = directory / "shards" / layout.shard_names(directory)[0] if name == "shard" else directory / name
    before = content_of(directory)
    path.chmod(0)
    line = the_error(Child("cache", ["verify", "--repair", str(directory)], first=obey_permissions))
    assert re.search(f"nothing was dropped: cannot read {path}.*: Permission denied; fix that", line)
    path.chmod(0o700)
    assert content_of(directory) == before


def test_a_lock_is_open_for_reading_and_writing(tmp_path):
    """NFS grants shared locks only on files open for reading, and exclusive ones only on files open for writing."""
    with files.locked(tmp_path, shared=True):
        [held] = [fd for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == str(tmp_path / files.LOCK)]
        assert fcntl.fcntl(int(held.name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


@pytest.mark.parametrize("arguments", [["compact"], ["verify", "--repair"]], ids=" ".join)
def test_a_read_only_disk_keeps_a_cache_from_being_changed(disk, arguments):
    directory = make_store(disk)
    vectors, lost, before = vectors_of(directory), damage(directory), content_of(directory)
    line = the_error(start_change("the start", partial(remount, disk, "ro"), *arguments, directory))
    assert "Read-only file system" in line
    damaged = [damage.path.name for damage in verify.find(directory)]
    assert damaged == layout.shard_names(directory)[:2]
    remount(disk, "rw")
    assert content_of(directory) == before
    check_repair(directory, vectors, lost)
