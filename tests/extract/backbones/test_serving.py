"""The backbone as a SavedModel in a cache: what its functions return, and what becomes of a folder that is there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cache import manifest
from cache.errors import UserError
from extract import backbones
from extract.backbones import serving
from extract.decode import preprocess, resize
from extract.thumbnails import thumbnail
from tests import modules
from tests.pictures import noise, write_picture


@pytest.fixture(scope="module")
def backbone(module: str) -> backbones.Backbone:
    return backbones.load(module)


@pytest.fixture(scope="module")
def folder(backbone: backbones.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "backbone"
    serving.save(backbone, folder)
    return folder


def test_its_functions_do_what_the_extraction_does(folder: Path, tmp_path: Path) -> None:
    saved = tf.saved_model.load(str(folder))
    photo = io.BytesIO()
    Image.fromarray(noise(0, side=300)).save(photo, "JPEG", exif=_turned())
    for encoded in (photo.getvalue(), write_picture(tmp_path / "small.png", seed=1).read_bytes()):
        assert np.array_equal(saved.decode(encoded), preprocess(tf.constant(encoded), 16, 16))
        assert saved.thumbnail(encoded).numpy() == thumbnail(tf.constant(encoded)).numpy()
    large = noise(2, side=50)
    assert np.array_equal(saved.resize(large), resize(tf.constant(large), 16, 16))
    images = modules.random_images(3)
    np.testing.assert_allclose(saved.features(images), modules.reference(images), atol=1e-5)
    for function in (saved.decode, saved.thumbnail):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(b"no image")


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the photo was taken with the camera turned
    return exif


def test_the_folder_has_checksums_and_no_variables(folder: Path) -> None:
    assert manifest.damage(folder) is None
    assert tf.train.list_variables(str(folder / "variables" / "variables")) == [("_CHECKPOINTABLE_OBJECT_GRAPH", [])]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no temporary folder is left


def test_a_saved_model_stays_and_an_incomplete_copy_is_replaced(backbone: backbones.Backbone, tmp_path: Path) -> None:
    copy = tmp_path / "backbone"
    copy.mkdir()
    (copy / "saved_model.pb").write_bytes(b"another extraction was faster")
    serving.save(backbone, copy)
    assert (copy / "saved_model.pb").read_bytes() == b"another extraction was faster"
    (copy / "saved_model.pb").rename(copy / "stray")
    serving.save(backbone, copy)
    assert manifest.damage(copy) is None
    assert not (copy / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(backbone: backbones.Backbone, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"^cannot write .*file/backbone: "):
        serving.save(backbone, tmp_path / "file" / "backbone")
