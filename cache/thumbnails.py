"""Thumbnails: small pictures of the images beside their bottlenecks, for machines that do not have the photos."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import columns, shard, store, writer
from cache.columns import Table
from cache.errors import CacheError, UserError
from cache.store import THUMBNAILS, Index
from cache.strings import Lookup, Strings

if TYPE_CHECKING:
    from cache.reader import Cache

KIND, TABLE = "thumbnails", "rows"
SIDE = 96  # pixels of a thumbnail's longer side, or fewer where the image has fewer

# What is shown of a file from elsewhere: more would be none of ours, and might fill a reader's memory.
_MOST_BYTES = 1 << 16
_MOST_PIXELS = 1024  # of either side
_OVERLAPS = 2  # times that paths may cover their column: a damaged offset makes two that overlap, not many
_ABSENT = -1


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails and what each was made from. All columns have N rows."""

    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes of the image's file
    mtimes: np.ndarray  # int64 [N], when the file was last modified, nanoseconds
    thumbnails: Strings  # JPEG files

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> Thumbnails:
        """Those at `rows` (int [M]), in that order."""
        return Thumbnails(**{name: _take(getattr(self, name), rows) for name in COLUMNS})  # type: ignore[arg-type]


COLUMNS = [field.name for field in fields(Thumbnails)]


@dataclass(frozen=True)
class File:
    """A file of thumbnails as it lies on disk; its arrays are read-only maps of it."""

    path: Path
    rows: Thumbnails
    table: Table  # the same with the rows' checksums

    def __len__(self) -> int:
        return len(self.table)


def find(cache: Cache, rows: np.ndarray) -> list[bytes | None]:
    """For each of `rows` (int [M], places in `cache.paths`) a small JPEG file's bytes; None where there is none.

    A thumbnail that is damaged, or no small JPEG, counts as none, and so does a whole file that cannot be read.
    """
    images, where = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    index, found = cache.index, np.full(len(images), None, object)
    wanted = _Wanted(index.paths.take(images), index.sizes[images], index.mtimes[images])
    seen: set[str] = set()
    # Compacting puts new files in the place of old ones: until a look at the folder shows nothing new.
    while new := [name for name in _readable(cache.directory) if name not in seen]:
        seen.update(new)
        for name in new:
            try:
                file = read(cache.directory / THUMBNAILS / name)
            except CacheError:
                continue
            at, places = wanted.among(file.rows)
            strings = file.rows.thumbnails
            fits = ~strings.misplaced()[at] & (np.diff(strings.offsets)[at] <= _MOST_BYTES)
            at, places = at[fits], places[fits]
            taken = file.rows.take(at)  # bounded: an image at most once, and of few bytes
            agrees = columns.checksums(vars(taken)) == file.table.checksums[at]
            for place, content, is_sound in zip(places.tolist(), taken.thumbnails.encoded(), agrees, strict=True):
                if is_sound and _is_small_jpeg(content):
                    found[place] = content
    return found[where].tolist()


def missing(directory: Path, index: Index) -> np.ndarray:
    """int64 [M]: the images of `index` that have no thumbnail in `directory`. Checksums are not compared.

    Raises CacheError for a file of thumbnails that is damaged, or newer than this version.
    """
    has_one = np.zeros(len(index.paths), bool)
    for _, _, images in used(directory, index):
        has_one[images] = True
    return np.flatnonzero(~has_one)


def used(directory: Path, index: Index) -> Iterator[tuple[File, np.ndarray, np.ndarray]]:
    """Each file of thumbnails in `directory`, its rows that are used (int64 [n]), and the images of `index` they show.

    Each image once: a copy in a later file is not used. Raises CacheError as `missing` does.
    """
    found = names(directory)
    if not found:
        return
    wanted, has_one = _Wanted(index.paths, index.sizes, index.mtimes), np.zeros(len(index.paths), bool)
    for name in found:
        file = read(directory / THUMBNAILS / name)
        rows, images = wanted.among(file.rows)
        is_first = ~has_one[images]
        has_one[images] = True
        yield file, rows[is_first], images[is_first]


def names(directory: Path) -> list[str]:
    """The names of the committed files of thumbnails in a backbone's folder, in the order of their making.

    Raises CacheError where their folder is a link.
    """
    try:
        return sorted(filter(store.is_shard_name, os.listdir(store.folder_in(directory, THUMBNAILS))))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _readable(directory: Path) -> list[str]:
    try:
        return names(directory)
    except (OSError, CacheError):  # a folder that may not be listed, or is a link
        return []


def of(index: Index, images: np.ndarray, jpegs: Sequence[bytes]) -> Thumbnails:
    """Thumbnails of `images` (int [n], into `index`)."""
    return Thumbnails(
        index.paths.take(images), index.sizes[images], index.mtimes[images], Strings.of_encoded(list(jpegs))
    )


def write(directory: Path, parts: Sequence[Thumbnails]) -> str:
    """Commits the thumbnails of all `parts` as one new file in a backbone's folder; returns its name.

    Raises UserError when it cannot be written; then nothing is left behind.
    """
    folder = directory / THUMBNAILS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another --cache_dir") from None
    name = shard.new_name()
    columns.write(folder / name, KIND, {}, {TABLE: [vars(part) for part in parts]})
    return name


def write_all(directory: Path, parts: Iterable[Thumbnails]) -> int:
    """Commits thumbnails as they come, at least every `writer.COMMIT_SECONDS`; returns how many.

    What has come is committed after an error or Ctrl-C too. Raises UserError when it cannot be written.
    """
    pending: list[Thumbnails] = []
    since, count = time.monotonic(), 0
    try:
        for part in parts:
            pending.append(part)
            count += len(part)
            size = sum(one.thumbnails.length() for one in pending)
            if size >= writer.COMMIT_BYTES or time.monotonic() - since >= writer.COMMIT_SECONDS:
                write(directory, pending)
                pending.clear()
                since = time.monotonic()
    finally:
        if any(map(len, pending)):
            write(directory, pending)
    return count


def read(path: Path) -> File:
    """Opens a file of thumbnails; its rows are not compared with their checksums.

    Raises CacheError for one that is missing, damaged, or newer than this reader.
    """
    _, tables = columns.read(path, KIND)
    table = tables.get(TABLE)
    if table is None or list(table.columns) != COLUMNS:
        raise columns.damage(path, "it has other columns")
    rows = Thumbnails(**table.columns)  # type: ignore[arg-type]
    if not isinstance(rows.paths, Strings) or not isinstance(rows.thumbnails, Strings):
        raise columns.damage(path, "its strings have another type")
    for column in (rows.sizes, rows.mtimes):
        if not isinstance(column, np.ndarray) or column.dtype != np.int64 or column.ndim != 1:
            raise columns.damage(path, "its numbers have another type")
    if rows.paths.length() > _OVERLAPS * len(rows.paths.data):
        raise columns.damage(path, "the offsets of paths")
    return File(path, rows, table)


class _Wanted:
    """Images to look for in files of thumbnails: the same path, size and time of modification is the same image."""

    def __init__(self, paths: Strings, sizes: np.ndarray, mtimes: np.ndarray):
        self._lookup, self._sizes, self._mtimes = Lookup(paths), sizes, mtimes
        self._times = np.unique(mtimes)

    def among(self, rows: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
        """The rows (int64 [n]) that show one of the images, and which (int64 [n], ascending): each at most once.

        Damaged offsets of paths do no harm.
        """
        if not len(self._times):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # A handful of images among millions of thumbnails: most need no look at their paths.
        at = np.minimum(np.searchsorted(self._times, rows.mtimes), len(self._times) - 1)
        likely = np.flatnonzero((self._times[at] == rows.mtimes) & ~rows.paths.misplaced())
        images = self._lookup.find(rows.paths.take(likely), _ABSENT)
        same = images != _ABSENT
        same &= (self._sizes[images] == rows.sizes[likely]) & (self._mtimes[images] == rows.mtimes[likely])
        images, first = np.unique(images[same], return_index=True)
        return likely[same][first], images


def _take(column: np.ndarray | Strings, rows: np.ndarray) -> np.ndarray | Strings:
    return column.take(rows) if isinstance(column, Strings) else column[rows]


def _is_small_jpeg(content: bytes) -> bool:
    """Whether these bytes start as a JPEG of few pixels, by its frame header (ITU-T T.81, B.2.2)."""
    place = 2
    while content[:2] == b"\xff\xd8" and place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sides = (int.from_bytes(content[place + start : place + start + 2], "big") for start in (5, 7))
            return all(1 <= side <= _MOST_PIXELS for side in sides)
        if marker < 0xC0 or 0xD0 <= marker <= 0xDA:  # has no length, or comes after the frame
            return False
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False
