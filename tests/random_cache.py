"""Folders of random bottlenecks, written through the cache's own interface and without any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import cache
from cache import index as indexes
from cache import layout, manifest, rejected, shard
from cache.index import Index
from cache.rejected import Rejected
from cache.shard import Rows
from cache.strings import Strings
from cache.table import STRINGS
from cache.writer import Writer

NAME = "tiny-0123456789abcdef"  # of a backbone's folder
DIMENSION = 6
BACKBONE = layout.BackboneInfo("tiny", "tiny at its own size", "0123456789abcdef", 16, 20, "none", DIMENSION)
ATTRIBUTES = {**BACKBONE.attributes(), "precision": "float32", "engine": "tensorflow"}  # of its shards
REJECTED = [Rejected('a/quote " and,\nline.jpg', 12, 34, "broken"), Rejected("b/ü.jpg", 0, -1, "gone")]
COUNT = 2000  # rows that fill more than a page in most columns
_INDEX_NUMBERS = [name for name, kind in indexes.SCHEMAS["images"].items() if kind is not STRINGS]


def rows(count: int, seed: int, dtype: str = "float16") -> Rows:
    """Rows that differ from those of another seed, of photos of class 0 or 1."""
    random = np.random.default_rng(seed)
    return Rows(
        Strings.of(f"class {seed % 2}/{seed}-{i}.jpg" for i in range(count)),
        random.integers(1, 10**6, count),
        random.integers(1, 2**62, count),
        random.integers(0, 2**64, count, np.uint64),
        random.normal(size=(count, DIMENSION)).astype(dtype),
    )


def fill(directory: Path, parts: Sequence[Rows], backbone: layout.BackboneInfo = BACKBONE) -> tuple[Index, np.ndarray]:
    """Writes one shard for each of `parts`, and an index over all rows in random order.

    Returns the index and the bottlenecks [N, D] in its order.
    """
    with Writer(directory, ATTRIBUTES | backbone.attributes()) as writer:
        for part in parts:
            writer.append(part)
            writer.commit()
    whole = Rows(
        Strings.concatenate([part.paths for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in shard.NUMBERS},
    )
    shard_ids = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    shard_rows = np.concatenate([np.arange(len(part)) for part in parts])
    order = np.random.default_rng(0).permutation(len(shard_ids))
    index = Index(
        "/photos",
        ["class 0", "class 1"],
        layout.shard_names(directory),
        whole.paths.take(order),
        whole.sizes[order],
        whole.mtimes[order],
        np.array([int(path[6]) for path in whole.paths])[order],
        shard_ids[order],
        shard_rows[order],
    )
    indexes.write(directory, backbone, index)
    return index, whole.bottlenecks[order]


def fill_with_everything(directory: Path, counts: Sequence[int] = (5, 1, 7)) -> tuple[Index, np.ndarray]:
    """`fill`, and all else that a backbone's folder may hold. Its backbone is a stub, which nobody loads."""
    index, vectors = fill(directory, [rows(count, seed) for seed, count in enumerate(counts)])
    rejected.write(directory, REJECTED)
    (directory / layout.BACKBONE / "variables").mkdir(parents=True)
    (directory / layout.BACKBONE / "saved_model.pb").write_bytes(b"the network")
    (directory / layout.BACKBONE / "variables" / "data").write_bytes(b"its weights")
    manifest.write(directory / layout.BACKBONE)
    return index, vectors


def content(directory: Path) -> list[Any]:
    """All that the public functions say of a folder of bottlenecks, as values that can be compared."""
    opened = cache.open(directory)
    values = [
        opened.backbone,
        opened.labels,
        opened.label_ids.tolist(),
        list(opened.paths),
        opened.bottlenecks(np.arange(len(opened))).tobytes(),
        [(photos, vectors.tobytes()) for photos, vectors in opened.mapped()],
        opened.index.image_dir,
        *(getattr(opened.index, name).tolist() for name in _INDEX_NUMBERS),
        rejected.read(directory),
    ]
    for one in opened.shards:
        values += [one.path, dict(one.attributes), list(one.rows.paths)]
        values += [getattr(one.rows, name).tobytes() for name in shard.NUMBERS]
    return values


def take(index: Index, photos: np.ndarray) -> Index:
    """The index with only the photos at `photos` (int [M]), in that order."""
    numbers = {name: getattr(index, name)[photos] for name in _INDEX_NUMBERS}
    return replace(index, paths=index.paths.take(photos), **numbers)


def shard_paths(directory: Path) -> list[Path]:
    """The committed shards of a folder of bottlenecks, oldest first."""
    return [directory / layout.SHARDS / name for name in layout.shard_names(directory)]


def vectors_by_path(path: Path) -> dict[str, bytes]:
    """The bottleneck of each photo of a cache, by the photo's path."""
    opened = cache.open(path)
    vectors = opened.bottlenecks(np.arange(len(opened)))
    return {name: vector.tobytes() for name, vector in zip(opened.paths, vectors, strict=True)}
