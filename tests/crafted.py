"""Files of a cache rewritten by hand: sound HDF5, with contents that the cache itself would never write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from cache import index as indexes
from cache import layout, shard, table, thumbnails
from cache.strings import Strings
from cache.table import Columns, Numbers, Schema
from tests.random_cache import ATTRIBUTES, shard_paths

SCHEMAS = {"index": indexes.SCHEMAS, "shard": shard.SCHEMAS, thumbnails.KIND: thumbnails.SCHEMAS}
Change = Callable[[dict[str, dict[str, Any]]], None]  # changes the columns of tables, by the names of both


def files_of(directory: Path) -> list[Path]:
    """Its shards, its index, and its list of rejected photos."""
    return [*shard_paths(directory), directory / layout.INDEX, directory / layout.REJECTED]


def rewrite(path: Path, kind: str, change: Change, attributes: Mapping[str, Any] = ATTRIBUTES) -> None:
    """Writes the file's tables anew, with true checksums, after `change` did something to their columns.

    The columns need not fit the schema of that kind of file.
    """
    _, tables = table.read(path, kind, SCHEMAS[kind])
    columns = {name: dict(one.columns) for name, one in tables.items()}
    change(columns)
    parts = {
        name: {n: c if isinstance(c, Strings) else np.array(c) for n, c in part.items()}
        for name, part in columns.items()
    }
    attributes = {**attributes, "image_dir": "/photos"} if kind == "index" else attributes
    schemas = {name: _schema_of(part) for name, part in parts.items()}
    table.write(path, kind, dict(attributes), schemas, {name: [part] for name, part in parts.items()})


def _schema_of(columns: Columns) -> Schema:
    return {name: None if isinstance(c, Strings) else Numbers((c.dtype.type,), c.ndim) for name, c in columns.items()}


def with_column(table: str, name: str, value: Any) -> Change:
    """A change for `rewrite`: another column."""

    def change(columns: dict[str, dict[str, Any]]) -> None:
        columns[table][name] = value

    return change


def craft(path: Path, array: str, make_dataset: Callable[[h5py.File, str], object]) -> None:
    """Replaces an array by what `make_dataset` puts in its place; the structures are HDF5's own, and sound."""
    with h5py.File(path, "r+") as file:
        covers = dict(file[array].attrs)
        del file[array]
        make_dataset(file, array)
        for name, value in covers.items():
            file[array].attrs[name] = value


def low_level(
    shape: tuple[int, ...], dtype: type = np.float16, prepare: Callable[[h5p.PropDCID], object] | None = None
) -> Callable[[h5py.File, str], None]:
    """Makes a dataset, for `craft`, for which no value is written. `prepare` sets options of its creation."""

    def make_dataset(file: h5py.File, name: str) -> None:
        options = h5p.create(h5p.DATASET_CREATE)
        if prepare:
            prepare(options)
        h5d.create(file.id, name.encode(), h5t.py_create(np.dtype(dtype)), h5s.create_simple(shape), options)

    return make_dataset
