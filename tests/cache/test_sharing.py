"""A cache that several use: users with locks, processes with copies, backbones of which one is damaged."""

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import cache
from cache import console, files, layout
from cache.__main__ import main
from cache.errors import UserError
from tests import processes
from tests.random_cache import BACKBONE, NAME, fill, rows

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
WITHOUT = 3  # the exit status of a process that goes on without the lock


@pytest.fixture
def everybodys():
    """A folder that other users reach, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def lock_as(user, folder):
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    os.umask(0o077)
    try:
        with files.locked(folder, shared=True) as has_lock:
            return 0 if has_lock else WITHOUT
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


@AS_ROOT
@pytest.mark.parametrize(("mode", "shared"), [(0o777, 0o666), (0o775, 0o660), (0o755, 0o600)])
def test_the_lock_is_shared_by_those_who_may_write_the_folder(everybodys, mode, shared):
    place = everybodys / "bottlenecks"
    place.mkdir()
    os.chown(place, 1001, 2000)
    place.chmod(mode)
    assert processes.run(lock_as, 1001, place).returncode == 0
    assert stat.S_IMODE((place / files.LOCK).stat().st_mode) == shared
    # Who may not write the folder needs no lock, and goes on without it.
    assert processes.run(lock_as, 1002, place).returncode == (0 if mode == 0o777 else WITHOUT)


@AS_ROOT
def test_a_lock_of_another_user_that_may_not_be_used_is_refused_with_a_remedy(everybodys):
    (everybodys / files.LOCK).touch(0o644)  # as earlier versions made it
    (everybodys / files.LOCK).chmod(0o644)
    everybodys.chmod(0o777)
    done = processes.run(lock_as, 1002, everybodys)
    assert done.returncode == 2
    lock = everybodys / files.LOCK
    remedy = f"its owner can share it with `chmod a+rw {lock}`"
    assert done.stderr == f"error: cannot lock {everybodys}: Permission denied; {remedy}\n"
    lock.chmod(0o666)
    assert processes.run(lock_as, 1002, everybodys).returncode == 0


def bottlenecks(opened):
    return opened.bottlenecks(np.arange(len(opened)))


def test_a_copy_of_an_opened_cache_opens_anew_also_in_another_process(tmp_path):
    """What is copied is not the memory between the maps of its shards, which is not ours to read."""
    fill(tmp_path / NAME, [rows(5, 0), rows(4, 5)])
    opened = cache.open(tmp_path)
    assert len(bottlenecks(opened)) == 9
    shutil.rmtree(tmp_path / NAME)
    fill(tmp_path / NAME, [rows(3, 20)])
    expected = bottlenecks(cache.open(tmp_path))
    for other in (copy.deepcopy(opened), copy.copy(opened), pickle.loads(pickle.dumps(opened))):
        np.testing.assert_array_equal(bottlenecks(other), expected)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply(bottlenecks, [opened]), expected)
    assert len(bottlenecks(opened)) == 9


def test_lost_and_found_at_the_top_of_a_file_system_is_passed_over(tmp_path):
    fill(tmp_path / NAME, [rows(5, 0)])
    shutil.copytree(tmp_path / NAME / layout.SHARDS, tmp_path / "lost+found" / layout.SHARDS)
    assert layout.directories(tmp_path) == [tmp_path / NAME]
    assert len(cache.open(tmp_path)) == 5


def test_one_damaged_backbone_leaves_the_others_to_be_used(tmp_path, capsys):
    other = "other-fedcba9876543210"
    fill(tmp_path / NAME, [rows(5, 0)])
    fill(tmp_path / other, [rows(4, 0)])
    for damaged in (tmp_path / other).rglob("*.h5"):
        damaged.write_bytes(b"no HDF5 file")
    assert len(cache.open(tmp_path, BACKBONE.module)) == 5
    with pytest.raises(cache.CacheError, match=other):
        cache.open(tmp_path, "a module that the damaged one may be")
    assert console.run(main, ["info", "--json", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert [one["directory"] for one in json.loads(printed.out)] == [str(tmp_path / NAME)]
    [error] = printed.err.splitlines()
    assert error.startswith("error: ") and other in error
    assert console.run(main, ["verify", str(tmp_path)]) == 2
    assert f"{tmp_path / NAME}: sound" in capsys.readouterr().out
