"""The bytes of a file to pixels, compared with Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from extract.decode import decode, preprocess, resize
from tests.pictures import encoded, noise, smooth


@pytest.fixture(scope="module")
def picture():
    return smooth(64, 48)


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
def test_each_kind_of_image_is_decoded_as_by_pillow(picture, name):
    kind, mode, options, tolerance = KINDS[name]
    data = encoded(picture.convert(mode), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    pixels = decode(tf.constant(data)).numpy()
    assert pixels.dtype == np.uint8
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() <= tolerance


def test_sixteen_bits_become_eight(picture):
    deep = np.asarray(picture)[:, :, 0].astype(np.uint16) * 257  # the upper byte is the picture's
    pixels = decode(tf.constant(encoded(Image.fromarray(deep), "PNG"))).numpy()
    np.testing.assert_array_equal(pixels, np.repeat(np.asarray(picture)[:, :, :1], 3, 2))


def test_of_a_gif_the_first_frame_is_decoded(picture):
    data = encoded(picture.convert("P"), "GIF", **frames(picture.convert("P")))
    first = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(tf.constant(data)).numpy(), first)


@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(picture, orientation, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0110], exif[0x0112], exif[0x0131] = "maker", "model", orientation, "software"
    data = encoded(picture, "JPEG", quality=95, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    pixels = decode(tf.constant(data)).numpy()
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).mean() < 2


def test_resizing_is_bilinear_between_pixel_centres():
    image = noise(0, side=6)
    # Pillow enlarges by the same formula, and does not keep the aspect ratio either.
    expected = np.asarray(Image.fromarray(image).resize((12, 9), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize(tf.constant(image), 9, 12).numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("size", "enough", "expected"),
    [
        ((640, 480), 240, (320, 240)),  # width, height: exactly twice as many pixels are scaled
        ((640, 479), 240, (640, 479)),
        ((800, 640), 100, (200, 160)),
        ((800, 1600), 100, (100, 200)),
        ((1601, 1603), 100, (201, 201)),  # a part of a block becomes a pixel, too
        ((4000, 4000), 100, (500, 500)),  # there is no smaller scale
    ],
)
def test_a_large_jpeg_is_decoded_at_the_scale_that_leaves_enough(size, enough, expected):
    photo = Image.fromarray(noise(3, side=6)).resize(size, Image.BICUBIC)
    pixels = decode(tf.constant(encoded(photo, "JPEG", quality=95)), enough).numpy()
    assert pixels.shape == (*expected[::-1], 3)
    # Pillow's box filter is the plain mean of the pixels that become one.
    mean = np.asarray(photo.resize(expected, Image.BOX)).astype(float)
    assert np.abs(pixels - mean).mean() < 3


def test_only_jpegs_are_scaled(picture):
    assert decode(tf.constant(encoded(picture, "PNG")), 4).shape == (48, 64, 3)


def test_a_large_turned_jpeg_is_scaled_and_turned():
    photo = Image.fromarray(noise(3, side=6)).resize((640, 1280), Image.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo, "JPEG", quality=95, exif=exif)
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((24, 32), Image.BOX)).astype(
        float
    )
    assert np.abs(preprocess(tf.constant(data), 32, 24).numpy() - by_pillow).mean() < 12
    whole = resize(decode(tf.constant(data)), 32, 24).numpy().astype(float)
    assert np.abs(preprocess(tf.constant(data), 32, 24).numpy() - whole).mean() < 6
