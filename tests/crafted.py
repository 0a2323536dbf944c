"""Files of a cache written anew by hand: sound HDF5, with contents that the cache itself would never write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from cache import columns, store
from cache.strings import Strings
from tests.test_cache import MODULE

ATTRIBUTES = {**MODULE.attributes(), "precision": "float32", "engine": "tensorflow"}


def files_of(directory: Path) -> list[Path]:
    """Its shards, its index, and its list of rejected images."""
    shards = [directory / "shards" / name for name in store.shard_names(directory)]
    return [*shards, directory / store.INDEX, directory / store.REJECTED]


def rewrite(path: Path, kind: str, change: Callable[[dict], None], attributes: Mapping[str, Any] = ATTRIBUTES) -> None:
    """Writes the file's tables anew, with true checksums, after `change` did something to the columns."""
    _, tables = columns.read(path, kind)
    parts = {name: dict(table.columns) for name, table in tables.items()}
    change(parts)
    parts = {
        name: [{n: np.array(c) if not isinstance(c, Strings) else c for n, c in part.items()}]
        for name, part in parts.items()
    }
    attributes = {**attributes, "image_dir": "/photos"} if kind == "index" else attributes
    columns.write(path, kind, attributes, parts)


def with_column(table: str, name: str, value: Any) -> Callable[[dict], None]:
    """A change for `rewrite`: another column."""

    def change(parts):
        parts[table][name] = value

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
    shape: tuple[int, ...], kind: type = np.float16, prepare: Callable = lambda options: None
) -> Callable[[h5py.File, str], None]:
    """Makes a dataset, for `craft`, for which no value is written."""

    def make_dataset(file, name):
        options = h5p.create(h5p.DATASET_CREATE)
        prepare(options)
        h5d.create(file.id, name.encode(), h5t.py_create(np.dtype(kind)), h5s.create_simple(shape), options)

    return make_dataset
