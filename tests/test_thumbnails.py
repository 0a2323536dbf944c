"""Thumbnails: made from the photos, by extractions that may be killed, and seen without the photos."""

import io
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

import cache
from cache import columns, command, store, thumbnails, verify
from extract.__main__ import main
from tests.pictures import make_folder, write_picture
from tests.processes import extract_with_nothing_to_do
from tests.test_cache import REPO
from tests.test_repair import flip, place_of
from tests.test_thumbnail_files import files_of


@pytest.fixture
def run(tmp_path, module, capsys):
    """Extracts `tmp_path/photos` into `tmp_path/cache`, with thumbnails; returns what it printed."""

    def extract(*more, status=0):
        flags = ["--image_dir", tmp_path / "photos", "--cache_dir", tmp_path / "cache", "--module", module]
        flags += ["--engine", "tensorflow", "--thumbnails", *more]
        assert command.run(main, [*map(str, flags)]) == status
        return capsys.readouterr()

    return extract


def directory_of(tmp_path):
    [directory] = store.directories(tmp_path / "cache")
    return directory


def shown(tmp_path):
    """path -> the thumbnail's pixels, or None."""
    opened = cache.open(tmp_path / "cache")
    found = thumbnails.find(opened, np.arange(len(opened)))
    return {
        path: None if content is None else np.asarray(Image.open(io.BytesIO(content)))
        for path, content in zip(opened.paths, found, strict=True)
    }


def smooth(width, height):
    """A picture of which every corner has a colour of its own."""
    x, y = np.meshgrid(np.linspace(0, 220, width), np.linspace(0, 220, height))
    return Image.fromarray(np.stack([x, y, 255 - (x + y) / 2], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(700, 420), (90, 200)])
def test_a_photo_is_shown_upright_and_small_in_its_own_proportions(tmp_path, run, orientation, size):
    make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(*size).save(tmp_path / "photos" / "a" / "turned.jpg", exif=exif, quality=95)
    assert "3 thumbnails made" in run().out
    found = shown(tmp_path)["a/turned.jpg"]
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "photos" / "a" / "turned.jpg"))
    scale = 96 / max(upright.size)
    height, width = found.shape[:2]
    assert max(found.shape) == 96
    # libjpeg rounds a fraction of a size up, by one of the more than 96 pixels that it leaves.
    assert abs(width - upright.width * scale) <= 1 and abs(height - upright.height * scale) <= 1
    wanted = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    # What JPEG itself loses of a smooth picture at that quality; one that is turned differs by 70 and more.
    assert np.abs(found - wanted).mean() < 4


@pytest.mark.parametrize(
    ("size", "wanted"), [((1000, 3), (96, 1)), ((40, 30), (40, 30)), ((1, 1), (1, 1)), ((97, 97), (96, 96))]
)
def test_odd_sizes_and_small_pictures(tmp_path, run, size, wanted):
    make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    smooth(*size).save(tmp_path / "photos" / "a" / "odd.png")
    run()
    height, width, _ = shown(tmp_path)["a/odd.png"].shape
    assert (width, height) == wanted


def test_fine_patterns_become_their_mean(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    stripes = np.zeros((480, 480, 3), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "photos" / "a" / "stripes.png")
    run()
    # The mean of 5 pixels of 0 and 200 each, weighted by how near they are.
    assert np.abs(shown(tmp_path)["a/stripes.png"].astype(int) - 100).max() < 20


def test_each_photo_has_its_own_and_only_what_is_new_is_made(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 5, "b": 70})
    (photos / "a" / "broken.jpg").write_text("no image")
    assert "75 thumbnails made" in run().out
    for path, found in shown(tmp_path).items():
        picture = np.asarray(Image.open(photos / path)).astype(int)
        assert found.shape == picture.shape
        # Noise loses much in a JPEG, but two pictures of it are 85 apart.
        assert np.abs(found - picture).mean() < 60, path
    write_picture(photos / "a" / "new.png", 100)
    write_picture(photos / "a" / "000.png", 101)  # edited
    (photos / "a" / "001.png").unlink()
    before = shown(tmp_path)
    assert "2 thumbnails made" in run().out
    after = shown(tmp_path)
    assert None not in [type(found) for found in after.values()] and "a/001.png" not in after
    assert not np.array_equal(before["a/000.png"], after["a/000.png"])
    np.testing.assert_array_equal(before["a/002.png"], after["a/002.png"])
    shutil.rmtree(photos)
    assert all(found is not None for found in shown(tmp_path).values())


def test_without_the_flag_there_are_none(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    assert command.run(main, [*map(str, flags)]) == 0
    assert list(shown(tmp_path).values()) == [None] * 4
    assert not (directory_of(tmp_path) / store.THUMBNAILS).exists()


def test_they_can_be_added_later_and_a_run_with_nothing_to_do_imports_no_tensorflow(tmp_path, run, module):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    flags = ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module]
    assert command.run(main, flags) == 0
    told = run()
    assert "0 computed, 4 reused" in told.out and "4 thumbnails made" in told.out
    assert "0 thumbnails made" in extract_with_nothing_to_do(tmp_path / "cache", [*flags, "--thumbnails"])


def test_what_has_become_unreadable_is_passed_over(tmp_path, module, run):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 2})
    flags = ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module]
    assert command.run(main, flags) == 0
    for name, content in (("000.png", b""), ("002.png", b"no picture")):
        status = (photos / "a" / name).stat()
        (photos / "a" / name).write_bytes(content.ljust(status.st_size, b"\0"))
        os.utime(photos / "a" / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "3 thumbnails made" in run().out
    assert [path for path, found in shown(tmp_path).items() if found is None] == ["a/000.png", "a/002.png"]


def test_a_kill_repeats_only_what_was_not_committed(tmp_path, run, module):
    photos = make_folder(tmp_path / "photos", {"a": 20, "b": 3})
    script = f"""
import os, signal, sys
from cache import command, thumbnails, writer
from extract import thumbnails as making
from extract.__main__ import main
writer.COMMIT_SECONDS, making._AT_ONCE = 0, 4
write, written = thumbnails.write, []
def write_three(*arguments):
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(write(*arguments))
thumbnails.write = write_three
command.run(main, ["--image_dir", {str(photos)!r}, "--cache_dir", {str(tmp_path / "cache")!r}, "--module", {module!r},
                   "--thumbnails"])"""
    assert subprocess.run([sys.executable, "-c", script], cwd=REPO).returncode == -signal.SIGKILL
    before = shown(tmp_path)
    assert sum(found is not None for found in before.values()) == 12
    assert "11 thumbnails made" in run().out
    assert all(found is not None for found in shown(tmp_path).values())


def test_what_a_killed_run_left_half_written_is_swept_by_the_next(tmp_path, run, module):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    flags = ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module]
    assert command.run(main, flags) == 0
    left = directory_of(tmp_path) / store.THUMBNAILS / f".some.h5{columns.TEMPORARY}"
    left.parent.mkdir()
    left.write_text("half")
    os.utime(left, (0, 0))
    assert "4 thumbnails made" in run().out
    assert not left.exists()


def test_a_place_that_cannot_be_written_costs_no_bottleneck(tmp_path, run, module):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    flags = ["--image_dir", str(photos), "--cache_dir", str(tmp_path / "cache"), "--module", module]
    assert command.run(main, flags) == 0
    (directory_of(tmp_path) / store.THUMBNAILS).write_text("in the way")
    [line] = [line for line in run(status=2).err.splitlines() if line.startswith("error")]
    assert f"cannot write {directory_of(tmp_path)}/thumbnails: File exists" in line
    assert len(cache.open(tmp_path / "cache")) == 4


def test_a_repaired_cache_gets_what_was_lost_again(tmp_path, run):
    make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    run()
    before = shown(tmp_path)
    directory = directory_of(tmp_path)
    [path] = files_of(directory)
    flip(path, place_of(path, "thumbnails", 100))
    verify.repair(directory)
    assert "1 thumbnails made" in run().out
    for image, found in shown(tmp_path).items():
        np.testing.assert_array_equal(found, before[image])
