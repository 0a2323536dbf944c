"""Tables in HDF5 files: columns with a declared schema, and a checksum for each row.

Every HDF5 file of a cache is one such file. `FORMAT.md` is the promise that this module keeps.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from isal import isal_zlib  # zlib's own crc32 takes four times as long

from cache import files, hdf5
from cache.errors import REPAIR, CacheError, UnreadableError, damage
from cache.hdf5 import Attributes
from cache.strings import Strings

FORMAT = "bottleneck-cache"
VERSION = 2
CHECKSUMS = "_checksums"
OFFSETS = "_offsets"

_FLUSH_SECONDS = 0.01  # between two flushes of a file that is being written
_BLOCK = 1 << 16  # rows checksummed at a time: Python's integers take ten times the memory of an array's
_OVERLAPS = 8  # how many times strings may cover their column before `Table.damaged` believes none of them

Column = np.ndarray | Strings
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Numbers:
    """The type of a column of numbers: one of some dtypes, and its number of dimensions, rows included."""

    dtypes: tuple[type, ...]
    dimensions: int = 1


INT32, INT64, UINT64 = Numbers((np.int32,)), Numbers((np.int64,)), Numbers((np.uint64,))
STRINGS = None  # the type of a column of strings
Schema = Mapping[str, Numbers | None]  # the columns of a table, in the order in which they are checksummed


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of N rows each. The arrays are read-only maps of the file."""

    columns: Columns  # in the order in which they are checksummed
    checksums: np.ndarray  # uint32 [N], as they were written

    def __len__(self) -> int:
        return len(self.checksums)

    def damaged(self) -> np.ndarray:
        """int64 [M]: the rows that differ from their checksums, and those with a NaN or an infinity.

        No writer of ours stores such a number, but its checksum may be right, and one of them spoils a whole training.
        """
        bad = [np.zeros(0, np.int64)]
        # Damaged offsets can make every one of many strings as long as the whole column, which would take for ever.
        bytes_left = {name: _OVERLAPS * len(c.data) for name, c in self.columns.items() if isinstance(c, Strings)}
        for begin in range(0, len(self), _BLOCK):
            end = min(begin + _BLOCK, len(self))
            block = {name: column[begin:end] for name, column in self.columns.items()}
            for name in bytes_left:
                bytes_left[name] -= block[name].length()  # type: ignore[union-attr]
            if min(bytes_left.values(), default=0) < 0:
                bad.append(np.arange(begin, len(self)))
                break
            differ = checksums(block) != self.checksums[begin:end]
            for column in block.values():
                differ |= column.misplaced() if isinstance(column, Strings) else _not_finite(column)
            bad.append(begin + np.flatnonzero(differ))
        return np.concatenate(bad)


def write(
    path: Path,
    kind: str,
    attributes: Attributes,
    schemas: Mapping[str, Schema],
    tables: Mapping[str, Sequence[Columns]],
) -> None:
    """Writes `tables`, which have the `schemas` of the same names, as the file `path`. It appears whole or not at all.

    Each table comes in parts, whose rows are written one after the other. Raises UserError when the disk is full or the
    folder cannot be written; then nothing is left behind.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    covers = {}
    tables = {name: [_with_types(schemas[name], part) for part in parts] for name, parts in tables.items()}
    for table, parts in tables.items():
        covers[table + CHECKSUMS] = {"covers": " ".join(parts[0])}
        arrays[table + CHECKSUMS] = [np.zeros(len(next(iter(part.values()))), np.uint32) for part in parts]
        for name, column in parts[0].items():
            if isinstance(column, Strings):
                joined = Strings.concatenate([part[name] for part in parts])  # type: ignore[misc]
                arrays[name], arrays[name + OFFSETS] = [joined.data], [joined.offsets]
            else:
                arrays[name] = [np.ascontiguousarray(part[name]) for part in parts]
    root_attributes = {**attributes, "format": FORMAT, "version": VERSION, "kind": kind}
    structures, offsets, size = hdf5.structures(root_attributes, arrays, covers)
    footer = hdf5.footer(structures)
    # The operating system writes the arrays, not HDF5. Nothing is copied, and a full disk fails in one place with a
    # plain errno. HDF5 would report it from wherever it happens to flush, its own clean-up included.
    with files.replacing(path) as file, ThreadPoolExecutor(2, "write") as threads:
        file.write(structures)
        file.seek(size)
        file.write(footer)
        file.flush()
        # Checksums, copying to the system's memory and the disk take about as long, so they run at the same time.
        writing = threads.submit(hdf5.write_arrays, file, [(offsets[name], arrays[name]) for name in offsets])
        flushing = threads.submit(_flush_until_done, file, writing)
        sums = {table + CHECKSUMS: [checksums(part) for part in parts] for table, parts in tables.items()}
        writing.result()
        flushing.result()
        hdf5.write_arrays(file, [(offsets[name], parts) for name, parts in sums.items() if name in offsets])


def _with_types(schema: Schema, columns: Columns) -> Columns:
    """The columns in the order of the schema, numbers converted to its dtype if there is only one."""
    converted: dict[str, Column] = {}
    for name, numbers in schema.items():
        column = columns[name]
        if numbers is not None and isinstance(column, np.ndarray) and len(numbers.dtypes) == 1:
            column = column.astype(numbers.dtypes[0], copy=False)
        converted[name] = column
    return converted


def _flush_until_done(file: IO[bytes], writing: Future[None]) -> None:
    """Sends what is written already to the disk, again and again until `writing` ends. Raises OSError."""
    while wait([writing], _FLUSH_SECONDS).not_done:
        getattr(os, "fdatasync", os.fsync)(file.fileno())  # macOS has no fdatasync


def read(
    path: Path,
    kind: str,
    schemas: Mapping[str, Schema],
    attributes: Iterable[str] = (),
    remedy: str = REPAIR,
) -> tuple[Attributes, dict[str, Table]]:
    """The `attributes` of a file that `write` made, as far as it has them, and its tables of the names in `schemas`.

    Checks the structure and the types, not the rows: `Strings.is_sound` and `Table.damaged` do. Raises CacheError for a
    file that is missing, damaged, of another kind or format, or newer than this reader; it names the `remedy`.
    """
    try:
        with hdf5.reading(path, remedy) as file:
            found = hdf5.attributes(file, ["format", "version", "kind", *attributes])
            _check_kind(path, found, kind, remedy)
            arrays = hdf5.arrays(file, [name for table, schema in schemas.items() for name in _arrays(table, schema)])
            covers = {table: hdf5.attributes(file[table + CHECKSUMS], ["covers"])["covers"] for table in schemas}
            tables = {table: _table(table, schema, covers[table].split(), arrays) for table, schema in schemas.items()}
    except FileNotFoundError:
        raise CacheError(f"{path} is missing; copy it again, or {remedy}") from None
    return found, tables


def _arrays(table: str, schema: Schema) -> Iterator[str]:
    """The names of the arrays that make a table."""
    yield table + CHECKSUMS
    for name, numbers in schema.items():
        yield name
        if numbers is STRINGS:
            yield name + OFFSETS


def check_rows(path: Path, table: Table, remedy: str = REPAIR) -> None:
    """Raises CacheError where rows of a `table` of the file `path` differ from their checksums or are not finite.

    Call it before writing the rows to another file: their new checksums would hide the damage.
    """
    if len(table.damaged()):
        raise damage(path, "rows differ from their checksums or are not finite", remedy)


def checksums(columns: Columns) -> np.ndarray:
    """CRC-32 (zlib's) of each row: its bytes in every column, one column after the other. uint32 [N]."""
    count = len(next(iter(columns.values())))
    sums = np.zeros(count, np.uint32)
    for start in range(0, count, _BLOCK):
        block = [column[start : start + _BLOCK] for column in columns.values()]
        crcs = [0] * len(block[0])
        for column in _side_by_side(block):
            crcs = list(map(isal_zlib.crc32, _row_bytes(column), crcs))
        sums[start : start + _BLOCK] = crcs
    return sums


def _side_by_side(columns: Iterable[Column]) -> Iterator[Column]:
    """The columns, adjacent ones of single numbers joined to one: a call costs as much as a hundred bytes."""
    narrow: list[np.ndarray] = []
    for column in columns:
        if isinstance(column, np.ndarray) and column.ndim == 1:
            narrow.append(np.ascontiguousarray(column).view(np.uint8).reshape(len(column), column.itemsize))
            continue
        if narrow:
            yield np.concatenate(narrow, axis=1)
        narrow = []
        yield column
    if narrow:
        yield np.concatenate(narrow, axis=1)


def _not_finite(column: np.ndarray) -> np.ndarray:
    """bool [N]: which rows hold a NaN or an infinity: the exponent has all its bits set (IEEE 754)."""
    if column.dtype.kind != "f":
        return np.zeros(len(column), bool)
    # On float16, which processors do not compute with, numpy's isfinite takes ten times as long.
    exponent = np.array(np.inf, column.dtype).view(f"u{column.itemsize}")
    bits = np.ascontiguousarray(column).view(exponent.dtype)
    return ((bits & exponent) == exponent).reshape(len(column), -1).any(1)


def _row_bytes(column: Column) -> Iterable[memoryview | np.ndarray]:
    if isinstance(column, Strings):
        # Damage can make offsets negative, which Python would count from the end.
        ends = np.maximum(column.offsets, 0).tolist()
        return map(column.data.data.__getitem__, itertools.starmap(slice, itertools.pairwise(ends)))
    return np.ascontiguousarray(column).reshape(len(column), math.prod(column.shape[1:])).view(np.uint8)


def _check_kind(path: Path, attributes: Attributes, kind: str, remedy: str) -> None:
    if attributes.get("format") != FORMAT:
        source = "give the folder that `extract` filled" if remedy == REPAIR else remedy
        raise CacheError(f"{path} is no file of a bottleneck cache; {source}")
    if attributes["version"] > VERSION:
        raise UnreadableError(
            f"{path} has cache format {attributes['version']}, newer than format {VERSION} that this version "
            "reads; update this program"
        )
    if attributes["version"] != VERSION:
        raise ValueError(f"format {attributes['version']}, which was never released")
    if attributes["kind"] != kind:
        raise CacheError(f"{path} is no {kind} of a cache; {remedy}")


def _table(table: str, schema: Schema, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Table:
    """Raises ValueError or KeyError where the arrays do not form that table."""
    if list(names) != list(schema):
        raise ValueError(f"{table} has other columns")
    columns = {name: _column(name, numbers, arrays) for name, numbers in schema.items()}
    stored = arrays[table + CHECKSUMS]
    if (stored.dtype, stored.ndim) != (np.uint32, 1) or {len(column) for column in columns.values()} != {len(stored)}:
        raise ValueError(f"the columns of {table} disagree")
    return Table(columns, stored)


def _column(name: str, numbers: Numbers | None, arrays: Mapping[str, np.ndarray]) -> Column:
    if name not in arrays:
        raise ValueError(f"{name} is missing")
    array, offsets = arrays[name], arrays.get(name + OFFSETS)
    if numbers is None and offsets is not None and _are_strings(array, offsets):
        return Strings(array, offsets)
    if numbers is not None and offsets is None and array.dtype in numbers.dtypes and array.ndim == numbers.dimensions:
        return array
    raise ValueError(f"{name} has another type")


def _are_strings(data: np.ndarray, offsets: np.ndarray) -> bool:
    """Whether two arrays have the types of a column of strings: N strings have N + 1 offsets."""
    data_type, offsets_type = (data.dtype, data.ndim), (offsets.dtype, offsets.ndim)
    return data_type == (np.uint8, 1) and offsets_type == (np.int64, 1) and len(offsets) > 0
