"""The photos behind a cache: what is read of them, and what is not."""

import os
from dataclasses import replace

import numpy as np
import pytest

from cache.errors import UserError
from cache.strings import Strings
from train.data import photos


@pytest.fixture
def in_folder(opened, tmp_path):
    """Makes `opened` a cache of the files of these names below tmp_path."""

    def of_names(*names):
        numbers = np.arange(len(names))
        index = replace(opened.index, image_dir=str(tmp_path), paths=Strings.of(names), sizes=numbers, mtimes=numbers)
        return replace(opened, index=index)

    return of_names


def test_the_content_of_a_photo_is_read(in_folder, tmp_path):
    (tmp_path / "roses").mkdir()
    (tmp_path / "roses" / "a.jpg").write_bytes(b"content")
    (tmp_path / "roses" / "link.jpg").symlink_to("a.jpg")
    cache = in_folder("roses/a.jpg", "roses/link.jpg")
    assert [photos.content(cache, row) for row in (0, 1)] == [b"content", b"content"]


def test_what_is_no_readable_file_is_none(in_folder, tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken link.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    names = ["gone.jpg", "folder.jpg", "broken link.jpg", "pipe.jpg", "null\0.jpg"]
    cache = in_folder(*names)
    assert [photos.content(cache, row) for row in range(len(names))] == [None] * len(names)
    assert list(photos.read(cache, range(len(names)))) == []


def test_the_calibration_sample_is_drawn_by_the_seed(opened):
    training = np.arange(0, 150, 2)
    first, again, other = (photos.calibration_sample(opened, training, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == training.tolist()  # fewer than the most: all of them
    sample = photos.calibration_sample(opened, np.arange(150), 0)
    assert len(set(sample.tolist())) == photos.CALIBRATION == 100


def test_without_any_picture_there_is_no_calibration_sample(in_folder):
    with pytest.raises(UserError, match=r"int8 is calibrated on training photos, but .* cannot be reached"):
        photos.calibration_sample(in_folder("gone.jpg"), np.array([0]), 0)
