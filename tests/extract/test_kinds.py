"""Files of every kind among the photos: those that are none are named with what to do, and harm nothing."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cache
from cache import rejected
from extract.batches import batches
from extract.decode import decode
from tests import forked
from tests.pictures import encoded, make_folder, smooth


def boxes(major, *compatible):
    """The start of a file of ISO boxes with these brands."""
    return struct.pack(">I", 16 + 4 * len(compatible)) + b"ftyp" + major + bytes(4) + b"".join(compatible) + bytes(60)


NO_PHOTOS = {
    "heic": (boxes(b"heic", b"mif1", b"heic"), "a HEIC photo; convert it to JPEG"),
    "heif of an unnamed codec": (boxes(b"mif1", b"miaf"), "a HEIC photo; convert it to JPEG"),
    "avif": (boxes(b"mif1", b"avif", b"miaf"), "an AVIF photo; convert it to JPEG"),
    "video": (boxes(b"isom", b"mp41"), "a video; take photos from it"),
    "boxes without end": (b"\xff\xff\xff\xffftypqt  " + bytes(90), "a video; take photos from it"),
    "tiff": (encoded(smooth(8, 8), "TIFF"), "a TIFF file or a camera's raw photo; convert it to JPEG"),
    "jpeg 2000": (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 photo; convert it to JPEG"),
    "jpeg xl": (b"\xff\x0a\xfa\x1f", "a JPEG XL photo; convert it to JPEG"),
    "svg": (b'<?xml version="1.0"?>\n<svg width="9"/>', "an SVG drawing; convert it to JPEG"),
    "page": (b"<!DOCTYPE html><title>404", "a web page instead of the photo; download it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer instead of the photo"),
    "film": (b"RIFF\x00\x10\x00\x00AVI LIST", "a video or sound; take photos from it"),
    "zip": (b"PK\x03\x04\x14\x00", "a zip archive; unpack it"),
    "zeros": (bytes(3000), "the file begins with zeros"),
    "empty": (b"", "the file is empty"),
    "words": (b"just words", "not a JPEG, PNG, GIF, BMP or WebP image"),
    "broken webp": (b"RIFF\x00\x10\x00\x00WEBPVP8 abcd", "broken or unsupported WebP"),
}


def test_files_that_are_no_photos_are_rejected_with_what_to_do(tmp_path, run):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    for name, (content, _) in NO_PHOTOS.items():
        (photos / "a" / f"{name}.jpg").write_bytes(content)
    (photos / "b" / "huge.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    os.truncate(photos / "b" / "huge.jpg", 20 << 30)  # takes no room, but to read it would take all memory
    result = run()
    assert (result.computed, result.rejected) == (6, len(NO_PHOTOS) + 1)
    reasons = {Path(row.path).stem: row.reason for row in rejected.read(result.directory)}
    assert reasons.pop("huge") == "larger than 1 GiB, which no photo is; move it elsewhere"
    assert set(reasons) == set(NO_PHOTOS)
    for name, (_, reason) in NO_PHOTOS.items():
        assert reasons[name].startswith(reason), name
    assert len(cache.open(result.directory)) == 6


def test_what_libjpeg_remarks_on_stays_out_of_the_terminal(tmp_path, module):
    photos = make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    content = encoded(smooth(64, 48), "JPEG")
    start = content.index(b"\xff\xda")
    for number in range(3):  # bytes that belong to no segment
        (photos / "a" / f"extraneous{number}.jpg").write_bytes(content[:start] + b"abcdefgh" + content[start:])
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    status, out, errors = forked.run("extract.__main__", *flags)
    assert (status, b"9 computed" in out) == (0, True), errors
    assert b"Corrupt" not in errors and b"extraneous" not in errors
    assert b"100%" in errors  # the progress bar is there


def test_an_error_in_choosing_photos_is_not_taken_for_one_of_a_photo(tmp_path):
    photos = make_folder(tmp_path / "photos", {"a": 3})
    paths = cache.strings.Strings.of(f"a/00{i}.png" for i in range(3))

    def pieces():
        yield np.array([0])
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(batches(photos, paths, (8, 8), batch_size=2, threads=2, pieces=pieces()))


def bmp(bits, pixels, palette=b"", upwards=True):
    """A BMP file of rows of bytes, which it pads."""
    height = len(pixels)
    rows = [row + bytes(-len(row) % 4) for row in (pixels[::-1] if upwards else pixels)]
    width = 8 * len(pixels[0]) // bits
    header = struct.pack("<IiiHHIIiiII", 40, width, height if upwards else -height, 1, bits, *[0] * 6)
    start = 14 + len(header) + len(palette)
    content = header + palette + b"".join(rows)
    return b"BM" + struct.pack("<IHHI", 14 + len(content), 0, 0, start) + content


def palette(count, size):
    return np.random.default_rng(1).integers(0, 256, (count, size), np.uint8).tobytes()


def rows(count, length):
    return [np.random.default_rng(i).integers(0, 256, length, np.uint8).tobytes() for i in range(count)]


BMPS = {
    "8 bits": bmp(8, rows(5, 7), palette(256, 4)),
    "8 bits, downwards": bmp(8, rows(5, 7), palette(256, 4), upwards=False),
    "24 bits": bmp(24, rows(4, 21)),
    "24 bits, downwards": bmp(24, rows(4, 21), upwards=False),
    "32 bits": bmp(32, rows(4, 20)),
}


@pytest.mark.parametrize("name", BMPS)
def test_a_bmp_has_the_colours_that_pillow_sees(name):
    expected = np.asarray(Image.open(io.BytesIO(BMPS[name])).convert("RGB")).astype(int)
    found = decode(tf.constant(BMPS[name])).numpy().astype(int)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [1, 4, 16])
def test_a_bmp_of_another_depth_is_refused(bits):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(bmp(bits, rows(5, 8), palette(2**bits if bits < 16 else 0, 4))))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("lossless", [False, True])
def test_transparency_of_webp_is_dropped_and_the_first_frame_counts(frames, lossless):
    pictures = [smooth(40, 32).rotate(90 * i).convert("RGBA").resize((40, 32)) for i in range(frames)]
    for picture in pictures:
        picture.putalpha(Image.linear_gradient("L").resize((40, 32)))
    content = io.BytesIO()
    more = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(content, "WEBP", lossless=lossless, exact=True, quality=90, **more)
    image = Image.open(io.BytesIO(content.getvalue()))
    assert image.mode == "RGBA"
    found = decode(tf.constant(content.getvalue())).numpy()
    np.testing.assert_array_equal(found, np.asarray(image)[:, :, :3])
