"""From a cache to blocks: whatever the sizes, each image once, with its own bottleneck and class."""

import numpy as np
import pytest

import cache
from tests import small_cache
from tests.problems import vectors_of
from train.data import batches, schedule
from train.data.batches import Images


@pytest.mark.parametrize("resident_bytes", [0, 1 << 30])
def test_blocks_hold_the_bottlenecks_of_the_drawn_images(opened, monkeypatch, resident_bytes):
    monkeypatch.setattr(batches, "RESIDENT_BYTES", resident_bytes)
    images = Images(opened, np.arange(1, len(opened), 2))
    rows, _, _ = images.by_class
    drawn = [schedule.draw(images, np.random.default_rng(seed), (length, 5)) for seed, length in enumerate((3, 3, 1))]
    for places, block in zip(drawn, batches.blocks(images, drawn, "/CPU:0"), strict=True):
        expected, label_ids = vectors_of(Images(opened, rows[places].ravel()))
        assert block.places.shape == block.label_ids.shape == places.shape
        np.testing.assert_array_equal(block.bottlenecks.numpy()[block.places].reshape(-1, 16), expected)
        np.testing.assert_array_equal(block.label_ids.ravel(), label_ids)


def test_passes_hold_each_image_once_time_after_time(opened, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 7 * small_cache.DIMENSION * 4)
    images = Images(opened, np.arange(0, 100, 3))
    expected, label_ids = vectors_of(images)
    for resident_bytes in (0, 1 << 30):
        monkeypatch.setattr(batches, "RESIDENT_BYTES", resident_bytes)
        for _, blocks in zip(range(2), batches.passes(images, "/CPU:0"), strict=False):
            found = list(blocks)
            assert [len(ids) for _, ids in found] == [7, 7, 7, 7, 6]
            np.testing.assert_array_equal(np.concatenate([vectors for vectors, _ in found]), expected)
            np.testing.assert_array_equal(np.concatenate([ids for _, ids in found]), label_ids)


def test_sequential_blocks_are_bounded_and_hold_each_image_once(opened, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", 7 * small_cache.DIMENSION * 4)
    images = Images(opened, np.arange(0, 100, 3))
    blocks = list(batches.sequential(images))
    assert [len(label_ids) for _, label_ids in blocks] == [7, 7, 7, 7, 6]
    expected, label_ids = vectors_of(images)
    np.testing.assert_array_equal(np.concatenate([bottlenecks for bottlenecks, _ in blocks]), expected)
    np.testing.assert_array_equal(np.concatenate([ids for _, ids in blocks]), label_ids)


def test_an_error_while_gathering_ahead_reaches_the_caller(opened, monkeypatch):
    monkeypatch.setattr(batches, "BLOCK_BYTES", small_cache.DIMENSION * 4)
    broken = Images(opened, np.array([0, 10**6]))  # a row that the index does not have
    with pytest.raises(IndexError):
        list(batches.sequential(broken))
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    with pytest.raises(IndexError):
        list(batches.blocks(broken, [np.zeros((1, 4), int), np.ones((1, 4), int)], "/CPU:0"))


def test_augmentations_train_beside_the_plain_photos(tmp_path):
    plain = small_cache.open_with(tmp_path / "plain", counts=(4, 3))
    others = [small_cache.open_with(tmp_path / f"{n}", counts=(4, 3), noise=50 + n) for n in (1, 2)]
    images = Images(plain, np.array([1, 2, 5])).augmented(others)
    assert images.rows.tolist() == [1, 2, 5, 8, 9, 12, 15, 16, 19]
    assert images.label_ids.tolist() == [0, 0, 1] * 3
    order = np.array([15, 2, 8])
    expected = np.concatenate([others[1].bottlenecks([1]), plain.bottlenecks([2]), others[0].bottlenecks([1])])
    np.testing.assert_array_equal(images.bottlenecks(order), expected)
    assert np.ptp(expected, axis=0).all()
    blocks = list(batches.sequential(images))
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in blocks]), images.label_ids)


def test_a_photo_that_an_augmentation_lacks_trains_without_it(tmp_path):
    plain = small_cache.open_with(tmp_path / "plain", counts=(4, 3))
    fewer = small_cache.open_with(tmp_path / "fewer", counts=(2, 3))
    images = Images(plain, np.arange(7)).augmented([fewer])
    # Sizes and times are made up from each path's place in its shard: only where they agree, it is the same file.
    found = images.rows[7:] - 7
    places = cache.reader.places(fewer, plain)
    assert found.tolist() == np.flatnonzero(places >= 0).tolist()
    np.testing.assert_array_equal(images.bottlenecks(found + 7), fewer.bottlenecks(places[found]))
