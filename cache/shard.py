"""A shard: bottlenecks in an HDF5 file that is written once and mapped on reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache import table
from cache.errors import damage
from cache.files import own_folder
from cache.layout import BACKBONE_ATTRIBUTES, SHARDS, BackboneInfo, new_name
from cache.photos import LISTED, when_listed
from cache.strings import Strings
from cache.table import INT64, STRINGS, UINT64, Numbers, Schema, Table

# The bottlenecks last: they are most of a file, and a file that was cut off has lost its last rows only.
SCHEMAS: dict[str, Schema] = {
    "rows": {
        "paths": STRINGS,
        "sizes": INT64,
        "mtimes": INT64,
        "fingerprints": UINT64,
        "bottlenecks": Numbers((np.float16, np.float32), dimensions=2),
    }
}
ATTRIBUTES = [*BACKBONE_ATTRIBUTES, "precision", "engine", LISTED]
COLUMNS = SCHEMAS["rows"]
NUMBERS = [name for name, kind in COLUMNS.items() if kind is not STRINGS]


@dataclass(frozen=True, eq=False)
class Rows:
    """Bottlenecks and what each was made from. All columns have N rows."""

    paths: Strings  # below image_dir, when the row was made
    sizes: np.ndarray  # int64 [N], bytes of the file
    mtimes: np.ndarray  # int64 [N], when the file was last modified, nanoseconds
    fingerprints: np.ndarray  # uint64 [N], FarmHash Fingerprint64 of the file's bytes
    bottlenecks: np.ndarray  # float16 or float32 [N, D]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: np.ndarray) -> Rows:
        """The rows at `rows` (int [M]), in that order."""
        return Rows(self.paths.take(rows), **{name: getattr(self, name)[rows] for name in NUMBERS})


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard on disk; its arrays are read-only maps of the file."""

    path: Path
    attributes: Mapping[str, Any]
    rows: Rows
    table: Table  # the same with the rows' checksums

    @property
    def listed(self) -> int:
        """When its photos were listed, nanoseconds, as in `Photos`."""
        return when_listed(self.path, self.attributes)

    def __len__(self) -> int:
        return len(self.rows)


def write(directory: Path, attributes: Mapping[str, Any], parts: Sequence[Rows], ending: str | None = None) -> str:
    """Commits rows as a new shard in the folder `directory`; returns its file name.

    The rows of all `parts`, which have the same D and dtype, are written one after the other. `ending` is of
    `layout.own_ending`. Raises UserError when the shard cannot be written; then nothing is left behind.
    """
    name = new_name(ending)
    table.write(directory / name, "shard", dict(attributes), SCHEMAS, {"rows": [vars(part) for part in parts]})
    return name


def read(path: Path) -> Shard:
    """Opens a shard; its rows are not compared with their checksums.

    Raises CacheError for one that is missing, damaged, or newer than this reader.
    """
    attributes, tables = table.read(path, "shard", SCHEMAS, ATTRIBUTES)
    rows = Rows(**tables["rows"].columns)  # type: ignore[arg-type]
    if attributes.get("dimension") != rows.bottlenecks.shape[1]:
        raise damage(path, "its vectors have another length")
    return Shard(path, attributes, rows, tables["rows"])


def check(shard: Shard) -> Shard:
    """The same shard. Raises CacheError where its strings cannot be cut out of their column."""
    if not shard.rows.paths.is_sound():
        raise damage(shard.path, "the offsets of paths")
    return shard


def open_in(directory: Path, name: str, info: BackboneInfo) -> Shard:
    """The shard `name` of a folder of bottlenecks.

    Raises CacheError where it is missing, damaged, or made by another backbone than `info`.
    """
    shard = check(read(own_folder(directory, SHARDS) / name))
    if BackboneInfo.of(shard.path, shard.attributes).fingerprint != info.fingerprint:
        raise damage(shard.path, "made by another backbone")
    return shard
