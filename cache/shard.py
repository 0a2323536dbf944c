"""One shard: bottlenecks in an HDF5 file that is written once and mapped on reading."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cache import columns
from cache.columns import Table
from cache.strings import Strings

SUFFIX = ".h5"
TABLE = "rows"


@dataclass(frozen=True)
class Rows:
    """Bottlenecks and what each was made from. All columns have N rows."""

    # The bottlenecks last: they are most of a file, and a file that was cut off has lost its last rows only.
    paths: Strings  # below image_dir, when the row was made
    sizes: np.ndarray  # int64 [N], bytes of the file
    mtimes: np.ndarray  # int64 [N], when the file was last modified, nanoseconds
    fingerprints: np.ndarray  # uint64 [N], FarmHash Fingerprint64 of the file's bytes
    bottlenecks: np.ndarray  # float16 or float32 [N, D]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> Rows:
        """Those at `rows` (int [M]), in that order."""
        arrays = {name: getattr(self, name)[rows] for name in NUMBERS}
        return Rows(self.paths.take(rows), **arrays)


NUMBERS = {"sizes": np.int64, "mtimes": np.int64, "fingerprints": np.uint64, "bottlenecks": None}
COLUMNS = [field.name for field in fields(Rows)]


@dataclass(frozen=True)
class Shard:
    """A shard as it lies on disk; its arrays are read-only maps of the file."""

    path: Path
    attributes: Mapping[str, Any]
    rows: Rows
    table: Table  # the same with the rows' checksums

    def __len__(self) -> int:
        return len(self.rows)


def write(directory: Path, attributes: Mapping[str, Any], parts: Sequence[Rows], end: str | None = None) -> str:
    """Commits rows as a new shard in `directory`; returns its file name, which ends in `end`, as `own_end` makes one.

    The rows of all `parts`, which have the same D and dtype, one after the other. Raises UserError when it cannot be
    written; then nothing is left behind.
    """
    name = new_name(end)
    columns.write(directory / name, "shard", attributes, {TABLE: [_columns(part) for part in parts]})
    return name


def new_name(end: str | None = None) -> str:
    """A file name that no other has: the time first, so that a listing shows the order of work; then `end`, random, so
    that writers never meet."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}{end or own_end()}"


def own_end() -> str:
    """The end of a file name that no other writer's shards have."""
    return f"-{secrets.token_hex(4)}{SUFFIX}"


def read(path: Path) -> Shard:
    """Opens a shard; its rows are not compared with their checksums.

    Raises CacheError for one that is missing, damaged, or newer than this reader.
    """
    attributes, tables = columns.read(path, "shard")
    table = tables.get(TABLE)
    if table is None or list(table.columns) != COLUMNS:
        raise columns.damage(path, "it has other columns")
    opened = Shard(path, attributes, Rows(**table.columns), table)  # type: ignore[arg-type]
    if not isinstance(opened.rows.paths, Strings):
        raise columns.damage(path, "paths has another type")
    for name, kind in NUMBERS.items():
        column = getattr(opened.rows, name)
        kinds, dimensions = ([np.float16, np.float32], 2) if kind is None else ([kind], 1)
        if not isinstance(column, np.ndarray) or column.dtype not in kinds or column.ndim != dimensions:
            raise columns.damage(path, f"{name} has another type")
    if attributes.get("dimension") != opened.rows.bottlenecks.shape[1]:
        raise columns.damage(path, "its vectors have another length")
    return opened


def check(opened: Shard) -> Shard:
    """The same shard. Raises CacheError where its strings cannot be cut out of their column."""
    if not opened.rows.paths.is_sound():
        raise columns.damage(opened.path, "the offsets of paths")
    return opened


def _columns(rows: Rows) -> columns.Columns:
    numbers = {
        name: getattr(rows, name) if kind is None else getattr(rows, name).astype(kind, copy=False)
        for name, kind in NUMBERS.items()
    }
    return {"paths": rows.paths, **numbers}
