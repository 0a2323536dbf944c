"""Photos to batches: every readable one, the others with a reason, and fingerprints of what was read."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cache.strings import Strings
from extract.augment import augment, draw
from extract.batches import Unreadable, batches, fingerprints
from extract.decode import decode, resize
from extract.settings import Augmentation
from extract.sources.folder import list_photos
from tests.pictures import encoded, noise, smooth, write_picture


def run_length_encoded(picture):
    """A BMP whose header says that it is compressed."""
    content = bytearray(encoded(picture.convert("P"), "BMP"))
    content[30] = 1
    return bytes(content)


PICTURE = smooth(64, 48)
BROKEN = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"no image, just words", "not a JPEG, PNG, GIF, BMP or WebP image"),
    "cut.png": (encoded(PICTURE, "PNG")[:-60], "broken or unsupported PNG"),
    "cut.jpg": (encoded(PICTURE, "JPEG")[:600], "broken or unsupported JPEG"),
    "short.bmp": (b"BM", "broken or unsupported BMP"),
    "run_length.bmp": (run_length_encoded(PICTURE), "broken or unsupported BMP"),
}


def write_files(folder, names):
    """`names` as files of `folder`: those in BROKEN broken, others pictures. Returns their paths."""
    for name in names:
        (folder / name).write_bytes(BROKEN[name][0] if name in BROKEN else encoded(PICTURE, "PNG"))
    return Strings.of(names)


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", *BROKEN, "b.png", "c.png"],
        ["empty.jpg", "a.png", "b.png", "text.jpg"],
        ["a.png", "b.png", "text.jpg", "c.png", "d.png", "e.png", "cut.png"],
        ["empty.jpg", "text.jpg", "cut.jpg"],
        ["a.png"],
    ],
)
def test_batches_hold_every_readable_photo_and_a_reason_comes_with_the_others(tmp_path, names):
    paths = write_files(tmp_path, names)
    readable, unreadable = [], {}
    for batch in batches(tmp_path, paths, (8, 10), batch_size=2, threads=2):
        if isinstance(batch, list):
            unreadable |= {names[photo.position]: photo for photo in batch}
            continue
        assert batch.images.shape == (len(batch.positions), 8, 10, 3)
        readable += [names[position] for position in batch.positions]
        for position, image in zip(batch.positions, batch.images, strict=True):
            alone = decode(tf.constant((tmp_path / names[position]).read_bytes()))
            np.testing.assert_array_equal(image, resize(alone, 8, 10))
    assert readable == [name for name in names if name not in BROKEN]
    assert list(unreadable) == [name for name in names if name in BROKEN]
    for name, photo in unreadable.items():
        assert photo.reason.startswith(BROKEN[name][1])
        assert not photo.retry


def test_pieces_choose_the_photos_and_their_order(tmp_path):
    names = ["a.png", "b.png", "text.jpg", "c.png", "d.png", "e.png"]
    pieces = [np.array([4, 5]), np.array([0]), np.array([3, 2])]
    got = list(batches(tmp_path, write_files(tmp_path, names), (8, 8), batch_size=3, threads=2, pieces=pieces))
    assert [batch.positions.tolist() for batch in got[:2]] == [[4, 5, 0], [3]]
    assert [photo.position for photo in got[2]] == [2]


def test_a_file_that_is_gone_may_come_back(tmp_path):
    write_files(tmp_path, ["a.png"])
    _, unreadable = batches(tmp_path, Strings.of(["a.png", "gone.png"]), (8, 8), batch_size=2, threads=1)
    assert unreadable == [Unreadable(1, "No such file or directory", retry=True)]


def test_fingerprints_depend_on_the_content_alone(tmp_path):
    write_picture(tmp_path / "a" / "0.png", 0)
    write_picture(tmp_path / "a" / "1.png", 0)
    write_picture(tmp_path / "b" / "2.png", 1)
    (tmp_path / "b" / "3.jpg").write_text("no image")
    write_picture(tmp_path / "b" / "4.png", 2)
    photos = list_photos(tmp_path)
    (tmp_path / "b" / "4.png").unlink()
    positions, prints = fingerprints(photos, np.array([4, 3, 1, 2, 0]), threads=2)
    assert positions.tolist() == [3, 1, 2, 0]
    of_text, second, other, first = prints.tolist()
    assert first == second
    assert len({first, other, of_text}) == 3
    [batch, _] = batches(tmp_path, photos.paths, (8, 8), batch_size=4, threads=1)
    assert batch.fingerprints.tolist() == [first, second, other]


def test_of_a_large_jpeg_as_much_is_decoded_as_an_enlarged_crop_needs(tmp_path):
    """For a plain photo, four times the network's 16 pixels are decoded; for one enlarged up to 4 times, 16 times."""
    side = 8 * 4 * 16  # a plain photo is decoded at an eighth
    content = encoded(Image.fromarray(noise(3, side)), "JPEG", quality=95, subsampling=0)
    (tmp_path / "large.jpg").write_bytes(content)
    chosen = Augmentation(False, random_crop=100, random_scale=100, random_brightness=0, seed=0, number=1)
    paths = Strings.of(["large.jpg"])
    [batch] = batches(tmp_path, paths, (16, 16), batch_size=1, threads=1, augmentation=chosen)
    half = tf.io.decode_jpeg(content, ratio=2)  # 16 times the network's size
    draws = draw(tf.raw_ops.Fingerprint(data=[content], method="farmhash64")[0], chosen)
    np.testing.assert_array_equal(batch.images[0], augment(half, 16, 16, chosen, draws))
