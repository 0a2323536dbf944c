"""HDF5 files of plain arrays: where the arrays lie, how they are written, how many may be open."""

import errno
import mmap
import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from cache import hdf5, layout, shard, table
from cache.table import INT64
from tests.processes import REPO
from tests.random_cache import COUNT, DIMENSION, fill, rows, shard_paths


def test_arrays_are_page_aligned_maps_of_the_file(tmp_path):
    fill(tmp_path, [rows(COUNT, 2)])
    [path] = shard_paths(tmp_path)
    opened = shard.read(path)
    base = opened.rows.bottlenecks
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    with h5py.File(path) as file:
        for name, dataset in file.items():
            assert dataset.chunks is None
            assert dataset.nbytes < 8192 or dataset.id.get_offset() % 8192 == 0, name
        place = file["bottlenecks"].id.get_offset()
    mapped = np.memmap(path, np.float16, "r", place, (COUNT, DIMENSION))
    np.testing.assert_array_equal(mapped, rows(COUNT, 2).bottlenecks)
    with pytest.raises(ValueError, match="read-only"):
        opened.rows.bottlenecks[0, 0] = 1


@pytest.mark.parametrize("largest", [1000, 1 << 30])
def test_a_file_that_cannot_be_mapped_is_read(tmp_path, monkeypatch, largest):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    fill(tmp_path, [rows(COUNT, 2)])
    [path] = shard_paths(tmp_path)
    monkeypatch.setattr(np, "memmap", refuse)
    monkeypatch.setattr(hdf5, "_LARGEST", largest)
    opened = shard.read(path)
    np.testing.assert_array_equal(opened.rows.bottlenecks, rows(COUNT, 2).bottlenecks)
    assert list(opened.rows.paths) == list(rows(COUNT, 2).paths)
    assert not len(opened.table.damaged())
    hdf5.will_need(opened.rows.bottlenecks)
    with pytest.raises(ValueError, match="read-only"):
        opened.rows.bottlenecks[0, 0] = 1


@pytest.mark.parametrize("largest", [1000, 1 << 30])
def test_what_is_larger_than_the_system_takes_at_once_is_written_in_pieces(tmp_path, monkeypatch, largest):
    monkeypatch.setattr(hdf5, "_LARGEST", largest)
    pwritev, written = hdf5.os.pwritev, []

    def partly(descriptor, buffers, offset):
        """As much as a system takes that was interrupted amid a buffer."""
        if sum(map(len, buffers)) > 3000:
            buffers = [memoryview(buffers[0])[:700]]
        written.append(pwritev(descriptor, buffers, offset))
        return written[-1]

    monkeypatch.setattr(hdf5.os, "pwritev", partly)
    schemas, numbers = {"rows": {"numbers": INT64}}, np.arange(5000)
    parts = [{"numbers": numbers[:9]}, {"numbers": numbers[9:]}]
    table.write(tmp_path / "file.h5", "test", {}, schemas, {"rows": parts})
    assert len(written) > 10
    _, tables = table.read(tmp_path / "file.h5", "test", schemas)
    assert np.array_equal(tables["rows"].columns["numbers"], numbers)
    assert not len(tables["rows"].damaged())


# --- open files ------------------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch):
    """Limits on open files that a test sets, in place of this process's, and a list of those that were requested."""
    limits = SimpleNamespace(soft=1024, hard=4096, requests=[])

    def setrlimit(_, values):
        limits.requests.append(values)
        limits.soft, limits.hard = values

    monkeypatch.setattr(hdf5.os, "listdir", lambda _: ["0", "1", "2"])  # what the process has open
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limits.soft, limits.hard))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return limits


@pytest.mark.parametrize("count", [0, 1, 700])
def test_few_shards_change_no_limit(limits, count):
    hdf5.allow_files(count)
    assert limits.requests == []


@pytest.mark.parametrize(
    ("hard", "raised"), [(4096, 2259), (2000, 2000), (resource.RLIM_INFINITY, 2259)], ids=["room", "little", "no limit"]
)
def test_many_shards_raise_the_limit_as_far_as_it_may_be(limits, hard, raised):
    limits.hard = hard
    hdf5.allow_files(2000)
    assert limits.requests == [(raised, hard)]
    hdf5.allow_files(1500)
    assert len(limits.requests) == 1


def test_a_limit_that_is_high_enough_or_none_stays(limits):
    limits.soft = 3000
    hdf5.allow_files(2000)
    limits.soft = resource.RLIM_INFINITY
    hdf5.allow_files(10**9)
    assert limits.requests == []


def test_a_limit_that_cannot_be_raised_is_left_to_the_opening_to_report(limits, monkeypatch):
    def refuse(*_):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    hdf5.allow_files(2000)


SCRIPT = """
import resource, sys
import numpy as np
import cache
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for limit in (1024, 40):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    opened = cache.open(sys.argv[1])
    opened.bottlenecks(np.arange(len(opened)))
    del opened
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_opening_a_cache_changes_the_limit_only_where_it_has_to(tmp_path):
    """50 shards, each of which is an open file, beside the 256 files that the process may open later."""
    fill(tmp_path, [rows(1, seed) for seed in range(50)])
    assert len(layout.shard_names(tmp_path)) == 50
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    high, low = map(int, done.stdout.split())
    assert high == 1024
    assert 50 + 256 < low < 50 + 256 + 20  # the standard streams are open, too
