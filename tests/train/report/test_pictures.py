"""The small pictures of the report's mistakes: thumbnails of the cache, pictures by its backbone, or none."""

import io
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cache
from cache import layout, thumbnails
from cache.strings import Strings
from tests import small_cache
from tests.train.report.backbone import set_thumbnail
from train.report import pictures

COLOUR = (40, 200, 40)


def green(content):
    """A picture of 2 x 3 green pixels whatever the photo shows, if it is one."""
    pixels = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.io.encode_jpeg(tf.zeros_like(pixels)[:1, :1] + tf.tile(tf.constant([[COLOUR]], tf.uint8), [3, 2, 1]))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    """A cache whose photos are there, without thumbnails, of a backbone that makes all of them green."""
    return set_thumbnail(small_cache.make(tmp_path_factory.mktemp("pictures"), counts=(5, 5)), green)


@pytest.fixture(scope="module")
def opened(cache_dir):
    return cache.open(cache_dir)


@pytest.fixture
def loads(monkeypatch):
    """The caches whose backbones are loaded."""
    load, loaded = pictures.load_backbone, []
    monkeypatch.setattr(pictures, "load_backbone", lambda opened: loaded.append(opened) or load(opened))
    return loaded


def set_thumbnails(monkeypatch, jpegs):
    """Lets the cache hold the thumbnails {row: bytes}, and no others."""
    monkeypatch.setattr(thumbnails, "find", lambda opened, rows: [jpegs.get(row) for row in rows.tolist()])


def small(opened, folder):
    """{name: picture} of the files in a folder."""
    names = sorted(os.listdir(folder))
    numbers = np.arange(len(names))
    index = replace(opened.index, image_dir=str(folder), paths=Strings.of(names), sizes=numbers, mtimes=numbers)
    return dict(zip(names, pictures.small(replace(opened, index=index), np.arange(len(names))), strict=True))


def assert_green(picture):
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("JPEG", (2, 3))
        np.testing.assert_allclose(np.asarray(image, float), np.full((3, 2, 3), COLOUR), atol=8)


def test_the_backbone_makes_the_pictures_and_is_loaded_once(opened, loads):
    three = pictures.small(opened, np.array([7, 0, 3]))
    assert len(three) == 3
    for picture in three:
        assert_green(picture)
    assert len(loads) == 1


def test_thumbnails_of_the_cache_come_before_the_photos(opened, loads, monkeypatch):
    set_thumbnails(monkeypatch, {7: b"thumbnail of 7", 2: b"thumbnail of 2"})
    first, second, third = pictures.small(opened, np.array([7, 3, 2]))
    assert (first, third) == (b"thumbnail of 7", b"thumbnail of 2")
    assert_green(second)
    assert len(loads) == 1


def test_a_backbone_that_is_not_needed_is_not_loaded(opened, loads, monkeypatch, tmp_path):
    elsewhere = replace(opened, index=replace(opened.index, image_dir=str(tmp_path / "gone")))
    assert pictures.small(elsewhere, np.array([0, 1])) == [None, None]
    set_thumbnails(monkeypatch, {0: b"a", 1: b"b"})
    assert pictures.small(opened, np.array([0, 1])) == [b"a", b"b"]
    assert pictures.small(opened, np.array([], np.int64)) == []
    assert loads == []


def test_a_backbone_of_an_earlier_version_makes_no_pictures(cache_dir, loads, monkeypatch, tmp_path):
    [directory] = layout.directories(cache_dir)
    old = shutil.copytree(directory, tmp_path / "cache" / directory.name).parent
    opened = cache.open(set_thumbnail(old, None))
    set_thumbnails(monkeypatch, {1: b"thumbnail"})
    assert pictures.small(opened, np.array([0, 1, 2])) == [None, b"thumbnail", None]
    assert len(loads) == 1


def test_what_is_no_photo_has_no_picture(opened, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "good.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    by_name = small(opened, tmp_path)
    assert [name for name, picture in by_name.items() if picture] == ["good.jpg"]
    assert_green(by_name["good.jpg"])
