"""A cache as a notebook reads it."""

import ctypes
import mmap
import os
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cache
from benchmarks import synthetic
from cache import hdf5
from tests.numbered_cache import DIMENSION, commit, rows, write_index
from tests.random_cache import NAME

VIEW = [*range(10, 30), 3, 3, 0, *range(40, 43), 1, 2]


@pytest.fixture(scope="module", params=["float16", "mixed"])
def opened(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reader") / NAME
    commit(directory, range(5))
    commit(directory, range(10, 30), "float16" if request.param == "float16" else "float32")
    commit(directory, range(40, 43))
    write_index(directory, VIEW)
    return cache.open(directory)


def expected(view):
    return rows(view, "float32").bottlenecks


@settings(deadline=None)
@given(st.lists(st.integers(0, len(VIEW) - 1), max_size=60), st.sampled_from([1, 40]))
def test_photos_are_gathered_as_one_by_one(opened, photos, times):
    """Repeated 40 times, they are so many that `bottlenecks` looks for runs of adjacent rows."""
    photos = np.array(photos * times, int)
    vectors = opened.bottlenecks(photos)
    assert vectors.dtype == opened.dtype
    np.testing.assert_array_equal(vectors, expected(np.array(VIEW)[photos]).reshape(-1, DIMENSION))


def test_long_runs_of_rows_are_gathered_too(tmp_path):
    directory = tmp_path / "tiny"
    commit(directory, range(1500))
    commit(directory, range(1500, 1700))
    view = [*range(700, 1700), *range(300)]
    write_index(directory, view)
    np.testing.assert_array_equal(cache.open(directory).bottlenecks(np.arange(1300)), rows(view).bottlenecks)


@pytest.mark.parametrize("photo", [len(VIEW), -len(VIEW) - 1])
def test_a_photo_that_is_not_there_is_an_index_error(opened, photo):
    with pytest.raises(IndexError):
        opened.bottlenecks(np.array([0, photo]))


def test_mapped_gives_all_bottlenecks_and_copies_none(opened):
    covered = []
    shards, rows = opened.index.shard_ids, opened.index.shard_rows
    for photos, vectors in opened.mapped():
        before, first = photos.start - 1, photos.start
        assert not first or (shards[first], rows[first]) != (shards[before], rows[before] + 1), "one slice would do"
        np.testing.assert_array_equal(vectors, expected(VIEW[photos]))
        assert not vectors.flags.writeable
        assert any(np.shares_memory(vectors, opened_shard.rows.bottlenecks) for opened_shard in opened.shards)
        covered += range(photos.start, photos.stop)
    assert covered == list(range(len(VIEW)))


def test_a_run_of_rows_ends_with_its_shard(tmp_path, monkeypatch):
    directory = tmp_path / "tiny"
    commit(directory, range(1100))
    commit(directory, range(2000, 3100))
    view = [*range(550), *range(2550, 3100)]  # rows 0 to 549 of one shard and 550 to 1099 of the other
    write_index(directory, view)
    opened = cache.open(directory)
    assert opened.index.shard_rows.tolist() == list(range(1100))
    assert [(photos.start, photos.stop) for photos, _ in opened.mapped()] == [(0, 550), (550, 1100)]
    np.testing.assert_array_equal(opened.bottlenecks(np.arange(1100)), rows(view).bottlenecks)
    needed = []
    monkeypatch.setattr(hdf5, "will_need", needed.append)
    opened.will_need(np.arange(1099, -1, -1))
    np.testing.assert_array_equal(np.concatenate(needed), rows(view).bottlenecks)


def test_a_tf_dataset_is_one_pass_in_order(opened):
    batches = list(opened.to_tf_dataset(batch_size=8))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 4]
    assert batches[0][0].dtype.as_numpy_dtype == opened.dtype
    np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in batches]), expected(VIEW))
    assert np.concatenate([labels for _, labels in batches]).tolist() == opened.label_ids.tolist()


def test_a_shuffled_tf_dataset_has_each_photo_once_in_an_order_drawn_from_its_seed(opened):
    def passes(seed):
        dataset = opened.to_tf_dataset(batch_size=5, shuffle_seed=seed)
        return [np.concatenate([vectors[:, 0] for vectors, _ in dataset]).tolist() for _ in range(2)]

    first, second = passes(1)
    assert sorted(first) == sorted(second) == sorted(VIEW)
    assert first != second
    assert passes(1) == [first, second]
    assert passes(2)[0] != first


def test_a_data_frame_has_a_row_for_each_photo(opened):
    pytest.importorskip("pandas")
    frame = opened.to_pandas()
    assert list(frame.columns) == ["path", "label", "size", "mtime", "shard", "row"]
    assert list(frame["path"]) == list(opened.paths)
    assert list(frame["label"]) == [opened.labels[i] for i in opened.label_ids]
    assert frame["size"].tolist() == VIEW
    assert frame["mtime"].astype("int64").tolist() == VIEW
    names = [opened.index.shards[i] for i in opened.index.shard_ids]
    assert list(frame["shard"]) == names
    assert frame["row"].tolist() == opened.index.shard_rows.tolist()


def in_memory(array):
    """Which pages of a mapped array are in memory, uint8 [pages], from mincore(2)."""
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), pages) == 0, os.strerror(ctypes.get_errno())
    return np.frombuffer(pages, np.uint8) & 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no way to forget a file's pages")
def test_will_need_reads_rows_before_they_are_touched(tmp_path):
    directory = synthetic.write(tmp_path / "cache", 8192)
    opened = cache.open(directory)
    (shard,) = opened.shards
    with open(shard.path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    vectors = shard.rows.bottlenecks
    if in_memory(vectors).mean() > 0.1:
        pytest.skip("the system keeps the file in memory")
    # Rows far from any other, and runs, both of which begin and end anywhere in a page.
    needed = np.array([4096 + 7, *range(1000, 1200), 8191, 4096 + 7, *range(2000, 4000, 51)])
    opened.will_need(needed)
    deadline = time.monotonic() + 30
    while not all(in_memory(vectors[opened.index.shard_rows[photo]]).all() for photo in needed):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert in_memory(vectors).mean() < 0.5, "and no more than that"
    opened.will_need(np.zeros(0, np.int64))
    opened.will_need(np.arange(6000, 6100, 10))  # 25 kB apart: so near that what lies between is read with them
    while not in_memory(vectors[6000:6091]).all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
