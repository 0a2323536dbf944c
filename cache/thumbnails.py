"""Thumbnails: small pictures of the photos beside their bottlenecks, for machines that do not have the photos."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import hdf5, table, writer
from cache.errors import CacheError, UserError, damage, first_line
from cache.index import Index
from cache.layout import THUMBNAILS, committed_names, new_name
from cache.strings import ABSENT, Lookup, Strings
from cache.table import INT64, STRINGS, Schema, Table

if TYPE_CHECKING:
    from cache.reader import Cache

KIND = "thumbnails"
SIDE = 96  # pixels of a thumbnail's longer side, or fewer where the photo has fewer
SCHEMAS: dict[str, Schema] = {"rows": {"paths": STRINGS, "sizes": INT64, "mtimes": INT64, "thumbnails": STRINGS}}
COLUMNS = SCHEMAS["rows"]

# Anything larger was not made by this program, and could fill a reader's memory.
_MOST_BYTES = 1 << 16
_MOST_PIXELS = 1024  # of either side
_OVERLAPS = 2  # how many times paths may cover their column: one damaged offset makes two paths overlap, not many


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails and what each was made from. All columns have N rows."""

    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes of the photo's file
    mtimes: np.ndarray  # int64 [N], when the file was last modified, nanoseconds
    thumbnails: Strings  # JPEG files

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> Thumbnails:
        """The rows at `rows` (int [M]), in that order."""
        return Thumbnails(**{name: _take(getattr(self, name), rows) for name in COLUMNS})  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class File:
    """A file of thumbnails on disk; its arrays are read-only maps of it."""

    path: Path
    rows: Thumbnails
    table: Table  # the same with the rows' checksums

    def __len__(self) -> int:
        return len(self.table)


def find(cache: Cache, rows: np.ndarray) -> list[bytes | None]:
    """For each of `rows` (int [M], rows of the index) the bytes of a small JPEG file; None where there is none.

    A thumbnail that is damaged, or no small JPEG, counts as none, and so does a whole file that cannot be read.
    """
    photos, where = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    index, jpegs = cache.index, np.full(len(photos), None, object)
    wanted = _Wanted(index.paths.take(photos), index.sizes[photos], index.mtimes[photos])
    seen: set[str] = set()
    # Compacting replaces files, so the folder is listed again until nothing new appears.
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
            candidates = file.rows.take(at)  # bounded: each photo at most once, and few bytes each
            is_sound = table.checksums(vars(candidates)) == file.table.checksums[at]
            for place, content, sound in zip(places.tolist(), candidates.thumbnails.encoded(), is_sound, strict=True):
                if sound and is_small_jpeg(content):
                    jpegs[place] = content
    return jpegs[where].tolist()


def missing(directory: Path, index: Index) -> np.ndarray:
    """int64 [M]: the photos of `index` that have no thumbnail in `directory`. Checksums are not compared.

    Raises CacheError for a file of thumbnails that is damaged, or newer than this version.
    """
    has_one = np.zeros(len(index), bool)
    for _, _, photos in used(directory, index):
        has_one[photos] = True
    return np.flatnonzero(~has_one)


def used(directory: Path, index: Index) -> Iterator[tuple[File, np.ndarray, np.ndarray]]:
    """Each file of thumbnails in `directory`, its rows that are used (int64 [n]), and the photos of `index` they show.

    Each photo once: a copy in a later file is not used. Raises CacheError as `missing` does.
    """
    found = names(directory)
    if not found:
        return
    hdf5.allow_files(len(found))
    wanted, has_one = _Wanted(index.paths, index.sizes, index.mtimes), np.zeros(len(index), bool)
    for name in found:
        file = read(directory / THUMBNAILS / name)
        rows, photos = wanted.among(file.rows)
        is_first = ~has_one[photos]
        has_one[photos] = True
        yield file, rows[is_first], photos[is_first]


def drop(directory: Path, index: Index, photos: np.ndarray) -> None:
    """Deletes the thumbnails of `photos` (int64 [n], rows of `index`). Raises CacheError as `missing` does."""
    unwanted = _Wanted(index.paths.take(photos), index.sizes[photos], index.mtimes[photos])
    for name in names(directory) if len(photos) else ():
        file = read(directory / THUMBNAILS / name)
        rows, _ = unwanted.among(file.rows)
        if not len(rows):
            continue
        table.check_rows(file.path, file.table)
        if len(kept := np.setdiff1d(np.arange(len(file)), rows)):
            write(directory, [file.rows.take(kept)])
        file.path.unlink()


def names(directory: Path) -> list[str]:
    """The names of the committed files of thumbnails, oldest first. Raises CacheError where their folder is a link."""
    return committed_names(directory, THUMBNAILS)


def _readable(directory: Path) -> list[str]:
    try:
        return names(directory)
    except (OSError, CacheError):  # a folder that may not be listed, or is a link
        return []


def of(index: Index, rows: np.ndarray, jpegs: Sequence[bytes]) -> Thumbnails:
    """Thumbnails of the photos at `rows` (int [n]) of `index`."""
    return Thumbnails(index.paths.take(rows), index.sizes[rows], index.mtimes[rows], Strings.of_encoded(list(jpegs)))


def write(directory: Path, parts: Sequence[Thumbnails], ending: str | None = None) -> str:
    """Commits the thumbnails of all `parts` as one new file in a backbone's folder, and returns its name.

    `ending` is of `layout.own_ending`. Raises UserError when it cannot be written; then nothing is left behind.
    """
    folder = directory / THUMBNAILS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}; choose another --cache_dir") from None
    name = new_name(ending)
    table.write(folder / name, KIND, {}, SCHEMAS, {"rows": [vars(part) for part in parts]})
    return name


def write_all(directory: Path, parts: Iterable[Thumbnails]) -> int:
    """Commits thumbnails as they come, at least every `writer.COMMIT_SECONDS`; returns how many.

    The rest is committed also after an error or Ctrl-C. Raises UserError when it cannot be written.
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
    _, tables = table.read(path, KIND, SCHEMAS)
    rows = Thumbnails(**tables["rows"].columns)  # type: ignore[arg-type]
    if rows.paths.length() > _OVERLAPS * len(rows.paths.data):
        raise damage(path, "the offsets of paths")
    return File(path, rows, tables["rows"])


class _Wanted:
    """Photos to look for in files of thumbnails: the same path, size and mtime is the same photo."""

    def __init__(self, paths: Strings, sizes: np.ndarray, mtimes: np.ndarray):
        self._lookup, self._sizes, self._mtimes = Lookup(paths), sizes, mtimes
        self._times = np.unique(mtimes)

    def among(self, rows: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
        """The rows (int64 [n]) that show one of the photos, and which one (int64 [n], ascending), each at most once.

        Damaged offsets of paths do no harm.
        """
        if not len(self._times):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        # For a handful of photos among millions of thumbnails, comparing mtimes first spares most paths a look.
        at = np.minimum(np.searchsorted(self._times, rows.mtimes), len(self._times) - 1)
        likely = np.flatnonzero((self._times[at] == rows.mtimes) & ~rows.paths.misplaced())
        photos = self._lookup.find(rows.paths.take(likely))
        same = photos != ABSENT
        same &= (self._sizes[photos] == rows.sizes[likely]) & (self._mtimes[photos] == rows.mtimes[likely])
        photos, first = np.unique(photos[same], return_index=True)
        return likely[same][first], photos


def _take(column: np.ndarray | Strings, rows: np.ndarray) -> np.ndarray | Strings:
    return column.take(rows) if isinstance(column, Strings) else column[rows]


def is_small_jpeg(content: bytes) -> bool:
    """Whether these are few bytes that start as a JPEG of few pixels, by its frame header (ITU-T T.81, B.2.2)."""
    if len(content) > _MOST_BYTES:
        return False
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
