"""Photos to batches: read, fingerprint, decode, resize, on all cores and ahead of need."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from cache import kinds
from cache.bar import bar
from cache.errors import first_line
from cache.photos import Photos
from cache.strings import Strings
from extract import augment
from extract.decode import decode, preprocess
from extract.settings import Augmentation

# Graph functions have no Python control flow that autograph could convert, and looking for it takes up to a second.
_plain = tf.autograph.experimental.do_not_convert
_CHUNK = 1024  # paths handed to tf.data at a time, so that no list of all of them is ever made


@dataclass(frozen=True, eq=False)
class Batch:
    """n decoded photos."""

    positions: np.ndarray  # int64 [n], into the list of paths, in the order that was asked for
    images: tf.Tensor  # uint8 [n, height, width, 3]
    fingerprints: np.ndarray  # uint64 [n], FarmHash Fingerprint64 of the file's bytes


@dataclass(frozen=True)
class Unreadable:
    """A photo that could not be decoded."""

    position: int  # into the list of paths
    reason: str
    retry: bool  # whether a later run should try again, since the file could not be read at this moment


def batches(
    image_dir: Path,
    paths: Strings,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    threads: int,
    pieces: Iterable[np.ndarray] | None = None,
    augmentation: Augmentation | None = None,
) -> Iterator[Batch | list[Unreadable]]:
    """Decodes photos, ahead of need, into batches of `batch_size`, the last of which is smaller.

    `pieces`, int64 [n] each, are the positions in `paths` of the photos to decode, in that order; None stands for all
    of them. A thread of tf.data asks for pieces as it needs them. The photos that could not be decoded since the batch
    before come as a list before the next batch. With an `augmentation`, photos come augmented.
    """
    in_pipeline: deque[np.ndarray] = deque()  # the positions that tf.data has taken and not given back yet
    failures: list[Exception] = []

    def recorded() -> Iterator[np.ndarray]:
        try:
            for piece in _in_order(len(paths)) if pieces is None else pieces:
                in_pipeline.append(piece)
                yield piece
        except Exception as error:
            failures.append(error)  # `ignore_errors` drops it, like that of a photo, and the run would just end
            raise

    @_plain
    def load(number: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        encoded = tf.io.read_file(path)
        own = fingerprint(encoded)
        if augmentation is None:
            return number, preprocess(encoded, *image_size), own
        detailed = decode(encoded, augment.enough(4 * max(image_size), augmentation))
        draws = augment.draw(own, augmentation)
        return number, augment.augment(detailed, *image_size, augmentation, draws), own

    dataset = (
        _dataset(image_dir, paths, recorded())
        .map(load, num_parallel_calls=threads)
        # A photo that fails is dropped here, and found below by its gap in the numbers.
        .ignore_errors()
        .batch(batch_size)
        # One batch in the making and one ready. More would only take memory.
        .prefetch(2)
    )
    expected = 0
    for numbers, images, fingerprints in dataset:
        present = numbers.numpy() - expected
        positions = _pop(in_pipeline, int(present[-1]) + 1)
        if len(positions) > len(present):
            yield [_diagnose(image_dir, paths, position) for position in np.delete(positions, present).tolist()]
        yield Batch(positions[present], images, fingerprints.numpy().view(np.uint64).reshape(-1))
        expected += len(positions)
    if failures:
        raise failures[0]
    if in_pipeline:
        yield [_diagnose(image_dir, paths, position) for position in np.concatenate(in_pipeline).tolist()]


def fingerprints(photos: Photos, positions: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads the photos at `positions` (int64 [M]): the positions of the readable ones (int64 [K]), and the fingerprints
    of their bytes (uint64 [K])."""
    paths = photos.paths.take(positions)
    readable, values = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    with bar(desc="compare with the cache", total=len(paths), unit=" photos", leave=False, delay=1) as shown:
        for places, prints in each(photos.image_dir, paths, fingerprint, threads):
            readable.append(positions[places])
            values.append(prints.view(np.uint64).reshape(-1))
            shown.update(int(places[-1]) + 1 - shown.n)
    return np.concatenate(readable), np.concatenate(values)


def each(
    image_dir: str | os.PathLike,
    paths: Strings,
    function: Callable[[tf.Tensor], tf.Tensor],
    threads: int,
    chunk: int = _CHUNK,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Applies `function` to the bytes of each file (string scalar), in order, `chunk` files at a time.

    Yields the positions in `paths` (int64 [n]) and the results ([n, ...]). Files that cannot be read, or at which the
    function fails, are left out.
    """

    @_plain
    def apply(number: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return number, function(tf.io.read_file(path))

    dataset = (
        _dataset(image_dir, paths, _in_order(len(paths)))
        .map(apply, num_parallel_calls=threads)
        .ignore_errors()
        .batch(chunk)
        .prefetch(1)
    )
    return ((positions.numpy(), values.numpy()) for positions, values in dataset)


def _in_order(count: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _pop(in_pipeline: deque[np.ndarray], count: int) -> np.ndarray:
    """Removes the first `count` positions from `in_pipeline`, and returns them."""
    parts = []
    while count:
        piece = in_pipeline.popleft()
        if len(piece) > count:
            in_pipeline.appendleft(piece[count:])
        parts.append(piece[:count])
        count -= len(parts[-1])
    return np.concatenate(parts)


def _dataset(image_dir: str | os.PathLike, paths: Strings, pieces: Iterable[np.ndarray]) -> tf.data.Dataset:
    """(number int64, counted from 0, whole path string) of each path that the positions in `pieces` name."""

    def chunks() -> Iterator[tuple[np.ndarray, list[bytes]]]:
        start = 0
        for piece in pieces:
            yield np.arange(start, start + len(piece)), [root + path for path in paths.take(piece).encoded()]
            start += len(piece)

    root = os.fsencode(os.path.abspath(image_dir)) + b"/"
    signature = (tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string))
    # Every stage states its parallelism, so the tuner has nothing to do. With it, the end of an iteration sometimes
    # waited up to ten seconds in a run of twelve, every thread asleep. Without it, it never did.
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_generator(chunks, output_signature=signature).unbatch().with_options(options)


def fingerprint(encoded: tf.Tensor) -> tf.Tensor:
    """The fingerprint of a file's bytes (string scalar), uint8 [8]: FarmHash's Fingerprint64, little-endian."""
    return tf.raw_ops.Fingerprint(data=encoded[tf.newaxis], method="farmhash64")[0]


def _diagnose(image_dir: str | os.PathLike, paths: Strings, position: int) -> Unreadable:
    """Reads and decodes a broken photo once more, alone, to learn the reason."""
    path = os.path.join(image_dir, paths[position])
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except OSError as error:
        return Unreadable(position, first_line(error), retry=True)
    try:
        decode(tf.constant(encoded))
    except tf.errors.OpError as error:
        return Unreadable(position, kinds.reason(encoded[: kinds.HEAD], first_line(error)), retry=False)
    return Unreadable(position, "could not be read at first, but now it can", retry=True)
