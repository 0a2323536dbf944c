"""Thumbnails: made from the photos, by extractions that may be killed, and shown without the photos."""

import io
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

import cache
from cache import console, files, layout, repair, thumbnails, writer
from extract import thumbnails as making
from extract.__main__ import main
from tests import processes
from tests.damage import flip, place_of
from tests.pictures import encoded, make_folder, smooth, write_picture


@pytest.fixture
def flags(tmp_path, module):
    places = ["--image_dir", tmp_path / "photos", "--cache_dir", tmp_path / "cache", "--module", module]
    return [*map(str, places), "--engine", "tensorflow"]


@pytest.fixture
def run(flags, loaded_once, capsys):
    """Extracts `tmp_path/photos` into `tmp_path/cache`, with thumbnails; returns what it printed."""

    def extract(status=0):
        assert console.run(main, [*flags, "--thumbnails"]) == status
        return capsys.readouterr()

    return extract


def shown(tmp_path):
    """path -> the thumbnail's pixels, or None."""
    opened = cache.open(tmp_path / "cache")
    found = thumbnails.find(opened, np.arange(len(opened)))
    return {
        path: None if content is None else pixels_of(content) for path, content in zip(opened.paths, found, strict=True)
    }


def pixels_of(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def thumbnail(content):
    """The pixels of the thumbnail of an image file."""
    return pixels_of(making.thumbnail(tf.constant(content)).numpy())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(700, 420), (90, 200)])
def test_a_thumbnail_is_upright_and_small_and_keeps_the_aspect_ratio(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = encoded(smooth(*size), "JPEG", exif=exif, quality=95)
    made = thumbnail(photo)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(photo)))
    scale = 96 / max(upright.size)
    height, width = made.shape[:2]
    assert max(made.shape) == 96
    # libjpeg rounds a fraction of a size up, by one of the more than 96 pixels that it leaves.
    assert abs(width - upright.width * scale) <= 1 and abs(height - upright.height * scale) <= 1
    wanted = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    # What JPEG itself loses of a smooth picture at that quality; one that is turned differs by 70 and more.
    assert np.abs(made - wanted).mean() < 4


@pytest.mark.parametrize(
    ("size", "wanted"), [((1000, 3), (96, 1)), ((40, 30), (40, 30)), ((1, 1), (1, 1)), ((97, 97), (96, 96))]
)
def test_odd_sizes_and_small_pictures(size, wanted):
    height, width, _ = thumbnail(encoded(smooth(*size), "PNG")).shape
    assert (width, height) == wanted


def test_fine_patterns_become_their_mean():
    stripes = np.zeros((480, 480, 3), np.uint8)
    stripes[:, ::2] = 200
    made = thumbnail(encoded(Image.fromarray(stripes), "PNG"))
    # The mean of 5 pixels of 0 and 200 each, weighted by how near they are.
    assert np.abs(made.astype(int) - 100).max() < 20


def test_each_photo_has_its_own_and_only_new_ones_are_made(tmp_path, cache_dir, run):
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 69})
    (photos / "a" / "broken.jpg").write_text("no image")
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth(40, 30).save(photos / "b" / "turned.jpg", exif=exif, quality=95)
    assert "75 thumbnails made" in run().out
    for path, made in shown(tmp_path).items():
        picture = np.asarray(ImageOps.exif_transpose(Image.open(photos / path)).convert("RGB")).astype(int)
        assert made.shape == picture.shape
        # Noise loses much in a JPEG, but two pictures of it are 85 apart.
        assert np.abs(made - picture).mean() < 60, path
    write_picture(photos / "a" / "new.png", 100)
    write_picture(photos / "a" / "000.png", 101)  # edited
    (photos / "a" / "001.png").unlink()
    before = shown(tmp_path)
    assert "2 thumbnails made" in run().out
    after = shown(tmp_path)
    assert all(made is not None for made in after.values()) and "a/001.png" not in after
    assert not np.array_equal(before["a/000.png"], after["a/000.png"])
    np.testing.assert_array_equal(before["a/002.png"], after["a/002.png"])
    shutil.rmtree(photos)
    assert all(made is not None for made in shown(tmp_path).values())


def test_without_the_flag_there_are_none(tmp_path, cache_dir, flags, loaded_once):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    assert console.run(main, flags) == 0
    assert list(shown(tmp_path).values()) == [None] * 4
    assert not list(cache_dir.rglob(layout.THUMBNAILS))


def test_they_can_be_added_later_and_a_run_with_nothing_to_do_imports_no_tensorflow(tmp_path, extracted, flags, run):
    output = run().out
    assert "0 computed, 6 reused" in output and "6 thumbnails made" in output
    again = processes.extract_with_nothing_to_do(tmp_path / "cache", [*flags, "--thumbnails"])
    assert "0 thumbnails made" in again


def test_photos_that_have_become_unreadable_are_skipped(tmp_path, extracted):
    for name, content in (("000.png", b""), ("002.png", b"no picture")):
        (tmp_path / "photos" / "a" / name).write_bytes(content)
    assert making.make(extracted, cache.open(extracted).index, np.arange(6), threads=2) == 4
    assert [path for path, made in shown(tmp_path).items() if made is None] == ["a/000.png", "a/002.png"]


def make_two_files(flags):
    """Dies before it commits the third file of two thumbnails."""
    writer.COMMIT_SECONDS, making._CHUNK = 0, 2
    write, written = thumbnails.write, []

    def write_two(*arguments):
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(write(*arguments))

    thumbnails.write = write_two
    return processes.command("extract", flags)


def test_a_kill_repeats_only_what_was_not_committed(tmp_path, extracted, flags, run):
    done = processes.run(make_two_files, [*flags, "--thumbnails"])
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sum(made is not None for made in shown(tmp_path).values()) == 4
    assert "2 thumbnails made" in run().out
    assert all(made is not None for made in shown(tmp_path).values())


def test_what_a_killed_run_left_half_written_is_swept_by_the_next(extracted, run):
    left = extracted / layout.THUMBNAILS / f".some.h5{files.TEMPORARY}"
    left.parent.mkdir()
    left.write_text("half")
    os.utime(left, (0, 0))
    assert "6 thumbnails made" in run().out
    assert not left.exists()


def test_a_folder_that_cannot_be_written_costs_no_bottleneck(tmp_path, extracted, run):
    (extracted / layout.THUMBNAILS).write_text("in the way")
    [line] = [line for line in run(status=2).err.splitlines() if line.startswith("error")]
    assert f"cannot write {extracted}/thumbnails: File exists" in line
    assert len(cache.open(tmp_path / "cache")) == 6


def test_a_repaired_cache_gets_what_was_lost_again(tmp_path, extracted, run):
    run()
    before = shown(tmp_path)
    [name] = thumbnails.names(extracted)
    path = extracted / layout.THUMBNAILS / name
    flip(path, place_of(path, "thumbnails", 100))
    repair.repair(extracted)
    assert "1 thumbnails made" in run().out
    for photo, made in shown(tmp_path).items():
        np.testing.assert_array_equal(made, before[photo])
