"""The index: today's labelled view of a folder of photos, and where the bottleneck of each photo lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from cache import table
from cache.errors import damage
from cache.layout import BACKBONE_ATTRIBUTES, INDEX, BackboneInfo, is_committed_name
from cache.photos import LISTED, LONG_AFTER, when_listed
from cache.strings import Strings
from cache.table import INT32, INT64, STRINGS, Schema, Table

SCHEMAS: dict[str, Schema] = {
    "labels": {"labels": STRINGS},
    "shards": {"shards": STRINGS},
    "images": {
        "paths": STRINGS,
        "sizes": INT64,
        "mtimes": INT64,
        "label_ids": INT32,
        "shard_ids": INT32,
        "shard_rows": INT32,
    },
}


@dataclass(frozen=True, eq=False)
class Index:
    """The content of an index. The columns of photos have N rows."""

    image_dir: str
    labels: Sequence[str]  # class names, sorted
    shards: Sequence[str]  # file names of all shards that were there, used or not
    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes
    mtimes: np.ndarray  # int64 [N], nanoseconds
    label_ids: np.ndarray  # int32 [N], into labels
    shard_ids: np.ndarray  # int32 [N], into shards
    shard_rows: np.ndarray  # int32 [N], the row in that shard
    listed: int = LONG_AFTER  # nanoseconds, as in `Photos`

    def __len__(self) -> int:
        return len(self.paths)

    def same_view(self, other: Index) -> bool:
        """Whether two indexes say the same of the same photos, which may have been listed at another time."""
        numbers = [name for name, kind in SCHEMAS["images"].items() if kind is not STRINGS]
        return (
            (self.image_dir, list(self.labels), list(self.shards))
            == (other.image_dir, list(other.labels), list(other.shards))
            and self.paths.equals(other.paths)
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in numbers)
        )


def read(directory: Path) -> tuple[BackboneInfo, Index]:
    """The index in `directory` and the backbone that it was made with; its rows are not compared with their checksums.

    Raises CacheError where it is missing, damaged or newer than this version.
    """
    info, index, _ = read_table(directory)
    check_labels(directory, index)
    return info, index


def read_table(directory: Path) -> tuple[BackboneInfo, Index, Table]:
    """The same with the table of photos, whose numbers and paths are not checked at all."""
    path = directory / INDEX
    attributes, tables = table.read(path, "index", SCHEMAS, [*BACKBONE_ATTRIBUTES, "image_dir", LISTED])
    names: dict[str, list[str]] = {}
    # There are few labels and shards, and a wrong name would make many photos wrong.
    for kind in ("labels", "shards"):
        column = tables[kind].columns[kind]
        assert isinstance(column, Strings)
        if not column.is_sound() or len(tables[kind].damaged()):
            raise damage(path, kind)
        names[kind] = list(column)
        if len(set(names[kind])) < len(names[kind]):
            raise damage(path, f"{kind} names one twice")
    if any("/" in name or "\0" in name or not is_committed_name(name) for name in names["shards"]):
        raise damage(path, "it names a shard outside its folder")
    if "image_dir" not in attributes:
        raise damage(path, "the attribute image_dir")
    index = Index(
        str(attributes["image_dir"]),
        **names,  # type: ignore[arg-type]
        **tables["images"].columns,  # type: ignore[arg-type]
        listed=when_listed(path, attributes),
    )
    return BackboneInfo.of(path, attributes), index, tables["images"]


def check_labels(directory: Path, index: Index) -> None:
    """Raises CacheError where the path of a photo cannot be read, or its label is none of the labels."""
    if not index.paths.is_sound():
        raise damage(directory / INDEX, "the offsets of paths")
    if len(index.label_ids) and not (index.label_ids.min() >= 0 and index.label_ids.max() < len(index.labels)):
        raise damage(directory / INDEX, "label_ids")


def points_inside(index: Index, lengths: np.ndarray) -> np.ndarray:
    """bool [N]: whether each photo's bottleneck lies inside its shard; `lengths` int64 [S], rows of the shards."""
    inside = (index.shard_ids >= 0) & (index.shard_ids < len(lengths)) & (index.shard_rows >= 0)
    if len(lengths):
        inside &= index.shard_rows < lengths[np.clip(index.shard_ids, 0, len(lengths) - 1)]
    return inside


def write(directory: Path, info: BackboneInfo, index: Index) -> None:
    """Replaces the index in `directory` atomically. Raises UserError when it cannot be written."""
    attributes = {**info.attributes(), "image_dir": index.image_dir, LISTED: index.listed}
    columns = {field.name: getattr(index, field.name) for field in fields(index)}
    columns |= {kind: Strings.of(columns[kind]) for kind in ("labels", "shards")}
    tables = {name: [{column: columns[column] for column in schema}] for name, schema in SCHEMAS.items()}
    table.write(directory / INDEX, "index", attributes, SCHEMAS, tables)
