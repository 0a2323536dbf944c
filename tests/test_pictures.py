"""The small pictures of the report's mistakes, beside what Pillow makes of the photos."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from cache import thumbnails
from cache.strings import Strings
from tests import small_cache
from train import pictures


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return small_cache.open_with(tmp_path_factory.mktemp("pictures"), counts=(5, 5))


def photo(path, **options):
    """A file of 300 x 200 pixels whose quarters have four colours, so that each way to turn it is another picture."""
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[:100, :150], pixels[:100, 150:], pixels[100:, :150] = (230, 40, 40), (40, 200, 40), (40, 40, 230)
    Image.fromarray(pixels).save(path, **options)


def small(opened, folder):
    """{name: picture} of the files in a folder."""
    names = sorted(os.listdir(folder))
    numbers = np.arange(len(names))
    index = replace(opened.index, image_dir=str(folder), paths=Strings.of(names), sizes=numbers, mtimes=numbers)
    found = pictures.small(replace(opened, index=index), np.arange(len(names)))
    return dict(zip(names, found, strict=True))


def test_pictures_of_photos_are_small_upright_and_of_their_shape(opened, tmp_path):
    for orientation in range(1, 9):
        for endian in "<>":
            exif = Image.Exif()
            exif.endian = endian
            exif[0x0112] = orientation
            photo(tmp_path / f"{orientation}{'le' if endian == '<' else 'be'}.jpg", exif=exif, quality=95)
    photo(tmp_path / "a.png")
    photo(tmp_path / "a.webp", lossless=True)
    photo(tmp_path / "a.gif")
    for name, picture in small(opened, tmp_path).items():
        with Image.open(tmp_path / name) as original:
            expected = ImageOps.exif_transpose(original).convert("RGB")
        found = Image.open(io.BytesIO(picture))
        assert found.format == "JPEG"
        assert max(found.size) == 96, name
        assert found.size == ((96, 64) if expected.width > expected.height else (64, 96)), name
        difference = np.asarray(found, float) - np.asarray(expected.resize(found.size, Image.Resampling.BOX), float)
        assert np.abs(difference).mean() < 8, name


def test_what_is_no_photo_has_no_picture(opened, tmp_path):
    photo(tmp_path / "good.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    found = small(opened, tmp_path)
    assert [name for name, picture in found.items() if picture] == ["good.jpg"]


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (3, 900)])
def test_a_thin_photo_has_a_thin_picture(opened, tmp_path, size):
    Image.new("RGB", size, (40, 200, 40)).save(tmp_path / "thin.png")
    found = Image.open(io.BytesIO(small(opened, tmp_path)["thin.png"]))
    assert found.size == tuple(96 if side == max(size) else 1 for side in size)
    assert np.abs(np.asarray(found, float) - (40, 200, 40)).max() < 8


def test_a_thumbnail_of_the_cache_comes_before_the_photo(opened, monkeypatch):
    rows = np.array([7, 3])
    monkeypatch.setattr(thumbnails, "find", lambda cache, asked: [b"thumbnail of %d" % asked[0], None])
    first, second = pictures.small(opened, rows)
    assert first == b"thumbnail of %d" % rows[0]
    assert second.startswith(b"\xff\xd8\xff")
