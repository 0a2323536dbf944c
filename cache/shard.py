"""One shard: bottlenecks in an HDF5 file that is written once and mapped on reading."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cache import columns
from cache.columns import Strings
from cache.errors import CacheError

SUFFIX = ".h5"


@dataclass(frozen=True)
class Rows:
    """Bottlenecks and what each was made from. All columns have N rows."""

    bottlenecks: np.ndarray  # float16 or float32 [N, D]
    paths: Strings  # below image_dir, when the row was made
    sizes: np.ndarray  # int64 [N], bytes of the file
    mtimes: np.ndarray  # int64 [N], when the file was last modified, nanoseconds
    fingerprints: np.ndarray  # uint64 [N], FarmHash Fingerprint64 of the file's bytes


@dataclass(frozen=True)
class Shard:
    """A shard as it lies on disk; its arrays are read-only maps of the file."""

    path: Path
    attributes: Mapping[str, Any]
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows.bottlenecks)


def write(directory: Path, attributes: Mapping[str, Any], rows: Rows) -> str:
    """Commits `rows` as a new shard in `directory`; returns its file name, which no other writer uses.

    Raises UserError when it cannot be written; then nothing is left behind.
    """
    # The time first, so that a listing shows the order of work; the random part, so that writers never meet.
    now = datetime.now(UTC)
    name = f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}{SUFFIX}"
    columns.write(
        directory / name,
        "shard",
        attributes,
        {
            "bottlenecks": rows.bottlenecks,
            "paths": rows.paths,
            "sizes": rows.sizes.astype(np.int64, copy=False),
            "mtimes": rows.mtimes.astype(np.int64, copy=False),
            "fingerprints": rows.fingerprints.astype(np.uint64, copy=False),
        },
    )
    return name


def read(path: Path) -> Shard:
    """Opens a shard. Raises CacheError for one that is missing, damaged, or newer than this reader."""
    attributes, arrays = columns.read(path, "shard")
    try:
        rows = Rows(
            arrays["bottlenecks"],
            columns.strings(arrays, "paths"),
            arrays["sizes"],
            arrays["mtimes"],
            arrays["fingerprints"],
        )
    except KeyError as missing:
        raise CacheError(f"{path} is damaged (no {missing}); delete it and run the extraction again") from None
    lengths = {len(rows.bottlenecks), len(rows.paths), len(rows.sizes), len(rows.mtimes), len(rows.fingerprints)}
    if rows.bottlenecks.ndim != 2 or rows.bottlenecks.dtype.kind != "f" or len(lengths) != 1:
        raise CacheError(f"{path} is damaged (its columns disagree); delete it and run the extraction again")
    return Shard(path, attributes, rows)
