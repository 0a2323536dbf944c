"""Photos that lie on their side: wherever a program puts the EXIF orientation, the pixels come out upright."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from extract import decode as decoding
from extract import exif as search
from tests.pictures import encoded, smooth

PICTURE = smooth(32, 24)
TURNED = np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270))  # orientation 6
PLAIN = encoded(PICTURE, "JPEG", quality=95)
PNG = encoded(PICTURE, "PNG")
WEBP = encoded(PICTURE, "WEBP", lossless=True)
_decode = tf.function(decoding.decode, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def decode(content):
    return _decode(tf.constant(content)).numpy().astype(int)


def entry(tag, kind, count, value, order):
    """One entry of a directory; `value` is its last four bytes, or a number."""
    if isinstance(value, int):
        value = struct.pack(order + ("H2x" if kind == 3 else "I"), value)
    return struct.pack(order + "HHI", tag, kind, count) + value


def tiff(orientation=6, order="<", kind=3, offset=8, before=(), after=(), count=1):
    """An EXIF block whose directory begins at `offset`."""
    entries = [*before, (0x0112, kind, count, orientation), *after]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", offset)
    directory = struct.pack(order + "H", len(entries)) + b"".join(entry(*one, order) for one in entries) + bytes(4)
    return head.ljust(offset, b"\0") + directory


def segment(content, marker=0xE1):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def exif(**how):
    return segment(b"Exif\0\0" + tiff(**how))


XMP = segment(b"http://ns.adobe.com/xap/1.0/\0" + b"<x:xmpmeta/>" * 4000)
ICC = segment(b"ICC_PROFILE\0\1\1" + bytes(3000), 0xE2)
TAGS = [(0x010F + number, 2, 4, b"abc\0") for number in range(3)]
JPEGS = {
    "alone": exif(),
    "big-endian": exif(order=">"),
    "LONG": exif(kind=4),
    "LONG big-endian": exif(kind=4, order=">"),
    "after XMP": XMP + exif(),
    "after 200 kB": XMP * 4 + exif(),
    "after other segments": ICC + segment(b"a comment", 0xFE) + exif(),
    "before XMP": exif() + XMP,
    "a directory behind a gap": exif(offset=5000),
    "a directory behind a gap, big-endian": exif(offset=333, order=">"),
    "a long block": segment(b"Exif\0\0" + tiff(offset=60000) + bytes(5000)),
    "the last of many entries": exif(before=TAGS * 30),
    "before other entries": exif(after=TAGS),
    "filled": b"\xff" * 7 + exif() + b"\xff" * 3,
    "filled between": ICC + b"\xff" * 5 + exif(),
    "two blocks": exif() + exif(orientation=3),
}
NO_JPEGS = {
    "none": b"",
    "orientation 1": exif(orientation=1),
    "orientation 0": exif(orientation=0),
    "orientation 9": exif(orientation=9),
    "orientation 6 + 256": exif(orientation=6 + 256),
    "two values": exif(count=2),
    "a type that no number has": exif(kind=7),
    "another byte order": segment(b"Exif\0\0" + tiff().replace(b"II", b"JJ")),
    "an offset outside": segment(b"Exif\0\0II*\0\xff\xff\xff\xff" + tiff()[8:]),
    "an offset far outside": segment(b"Exif\0\0II*\0\xff\xff\xff\x7f" + tiff()[8:]),
    "cut in the header": segment(b"Exif\0\0II*"),
    "cut in the directory": segment(b"Exif\0\0" + tiff()[:14], 0xE1),
    "another tag's value": exif(before=[(0x0113, 2, 4, b"\x12\1\3\0")], orientation=1),
}


@pytest.mark.parametrize("case", JPEGS)
def test_the_orientation_of_a_jpeg_is_found_wherever_it_stands(case):
    pixels = decode(PLAIN[:2] + JPEGS[case] + PLAIN[2:])
    assert pixels.shape == TURNED.shape
    assert np.abs(pixels - TURNED).mean() < 3


def test_segments_after_the_tables_count_too():
    tables = PLAIN.index(b"\xff\xda")
    assert decode(PLAIN[:tables] + exif() + PLAIN[tables:]).shape == TURNED.shape


@pytest.mark.parametrize("case", NO_JPEGS)
def test_what_is_no_orientation_leaves_the_jpeg_as_it_lies(case):
    np.testing.assert_array_equal(decode(PLAIN[:2] + NO_JPEGS[case] + PLAIN[2:]), decode(PLAIN))


def checked(content):
    """A PNG's chunk with its checksum."""
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def with_riff(content, padding=b""):
    """A WebP file with an EXIF chunk at its end, after its pixels."""
    pixels = WEBP[12:]
    chunk = b"EXIF" + struct.pack("<I", len(content)) + content + padding
    header = b"VP8X" + struct.pack("<I", 10) + bytes([0x08, 0, 0, 0]) + b"\x1f\0\0" + b"\x17\0\0"
    body = b"WEBP" + header + pixels + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


OTHERS = {
    "PNG": PNG[:33] + checked(b"eXIf" + tiff()) + PNG[33:],
    "PNG big-endian": PNG[:33] + checked(b"eXIf" + tiff(order=">", kind=4)) + PNG[33:],
    "PNG after the pixels": PNG[:-12] + checked(b"eXIf" + tiff()) + PNG[-12:],
    "WebP": with_riff(tiff()),
    "WebP with a prefix": with_riff(b"Exif\0\0" + tiff(order=">")),
    "WebP of an odd length": with_riff(tiff() + b"\0", b"\0"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_orientation_of_other_kinds_is_honoured(case):
    by_pillow = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(OTHERS[case])).convert("RGB")))
    np.testing.assert_array_equal(by_pillow, TURNED)  # the test's own file is right
    np.testing.assert_array_equal(decode(OTHERS[case]), TURNED)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WebP"])
def test_whatever_is_broken_the_search_finds_an_orientation_or_none(name):
    whole = {"JPEG": PLAIN[:2] + ICC + exif(order=">") + PLAIN[2:200], **OTHERS}[name]
    orientation = tf.function(search.orientation, input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    assert orientation(tf.constant(whole)) == 6
    generator = np.random.default_rng(0)
    for length in range(0, len(whole), max(1, len(whole) // 100)):
        assert 1 <= orientation(tf.constant(whole[:length])) <= 8
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(256)
        assert 1 <= orientation(tf.constant(bytes(damaged))) <= 8
