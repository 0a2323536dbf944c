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
from cache import files, layout, rejected, shard, verify
from cache.compact import compact
from cache.repair import repair
from tests.crafted import craft, files_of, low_level
from tests.damage import mutated
from tests.processes import REPO
from tests.random_cache import NAME, content, fill_with_everything


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile") / NAME
    fill_with_everything(directory, [5, 3])
    return directory


@pytest.fixture
def copied(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / sound.name)


def assert_refused_or_right(directory, path, before):
    """Opening either fails with one line that names the file, or gives the right content or what verify finds."""
    damages = verify.find(directory)
    try:
        now = content(directory)
    except cache.CacheError as error:
        assert "\n" not in str(error)
        # A reader may see only that another file disagrees with the one that is wrong.
        assert str(directory) in str(error)
        assert damages, error
        return
    assert now == before or path in {damage.path for damage in damages}


@pytest.mark.parametrize("which", [0, 2, 3])  # a shard, the index, the list of rejected photos
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(sound, which, data):
    path = files_of(sound)[which]
    sound_bytes, other = path.read_bytes(), files_of(sound)[(which + 1) % 3].read_bytes()
    before = content(sound)
    try:
        path.write_bytes(data.draw(mutated(sound_bytes, other)))
        if path.name == layout.REJECTED:
            try:
                rejected.read(sound)
            except cache.CacheError as error:
                assert str(path) in str(error)
        else:
            assert_refused_or_right(sound, path, before)
    finally:
        path.write_bytes(sound_bytes)


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_link_out_of_the_cache_and_a_pipe_are_refused(copied, tmp_path, which):
    path = files_of(copied)[which]
    read = rejected.read if path.name == layout.REJECTED else cache.open
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


def test_a_repair_drops_a_link_and_leaves_its_target(copied, tmp_path):
    path = files_of(copied)[0]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    repair(copied)
    assert verify.find(copied) == []
    assert len(cache.open(copied)) == 3
    assert len(shard.read(tmp_path / "elsewhere")) == 5


def test_a_folder_of_shards_that_is_a_link_is_refused_and_nothing_there_is_touched(copied, tmp_path):
    """Otherwise a repair would delete whatever is no shard of this cache in the folder that the link leads to."""
    shutil.move(copied / "shards", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "thesis.h5").write_text("years of work")
    (copied / "shards").symlink_to(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()}
    for change in (cache.open, verify.find, repair, compact):
        with pytest.raises(cache.CacheError, match="shards is a link; put the folder itself there"):
            change(copied)
    assert {path: path.read_bytes() for path in (tmp_path / "elsewhere").iterdir()} == before


def test_a_backbones_folder_that_is_a_link_is_refused(copied, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "link").symlink_to(copied)
    with pytest.raises(cache.CacheError, match=f"link is a link; put the folder itself there, or give {copied} alone"):
        cache.open(tmp_path / "cache")
    assert len(cache.open(tmp_path / "cache" / "link")) == 8  # whoever names the link itself means it


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cache", *map(str, arguments)], cwd=REPO, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["saved_model.pb", "SHA256SUMS"])
@pytest.mark.parametrize("put_there", ["pipe", "link"])
def test_a_pipe_or_link_in_a_backbone_is_named_and_not_read(copied, tmp_path, name, put_there):
    path = copied / layout.BACKBONE / name
    shutil.move(path, tmp_path / name)
    if put_there == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / name)  # to the very same bytes, today
    done = command("verify", copied)
    assert done.returncode == 2
    assert f"{copied / layout.BACKBONE}: {name} " in done.stdout


def test_a_repair_drops_a_backbone_that_is_a_link_and_leaves_its_target(copied, tmp_path):
    shutil.move(copied / layout.BACKBONE, tmp_path / "elsewhere")
    (copied / layout.BACKBONE).symlink_to(tmp_path / "elsewhere")
    [damage] = repair(copied)
    assert damage.path == copied / layout.BACKBONE
    assert not damage.path.is_symlink()
    assert (tmp_path / "elsewhere" / "saved_model.pb").exists()


def test_nobody_waits_for_a_lock_that_is_a_pipe(copied):
    os.mkfifo(copied / files.LOCK)
    assert command("verify", "--repair", copied).returncode == 0


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(copied, tmp_path):
    (copied / files.LOCK).symlink_to(tmp_path / "elsewhere")
    done = command("compact", copied)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: cannot lock {copied}: ")
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_with_the_name_of_an_abandoned_file_is_swept(copied):
    pipe = copied / "shards" / f".1{files.TEMPORARY}"
    os.mkfifo(pipe)
    os.utime(pipe, (0, 0))
    assert command("compact", copied).returncode == 0
    assert not pipe.exists()


def test_memory_that_a_header_claims_is_not_allocated(copied):
    """Files that claim to hold terabytes are opened, verified and repaired with 64 MiB of memory to spare."""
    path = files_of(copied)[0]
    craft(path, "bottlenecks", low_level((5, 1 << 37)))
    with h5py.File(copied / layout.INDEX, "r+") as file:
        for name in ("paths_offsets", "sizes"):
            del file[name]
            low_level((1 << 40,), np.int64)(file, name)
    script = f"""
        import resource, sys
        from pathlib import Path
        import cache
        from cache import store, verify
        from cache.repair import repair
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
        directory = Path({str(copied)!r})
        for read in (cache.open, store.read_info):
            try:
                read(directory)
            except cache.CacheError as error:
                print(error)
        print(*repair(directory), sep="\\n")
        print(verify.find(directory))"""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    *errors, last = done.stdout.splitlines()
    assert len(errors) == 4
    assert all("index.h5 is damaged" in line or str(path) in line for line in errors)
    assert last == "[]"


def test_a_cut_file_that_claims_a_terabyte_fills_no_disk(copied):
    path = files_of(copied)[0]
    craft(path, "bottlenecks", low_level((5, 1 << 37), prepare=lambda o: o.set_alloc_time(h5d.ALLOC_TIME_EARLY)))
    assert path.stat().st_size > 1 << 39  # mostly a hole
    os.truncate(path, 20000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 31, limits[1]))
    try:
        repair(copied)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert verify.find(copied) == []
    assert len(cache.open(copied)) == 3
