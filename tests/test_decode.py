"""From a file's bytes to pixels, against Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from cache.strings import Strings
from extract import decode
from tests.pictures import noise


@pytest.fixture(scope="module")
def picture():
    """Smooth, so that JPEG's losses are small, and different at each corner and in each channel."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y) * 2], -1).astype(np.uint8))


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def frames(picture):
    return {"save_all": True, "append_images": [picture.rotate(180)]}


# kind, mode, options of Pillow's writer, how far a pixel may be off on average (lossy decoders round differently)
KINDS = {
    "jpeg": ("JPEG", "RGB", {"quality": 95}, 2),
    "jpeg grey": ("JPEG", "L", {"quality": 95}, 2),
    "jpeg cmyk": ("JPEG", "CMYK", {"quality": 95}, 2),
    "jpeg progressive": ("JPEG", "RGB", {"quality": 95, "progressive": True}, 2),
    "png": ("PNG", "RGB", {}, 0),
    "png grey": ("PNG", "L", {}, 0),
    "png palette": ("PNG", "P", {}, 0),
    "png alpha": ("PNG", "RGBA", {}, 0),
    "png one bit": ("PNG", "1", {}, 0),
    "gif": ("GIF", "P", {}, 0),
    "bmp": ("BMP", "RGB", {}, 0),
    "bmp alpha": ("BMP", "RGBA", {}, 0),
    "bmp grey": ("BMP", "L", {}, 0),
    "bmp palette": ("BMP", "P", {}, 0),
    "webp": ("WEBP", "RGB", {"quality": 95}, 2),
    "webp lossless alpha": ("WEBP", "RGBA", {"lossless": True}, 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_image_is_what_pillow_sees(picture, name):
    kind, mode, options, tolerance = KINDS[name]
    data = encoded(picture.convert(mode), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode.decode(tf.constant(data)).numpy()
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() <= tolerance


def test_sixteen_bits_become_eight(picture):
    deep = np.asarray(picture)[:, :, 0].astype(np.uint16) * 257  # the top byte is the picture's own
    pixels = decode.decode(tf.constant(encoded(Image.fromarray(deep), "PNG"))).numpy()
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(picture)[:, :, :1], 3, 2))


def test_a_gif_gives_its_first_frame(picture):
    data = encoded(picture.convert("P"), "GIF", **frames(picture.convert("P")))
    first = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode.decode(tf.constant(data)).numpy(), first)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(picture, orientation, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0110], exif[0x0112], exif[0x0131] = "maker", "model", orientation, "software"
    data = encoded(picture, "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    pixels = decode.decode(tf.constant(data)).numpy()
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 2


def test_resizing_is_bilinear_between_pixel_centres():
    image = noise(0, side=6)
    # Enlarging by Pillow is the same formula; it keeps the aspect ratio as little.
    expected = np.asarray(Image.fromarray(image).resize((12, 9), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode.resize(tf.constant(image), 9, 12).numpy() - expected).max() <= 1


BROKEN = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"no image, just words", "not a JPEG, PNG, GIF, BMP or WebP image"),
    "cut.png": (None, "broken or unsupported PNG"),
    "cut.jpg": (None, "broken or unsupported JPEG"),
    "short.bmp": (b"BM", "broken or unsupported BMP"),
    "run_length.bmp": (None, "broken or unsupported BMP"),
}


def write_files(folder, picture, names):
    """`names` as files of `folder`: those in BROKEN broken, others pictures."""
    rle = bytearray(encoded(picture.convert("P"), "BMP"))
    rle[30] = 1
    made = {
        "cut.png": encoded(picture, "PNG")[:-60],
        "cut.jpg": encoded(picture, "JPEG")[:600],
        "run_length.bmp": bytes(rle),
    }
    for name in names:
        broken = BROKEN.get(name, (encoded(picture, "PNG"), ""))[0]
        (folder / name).write_bytes(made[name] if broken is None else broken)
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
def test_batches_hold_every_readable_image_and_name_the_others(tmp_path, picture, names):
    paths = write_files(tmp_path, picture, names)
    good, bad = [], {}
    for batch in decode.batches(tmp_path, paths, (8, 10), batch_size=2, threads=2):
        if isinstance(batch, list):
            bad |= {names[unreadable.position]: unreadable for unreadable in batch}
            continue
        assert batch.images.shape == (len(batch.positions), 8, 10, 3)
        good += [names[position] for position in batch.positions]
        for position, image in zip(batch.positions, batch.images, strict=True):
            one = decode.decode(tf.constant((tmp_path / names[position]).read_bytes()))
            np.testing.assert_array_equal(image, decode.resize(one, 8, 10))
    assert good == [name for name in names if name not in BROKEN]
    assert list(bad) == [name for name in names if name in BROKEN]
    for name, unreadable in bad.items():
        assert unreadable.reason.startswith(BROKEN[name][1])
        assert not unreadable.passing


def test_a_file_that_went_away_may_come_back(tmp_path, picture):
    write_files(tmp_path, picture, ["a.png"])
    _, gone = decode.batches(tmp_path, Strings.of(["a.png", "gone.png"]), (8, 8), batch_size=2, threads=1)
    assert gone == [decode.Unreadable(1, "No such file or directory", passing=True)]


def test_fingerprints_tell_contents_apart_wherever_they_lie(tmp_path, picture):
    paths = write_files(tmp_path, picture, ["a.png", "b.png", "text.jpg"])
    gone = Strings.concatenate([paths, Strings.of(["gone"])])
    positions, prints = decode.fingerprints(tmp_path, gone, threads=2)
    assert positions.tolist() == [0, 1, 2]
    assert prints[0] == prints[1] != prints[2]
    [batch] = decode.batches(tmp_path, Strings.of(["a.png", "b.png"]), (8, 8), batch_size=4, threads=1)
    assert batch.fingerprints.tolist() == prints[:2].tolist()


@pytest.mark.parametrize(
    ("size", "enough", "expected"),
    [
        ((640, 480), 240, (320, 240)),  # width, height: exactly twice is scaled
        ((640, 479), 240, (640, 479)),
        ((800, 640), 100, (200, 160)),
        ((800, 1600), 100, (100, 200)),
        ((1601, 1603), 100, (201, 201)),  # part of a block is a pixel
        ((4000, 4000), 100, (500, 500)),  # there is no smaller scale
    ],
)
def test_a_large_jpeg_is_decoded_at_the_scale_that_leaves_enough(size, enough, expected):
    photo = Image.fromarray(noise(3, side=6)).resize(size, Image.BICUBIC)
    pixels = decode.decode(tf.constant(encoded(photo, "JPEG", quality=95)), enough).numpy()
    assert pixels.shape == (*expected[::-1], 3)
    # Pillow's box filter is the slow and obvious mean of what one pixel stands for.
    mean = np.asarray(photo.resize(expected, Image.BOX)).astype(float)
    assert np.abs(pixels - mean).mean() < 3


def test_only_jpegs_are_scaled(picture):
    assert decode.decode(tf.constant(encoded(picture, "PNG")), 4).shape == (48, 64, 3)


def test_a_large_turned_jpeg_is_scaled_and_turned():
    photo = Image.fromarray(noise(3, side=6)).resize((640, 1280), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((24, 32), Image.BOX)).astype(float)
    assert np.abs(decode.preprocess(tf.constant(data), 32, 24).numpy() - seen).mean() < 12
    whole = decode.resize(decode.decode(tf.constant(data)), 32, 24).numpy().astype(float)
    assert np.abs(decode.preprocess(tf.constant(data), 32, 24).numpy() - whole).mean() < 6
