"""A cache as a notebook reads it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cache
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
    for images, vectors in opened.mapped():
        np.testing.assert_array_equal(vectors, expected(VIEW[images]))
        assert not vectors.flags.writeable
        assert any(np.shares_memory(vectors, opened_shard.rows.bottlenecks) for opened_shard in opened.shards)
        covered += range(images.start, images.stop)
    assert covered == list(range(len(VIEW)))


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
