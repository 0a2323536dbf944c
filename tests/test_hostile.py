"""Files from elsewhere: an error of the cache's own type, or the right content; never anything else."""

import os
import resource
import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from h5py import h5d
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache
from cache import columns, shard, store, verify
from cache.compact import compact
from tests.crafted import craft, files_of, low_level
from tests.test_cache import REPO
from tests.test_rot import everything_in, make


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile") / "tiny-0123456789abcdef"
    make(directory, [5, 3])
    return directory


@pytest.fixture
def copied(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / sound.name)


def assert_refused_or_right(directory, path, before):
    """What is opened is either refused in one line that names the file, or nothing that verify calls sound is wrong."""
    found = verify.find(directory)
    try:
        content = everything_in(directory)
    except cache.CacheError as error:
        assert "\n" not in str(error)
        # A reader sees other files disagree with the one that is wrong.
        assert str(directory) in str(error)
        assert found, error
        return
    assert content == before or path in {damage.path for damage in found}


def mutated(content, other):
    """A strategy for what became of the bytes: some changed, cut off, more at the end, another file's in the middle."""
    places = st.integers(0, len(content) - 1)
    # Structures lie at the start and arrays are few: most of a file is empty.
    interesting = st.sampled_from([i for i, byte in enumerate(content) if byte])
    changes = st.lists(st.tuples(places | interesting, st.integers(0, 255)), min_size=1, max_size=8)

    def change(pairs):
        new = bytearray(content)
        for place, byte in pairs:
            new[place] = byte
        return bytes(new)

    def splice(ends):
        begin, end = sorted(ends)
        return content[:begin] + other[begin:end] + content[end:]

    return st.one_of(
        changes.map(change),
        places.map(lambda end: content[:end]),
        st.binary(max_size=5000).map(lambda more: content + more),
        st.tuples(places, places).map(splice),
        st.binary(max_size=300).map(lambda start: start + content[len(start) :]),
    )


@pytest.mark.parametrize("which", [0, 2, 3])  # a shard, the index, the list of rejected images
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(sound, which, data):
    path = files_of(sound)[which]
    content, other = path.read_bytes(), files_of(sound)[(which + 1) % 3].read_bytes()
    before = everything_in(sound)
    try:
        path.write_bytes(data.draw(mutated(content, other)))
        if path.name == store.REJECTED:
            try:
                store.read_rejected(sound)
            except cache.CacheError as error:
                assert str(path) in str(error)
        else:
            assert_refused_or_right(sound, path, before)
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_link_out_of_the_cache_and_a_pipe_are_refused(copied, tmp_path, which):
    path = files_of(copied)[which]
    read = store.read_rejected if path.name == store.REJECTED else cache.open
    shutil.move(path, tmp_path / "elsewhere")
    for put_there in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path)):
        put_there()
        with pytest.raises(cache.CacheError, match=f"{path} is a link or no regular file"):
            read(copied)
        assert path in {damage.path for damage in verify.find(copied)}
        path.unlink()
    path.mkdir()
    with pytest.raises(cache.CacheError, match=f"{path} is a link or no regular file"):
        read(copied)


def test_a_link_that_was_refused_is_dropped_and_what_it_led_to_stays(copied, tmp_path):
    path = files_of(copied)[0]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    verify.repair(copied)
    assert verify.find(copied) == []
    assert len(cache.open(copied)) == 3
    assert len(shard.read(tmp_path / "elsewhere")) == 5


def test_a_folder_of_shards_that_is_a_link_is_refused_and_nothing_there_is_touched(copied, tmp_path):
    """A repair would delete what is no shard of this cache, wherever the link leads."""
    shutil.move(copied / "shards", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "thesis.h5").write_text("years of work")
    (copied / "shards").symlink_to(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    for change in (cache.open, verify.find, verify.repair, compact):
        with pytest.raises(cache.CacheError, match="shards is a link; put the folder itself there"):
            change(copied)
    assert {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()} == before


def test_a_backbones_folder_that_is_a_link_is_refused(copied, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "link").symlink_to(copied)
    with pytest.raises(cache.CacheError, match=f"link is a link; put the folder itself there, or give {copied} alone"):
        cache.open(tmp_path / "cache")
    assert len(cache.open(tmp_path / "cache" / "link")) == 8  # whoever names it means it


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cache", *map(str, arguments)], cwd=REPO, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["saved_model.pb", "SHA256SUMS"])
@pytest.mark.parametrize("put_there", ["pipe", "link"])
def test_a_pipe_or_link_in_a_backbone_is_named_and_not_read(copied, tmp_path, name, put_there):
    path = copied / store.BACKBONE / name
    shutil.move(path, tmp_path / name)
    if put_there == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / name)  # to the very same bytes, today
    told = command("verify", copied)
    assert told.returncode == 2
    assert f"{copied / store.BACKBONE}: {name} " in told.stdout


def test_a_backbone_that_is_a_link_is_dropped_and_what_it_led_to_stays(copied, tmp_path):
    shutil.move(copied / store.BACKBONE, tmp_path / "elsewhere")
    (copied / store.BACKBONE).symlink_to(tmp_path / "elsewhere")
    [found] = verify.repair(copied)
    assert found.path == copied / store.BACKBONE
    assert not found.path.is_symlink()
    assert (tmp_path / "elsewhere" / "saved_model.pb").exists()


def test_a_lock_that_is_a_pipe_keeps_nobody_waiting(copied):
    os.mkfifo(copied / store.LOCK)
    assert command("verify", "--repair", copied).returncode == 0


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(copied, tmp_path):
    (copied / store.LOCK).symlink_to(tmp_path / "elsewhere")
    told = command("compact", copied)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert told.stderr.startswith(f"error: cannot lock {copied}: ")
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_with_the_name_of_an_abandoned_file_is_swept(copied):
    pipe = copied / "shards" / f".1{columns.TEMPORARY}"
    os.mkfifo(pipe)
    os.utime(pipe, (0, 0))
    assert command("compact", copied).returncode == 0
    assert not pipe.exists()


def test_what_a_header_asks_for_is_not_allocated(copied):
    """With the memory of a small machine: opening, verifying and repairing files that claim to hold terabytes."""
    path = files_of(copied)[0]
    craft(path, "bottlenecks", low_level((5, 1 << 37)))
    with h5py.File(copied / store.INDEX, "r+") as file:
        for name in ("paths_offsets", "sizes"):
            del file[name]
            low_level((1 << 40,), np.int64)(file, name)
    script = f"""
        import resource, sys
        from pathlib import Path
        import cache
        from cache import reader, store, verify
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
        directory = Path({str(copied)!r})
        for read in (cache.open, store.module_of):
            try:
                read(directory)
            except cache.CacheError as error:
                print(error)
        print(*verify.repair(directory), sep="\\n")
        print(verify.find(directory))"""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    *told, last = done.stdout.splitlines()
    assert len(told) == 4
    assert all("index.h5 is damaged" in line or str(path) in line for line in told)
    assert last == "[]"


def test_a_cut_file_that_claims_a_terabyte_fills_no_disk(copied):
    path = files_of(copied)[0]
    craft(path, "bottlenecks", low_level((5, 1 << 37), prepare=lambda o: o.set_alloc_time(h5d.ALLOC_TIME_EARLY)))
    assert path.stat().st_size > 1 << 39  # mostly a hole
    os.truncate(path, 20000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 31, limits[1]))
    try:
        verify.repair(copied)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert verify.find(copied) == []
    assert len(cache.open(copied)) == 3
