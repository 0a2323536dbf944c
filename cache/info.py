"""What is in a cache."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cache import layout, reader, rejected, shard, thumbnails
from cache.console import counted
from cache.errors import CacheError
from cache.layout import INDEX, REJECTED, SHARDS
from cache.reader import Cache
from cache.store import read_info


def describe(directory: Path) -> dict[str, Any]:
    """What one folder of bottlenecks holds, for JSON. Raises CacheError when it is damaged."""
    backbone = read_info(directory)
    shards = list(_shards(directory))
    content: dict[str, Any] = {
        "directory": str(directory),
        "module": backbone.module,
        "fingerprint": backbone.fingerprint,
        "image_height": backbone.image_height,
        "image_width": backbone.image_width,
        "preprocessing": backbone.preprocessing,
        "version": layout.augmentation_number(directory),  # None for the plain bottlenecks
        "dimension": backbone.dimension,
        "rows": sum(one["rows"] for one in shards),
        "bytes": sum(one["bytes"] for one in shards),
        "shards": shards,
        "image_dir": None,
        "images": None,
        "unused_rows": None,
        "classes": None,
        "rejected": len(rejected.read(directory)),
        "thumbnails": None,
    }
    if (directory / INDEX).exists():
        cache = reader.open(directory)
        used = dict(zip(cache.index.shards, cache.used_rows().tolist(), strict=True))
        counts = np.bincount(cache.label_ids, minlength=len(cache.labels)).tolist()
        content |= {
            "image_dir": cache.index.image_dir,
            "images": len(cache),
            "unused_rows": sum(one["rows"] - used.get(one["name"], 0) for one in shards),
            "classes": dict(zip(cache.labels, counts, strict=True)),
            "thumbnails": _thumbnails(cache),
        }
    return content


def _shards(directory: Path) -> Iterator[dict[str, Any]]:
    for name in layout.shard_names(directory):
        path = directory / SHARDS / name
        try:
            opened, size = shard.read(path), path.stat().st_size
        except (CacheError, FileNotFoundError):
            if os.path.lexists(path):
                raise
            continue  # a compaction has replaced it since
        yield {
            "name": name,
            "rows": len(opened),
            "bytes": size,
            "dtype": opened.rows.bottlenecks.dtype.name,
            "engine": opened.attributes.get("engine"),
            "precision": opened.attributes.get("precision"),
        }


def lines(content: dict[str, Any]) -> list[str]:
    """The same for people."""
    made = Counter((s["dtype"], s["engine"], s["precision"]) for s in content["shards"])
    count = content["rejected"]
    rejected_line = f"  rejected       {count} files"
    rejected_line += f", see {Path(content['directory'], REJECTED)}" if count else ""
    described = [
        content["directory"],
        f"  module         {content['module']}, fingerprint {content['fingerprint']}",
        f"  image size     {content['image_height']} x {content['image_width']} pixels, {content['preprocessing']}",
        f"  shards         {len(content['shards'])} with {content['rows']:,} bottlenecks of {content['dimension']} "
        f"values, {content['bytes'] / 1e6:,.1f} MB",
    ]
    described += [
        f"  made as        {dtype} by {engine} in {precision}: {counted(count, 'shard')}"
        for (dtype, engine, precision), count in sorted(made.items(), key=str)
    ]
    if content["classes"] is None:
        return [
            *described,
            "  labelled       nothing yet: the extraction has not ended; run it again to go on",
            rejected_line,
        ]
    unused, shown = content["unused_rows"], content["thumbnails"]
    labelled = f"  labelled       {content['images']:,} photos of {len(content['classes'])} classes"
    if content["version"]:  # the rest is in the lines of the plain bottlenecks
        return [*described, labelled]
    return [
        *described,
        f"  unused         {counted(unused, 'bottleneck')}"
        + (", which `python -m cache compact` drops" if unused else ""),
        f"  image_dir      {content['image_dir']}",
        labelled,
        *(f"    {count:>9,}  {label}" for label, count in content["classes"].items()),
        f"  thumbnails     of {shown['images']:,} photos, {shown['bytes'] / 1e6:,.1f} MB"
        if shown["files"]
        else "  thumbnails     none: `python -m extract --thumbnails` makes them",
        rejected_line,
    ]


def _thumbnails(cache: Cache) -> dict[str, int]:
    found = list(thumbnails.used(cache.directory, cache.index))
    return {
        "files": len(found),
        "images": sum(len(photos) for _, _, photos in found),
        "rows": sum(len(file) for file, _, _ in found),
        "bytes": sum(file.path.stat().st_size for file, _, _ in found),
    }
