"""Files to batches: read, fingerprint, decode, turn upright, resize; the graph functions serve the classifier too."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from cache.strings import Strings
from extract import distort
from extract.settings import Distortion

# Names what `preprocess` computes. Another result for any image needs another name: bottlenecks made
# either way must not meet in one cache.
PREPROCESSING = "upright, bilinear, uint8 (2)"

# The orientation in a JPEG's EXIF block, for either byte order: the first directory's entries of 12 bytes, up to
# the one with tag 0x0112, type 3 (short), count 1 (EXIF 2.32, section 4.6). \C is any byte to RE2.
_EXIF = (
    r"^\C*?Exif\x00\x00II\*\x00\x08\x00\x00\x00\C{2}(?:\C{12}){0,60}?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00\C*$",
    r"^\C*?Exif\x00\x00MM\x00\*\x00\x00\x00\x08\C{2}(?:\C{12}){0,60}?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])\C*$",
)
_HAS_EXIF = r"\C*Exif\x00\x00\C*"
# A BMP of 8 bits a pixel (bytes 28 and 29): TensorFlow takes the numbers of its colours for shades of grey.
_PALETTE_BMP = r"BM\C{26}\x08\x00\C*"
_EXIF_BYTES = 1024  # the block stands at the start of the file
_CHUNK = 1024  # paths handed to tf.data at a time, so that no list of all of them is ever made


@dataclass(frozen=True)
class Batch:
    """n decoded images."""

    positions: np.ndarray  # int64 [n], into the list of paths, in the order that was asked for
    images: tf.Tensor  # uint8 [n, height, width, 3]
    fingerprints: np.ndarray  # uint64 [n], FarmHash Fingerprint64 of the file's bytes


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded."""

    position: int  # into the list of paths
    reason: str
    passing: bool  # the file could not be read now, which a later run should try again


def preprocess(encoded: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """An image file's bytes (string scalar) to what the network takes, uint8 [height, width, 3].

    Of a JPEG of many times that size, only so much detail is decoded as leaves four times the network's size. Twice
    would be enough to resize from, but moves a vector further from that of the whole photo than rounding does.
    """
    return resize(decode(encoded, 4 * max(height, width)), height, width)


def decode(
    encoded: tf.Tensor, enough: int | None = None, side: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_min
) -> tf.Tensor:
    """A JPEG, PNG, GIF (first frame), BMP or WebP file's bytes (string scalar) to its upright pixels, uint8 [h, w, 3].

    A JPEG whose shorter `side` has at least 2, 4 or 8 times `enough` pixels comes at that fraction of its size.
    Transparency is dropped, 16 bits a channel become 8. Raises tf.errors.InvalidArgumentError for anything else.
    """
    is_jpeg = tf.strings.substr(encoded, 0, 3) == b"\xff\xd8\xff"
    image = tf.cond(is_jpeg, lambda: _decode_jpeg(encoded, enough, side), lambda: _decode_other(encoded))
    image.set_shape([None, None, 3])
    orientation = _orientation(encoded)
    return tf.cond(orientation > 1, lambda: _upright(image, orientation), lambda: image)


def resize(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """uint8 [h, w, 3] to uint8 [height, width, 3], bilinear, whatever the aspect ratio, as the tutorial does."""
    resized = tf.image.resize(image, (height, width))
    return tf.cast(tf.round(tf.ensure_shape(resized, (height, width, 3))), tf.uint8)


def batches(
    image_dir: str | os.PathLike,
    paths: Strings,
    image_size: tuple[int, int],
    batch_size: int,
    threads: int,
    pieces: Iterable[np.ndarray] | None = None,
    distortion: Distortion | None = None,
) -> Iterator[Batch | list[Unreadable]]:
    """Decodes images: batches of `batch_size` (the last one smaller), ahead of need.

    `pieces`, int64 [n] each, are the places in `paths` of the images to decode, in that order, and are asked for as
    they are needed, by a thread of tf.data; None is all of `paths`. Before a batch come, as a list, the images that
    could not be decoded since the batch before. With a `distortion`, images come distorted.
    """
    handed: deque[np.ndarray] = deque()  # what tf.data has got, from the first image that has not come back

    def noted() -> Iterator[np.ndarray]:
        for piece in _in_order(paths) if pieces is None else pieces:
            handed.append(piece)
            yield piece

    @tf.autograph.experimental.do_not_convert  # nothing here needs it, and it takes a second
    def load(number: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        encoded = tf.io.read_file(path)
        fingerprint = _fingerprint(encoded)
        if distortion is None:
            return number, preprocess(encoded, *image_size), fingerprint
        detailed = decode(encoded, distort.enough(4 * max(image_size), distortion))
        draws = distort.draw(fingerprint, distortion)
        return number, distort.distort(detailed, *image_size, distortion, draws), fingerprint

    dataset = (
        _dataset(image_dir, paths, noted())
        .map(load, num_parallel_calls=threads)
        # What fails is left out here and named below, by its gap in the numbers.
        .ignore_errors()
        .batch(batch_size)
        # One batch in the making and one ready: more would only take memory.
        .prefetch(2)
    )
    expected = 0
    for numbers, images, fingerprints in dataset:
        present = numbers.numpy() - expected
        positions = _first(handed, int(present[-1]) + 1)
        if len(positions) > len(present):
            yield [_why(image_dir, paths, position) for position in np.delete(positions, present).tolist()]
        yield Batch(positions[present], images, fingerprints.numpy().view(np.uint64).reshape(-1))
        expected += len(positions)
    if handed:
        yield [_why(image_dir, paths, position) for position in np.concatenate(handed).tolist()]


def fingerprints(image_dir: str | os.PathLike, paths: Strings, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """The files' content: (int64 [M] positions of the readable ones among `paths`, uint64 [M] their fingerprints)."""
    found = [
        (places, values.view(np.uint64).reshape(-1)) for places, values in each(image_dir, paths, _fingerprint, threads)
    ]
    positions, values = zip(*found, strict=True) if found else ((), ())
    return np.concatenate([np.zeros(0, np.int64), *positions]), np.concatenate([np.zeros(0, np.uint64), *values])


def each(
    image_dir: str | os.PathLike,
    paths: Strings,
    function: Callable[[tf.Tensor], tf.Tensor],
    threads: int,
    at_once: int = _CHUNK,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `function` makes of each file's bytes (string scalar), in order, `at_once` files at a time: (int64 [n],
    positions in `paths`; [n, ...], what it made). Files that cannot be read, or at which it fails, are left out."""
    dataset = (
        _dataset(image_dir, paths, _in_order(paths))
        .map(lambda number, path: (number, function(tf.io.read_file(path))), num_parallel_calls=threads)
        .ignore_errors()
        .batch(at_once)
        .prefetch(1)
    )
    return ((positions.numpy(), values.numpy()) for positions, values in dataset)


def _in_order(paths: Strings) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + _CHUNK, len(paths))) for start in range(0, len(paths), _CHUNK))


def _first(handed: deque[np.ndarray], count: int) -> np.ndarray:
    """Takes the first `count` positions out of `handed`."""
    parts = []
    while count:
        piece = handed.popleft()
        if len(piece) > count:
            handed.appendleft(piece[count:])
        parts.append(piece[:count])
        count -= len(parts[-1])
    return np.concatenate(parts)


def _dataset(image_dir: str | os.PathLike, paths: Strings, pieces: Iterable[np.ndarray]) -> tf.data.Dataset:
    """(number int64, counted from 0, whole path string) of each path that `pieces` name."""

    def chunks() -> Iterator[tuple[np.ndarray, list[bytes]]]:
        start = 0
        for piece in pieces:
            yield np.arange(start, start + len(piece)), [root + path for path in paths.take(piece).encoded()]
            start += len(piece)

    root = os.fsencode(os.path.abspath(image_dir)) + b"/"
    signature = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string))
    # Every stage says how parallel it is, so the tuner has nothing to do. With it, the end of an iteration was seen to
    # wait for up to ten seconds in a run of twelve, every thread asleep; without it, never.
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch().with_options(options)


def _fingerprint(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [8]: farmhash64, little-endian."""
    return tf.raw_ops.Fingerprint(data=encoded[tf.newaxis], method="farmhash64")[0]


def _why(image_dir: str | os.PathLike, paths: Strings, position: int) -> Unreadable:
    """Decodes a broken image once more, alone, where its error can be caught."""
    path = os.path.join(image_dir, paths[position])
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        return Unreadable(position, error.strerror or str(error), passing=True)
    try:
        decode(tf.constant(encoded))
    except tf.errors.OpError as error:
        return Unreadable(position, _reason(encoded, error.message), passing=False)
    return Unreadable(position, "could not be read at first, but now", passing=True)


def _reason(encoded: bytes, message: str) -> str:
    if not encoded:
        return "the file is empty"
    kinds = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"}
    kind = next((kind for magic, kind in kinds.items() if encoded.startswith(magic)), None)
    if kind is None:
        return "not a JPEG, PNG, GIF, BMP or WebP image"
    detail = message.splitlines()[0].split("}} ")[-1].split(" [Op:")[0].rstrip(". ")
    return f"broken or unsupported {kind} ({detail})"


def _orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG, 1 to 8; 1 where there is none. int32 scalar."""
    head = tf.strings.substr(encoded, 0, _EXIF_BYTES)

    def search() -> tf.Tensor:
        found = head
        for pattern in _EXIF:
            found = tf.strings.regex_replace(found, pattern, r"\1", replace_global=False)
        # Where neither pattern matched, the head is still what it was: far longer than one byte.
        is_one = tf.strings.length(found) == 1
        return tf.where(is_one, tf.cast(tf.io.decode_raw(tf.where(is_one, found, b"\x01"), tf.uint8)[0], tf.int32), 1)

    # The search takes as long as a tenth of decoding; most images on the web have no EXIF block.
    is_jpeg = tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"
    return tf.cond(is_jpeg & tf.strings.regex_full_match(head, _HAS_EXIF), search, lambda: tf.constant(1))


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undoes an EXIF orientation: 5 to 8 are 1 to 4 of the transposed image; 2 mirrors, 3 turns, 4 flips."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    turn = (orientation - 1) % 4
    image = tf.cond((turn == 1) | (turn == 2), lambda: tf.reverse(image, [1]), lambda: image)
    return tf.cond(turn >= 2, lambda: tf.reverse(image, [0]), lambda: image)


def _decode_jpeg(encoded: tf.Tensor, enough: int | None, side: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    if enough is None:
        return tf.io.decode_jpeg(encoded, channels=3)
    pixels = side(tf.io.extract_jpeg_shape(encoded)[:2])
    # The scales that libjpeg's inverse DCT computes at a fraction of the cost; its `ratio` must be a constant.
    scale = tf.reduce_sum(tf.cast(pixels >= [2 * enough, 4 * enough, 8 * enough], tf.int32))
    return tf.switch_case(scale, [lambda r=r: tf.io.decode_jpeg(encoded, channels=3, ratio=r) for r in (1, 2, 4, 8)])


def _decode_other(encoded: tf.Tensor) -> tf.Tensor:
    return tf.cond(
        tf.strings.regex_full_match(encoded, _PALETTE_BMP),
        lambda: _decode_palette_bmp(encoded),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )


def _decode_palette_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3]: the palette, of 4 bytes (blue, green, red, none) a colour, follows the header."""
    compression = tf.io.decode_raw(tf.strings.substr(encoded, 30, 4), tf.int32)[0]
    with tf.control_dependencies([tf.debugging.assert_equal(compression, 0, "compressed")]):
        numbers = tf.io.decode_bmp(encoded, channels=0)[:, :, 0]
    header = tf.io.decode_raw(tf.strings.substr(encoded, 14, 4), tf.int32)[0]
    first_pixel = tf.io.decode_raw(tf.strings.substr(encoded, 10, 4), tf.int32)[0]
    colours = tf.io.decode_raw(tf.strings.substr(encoded, 14 + header, first_pixel - 14 - header), tf.uint8)
    palette = tf.reverse(tf.reshape(colours, (-1, 4))[:, :3], [1])
    return tf.gather(palette, tf.cast(numbers, tf.int32))
