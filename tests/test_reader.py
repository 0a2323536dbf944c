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
from cache import columns
from tests.test_compact import DIMENSION, commit, index_of, rows

VIEW = [*range(10, 30), 3, 3, 0, *range(40, 43), 1, 2]


@pytest.fixture(scope="module", params=["float16", "mixed"])
def opened(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reader") / "tiny-0123456789abcdef"
    commit(directory, range(5))
    commit(directory, range(10, 30), "float16" if request.param == "float16" else "float32")
    commit(directory, range(40, 43))
    index_of(directory, VIEW)
    return cache.open(directory)


def expected(view):
    return rows(view, "float32").bottlenecks


@settings(deadline=None)
@given(st.lists(st.integers(0, len(VIEW) - 1), max_size=60), st.sampled_from([1, 40]))
def test_any_images_are_gathered_as_one_by_one(opened, images, times):
    """Repeated, they are many enough to be looked through for runs."""
    images = np.array(images * times, int)
    found = opened.bottlenecks(images)
    assert found.dtype == opened.dtype
    np.testing.assert_array_equal(found, expected(np.array(VIEW)[images]).reshape(-1, DIMENSION))


def test_runs_of_many_rows_are_copied_as_they_are(tmp_path):
    directory = tmp_path / "tiny"
    commit(directory, range(1500))
    commit(directory, range(1500, 1700))
    view = [*range(700, 1700), *range(300)]
    index_of(directory, view)
    np.testing.assert_array_equal(cache.open(directory).bottlenecks(np.arange(1300)), rows(view).bottlenecks)


@pytest.mark.parametrize("image", [len(VIEW), -len(VIEW) - 1])
def test_an_image_that_is_not_there_is_an_index_error(opened, image):
    with pytest.raises(IndexError):
        opened.bottlenecks(np.array([0, image]))


def test_mapped_gives_all_bottlenecks_and_copies_none(opened):
    covered = []
    shards, rows = opened.index.shard_ids, opened.index.shard_rows
    for images, vectors in opened.mapped():
        before, first = images.start - 1, images.start
        assert not first or (shards[first], rows[first]) != (shards[before], rows[before] + 1), "one slice would do"
        np.testing.assert_array_equal(vectors, expected(VIEW[images]))
        assert not vectors.flags.writeable
        assert any(np.shares_memory(vectors, opened_shard.rows.bottlenecks) for opened_shard in opened.shards)
        covered += range(images.start, images.stop)
    assert covered == list(range(len(VIEW)))


def test_rows_of_two_shards_are_no_run_though_their_numbers_are(tmp_path, monkeypatch):
    directory = tmp_path / "tiny"
    commit(directory, range(1100))
    commit(directory, range(2000, 3100))
    view = [*range(550), *range(2550, 3100)]  # rows 0 to 1099, the second half in the other shard
    index_of(directory, view)
    opened = cache.open(directory)
    assert opened.index.shard_rows.tolist() == list(range(1100))
    assert [(images.start, images.stop) for images, _ in opened.mapped()] == [(0, 550), (550, 1100)]
    np.testing.assert_array_equal(opened.bottlenecks(np.arange(1100)), rows(view).bottlenecks)
    asked = []
    monkeypatch.setattr(columns, "will_need", asked.append)
    opened.will_need(np.arange(1099, -1, -1))
    np.testing.assert_array_equal(np.concatenate(asked), rows(view).bottlenecks)


def test_a_tf_dataset_is_one_pass_in_order(opened):
    batches = list(opened.to_tf_dataset(batch_size=8))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 4]
    assert batches[0][0].dtype.as_numpy_dtype == opened.dtype
    np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in batches]), expected(VIEW))
    assert np.concatenate([labels for _, labels in batches]).tolist() == opened.label_ids.tolist()


def test_a_shuffled_tf_dataset_has_every_image_once_in_an_order_that_its_seed_repeats(opened):
    def passes(seed):
        dataset = opened.to_tf_dataset(batch_size=5, shuffle_seed=seed)
        return [np.concatenate([vectors[:, 0] for vectors, _ in dataset]).tolist() for _ in range(2)]

    first, second = passes(1)
    assert sorted(first) == sorted(second) == sorted(VIEW)
    assert first != second
    assert passes(1) == [first, second]
    assert passes(2)[0] != first


def test_a_data_frame_has_a_row_for_each_image(opened):
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
    """Which pages of a mapped array the system holds, as mincore(2) tells."""
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    length = array.ctypes.data + array.nbytes - start
    pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(length), pages) == 0, os.strerror(ctypes.get_errno())
    return np.frombuffer(pages, np.uint8) & 1


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no way to forget a file's pages")
def test_what_will_be_needed_is_read_before_it_is_touched(tmp_path):
    directory = synthetic.write(tmp_path / "cache", 8192)
    opened = cache.open(directory)
    (shard,) = opened.shards
    with open(shard.path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    vectors = shard.rows.bottlenecks
    if in_memory(vectors).mean() > 0.1:
        pytest.skip("the system keeps the file in memory")
    # Those far apart begin and end anywhere in a page.
    needed = np.array([4096 + 7, *range(1000, 1200), 8191, 4096 + 7, *range(2000, 4000, 51)])
    opened.will_need(needed)
    deadline = time.monotonic() + 30
    while not all(in_memory(vectors[opened.index.shard_rows[image]]).all() for image in needed):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert in_memory(vectors).mean() < 0.5, "and no more than that"
    opened.will_need(np.zeros(0, np.int64))
    opened.will_need(np.arange(6000, 6100, 10))  # 25 kB apart, as little as what lies between is read with them
    while not in_memory(vectors[6000:6091]).all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
