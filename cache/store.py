"""A cache: for each backbone a folder of shards, and an index that says which row belongs to which image today."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cache import columns, shard
from cache.columns import Strings
from cache.errors import CacheError, UserError
from cache.shard import Rows, Shard

INDEX, SHARDS, BACKBONE, REJECTED = "index.h5", "shards", "backbone", "rejected.csv"
COMMIT_SECONDS = 30.0  # work that a killed run repeats, at most
COMMIT_BYTES = 128 << 20  # memory that uncommitted bottlenecks take, at most


@dataclass(frozen=True)
class Module:
    """What made a cache's bottlenecks: everything that makes two of them comparable."""

    module: str  # as given to --module
    identity: str  # tells without loading the network whether it may have changed
    fingerprint: str  # of the weights, the image size and the preprocessing
    image_height: int  # pixels
    image_width: int
    preprocessing: str
    dimension: int  # D, the length of a bottleneck

    def attributes(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Module:
        return cls(**{field.name: attributes[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Index:
    """Today's labelled view of an image_dir. The columns of images have N rows."""

    image_dir: str
    labels: Sequence[str]  # class names, sorted
    shards: Sequence[str]  # every shard's file name that was there, used or not
    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes
    mtimes: np.ndarray  # int64 [N], nanoseconds
    label_ids: np.ndarray  # int32 [N], into labels
    shard_ids: np.ndarray  # int32 [N], into shards
    shard_rows: np.ndarray  # int32 [N], the row in that shard

    def same_view(self, other: Index) -> bool:
        """Whether two indexes say the same of the same images."""
        numbers = ("sizes", "mtimes", "label_ids", "shard_ids", "shard_rows")
        return (
            (self.image_dir, list(self.labels), list(self.shards))
            == (other.image_dir, list(other.labels), list(other.shards))
            and self.paths.equals(other.paths)
            and all(np.array_equal(getattr(self, name), getattr(other, name)) for name in numbers)
        )


@dataclass(frozen=True)
class Rejected:
    """An image that could not be read."""

    path: str  # below image_dir
    size: int  # bytes
    mtime: int  # nanoseconds; -1 when a later run should try again even though the file is unchanged
    reason: str


@dataclass(frozen=True)
class Cache:
    """An opened cache: bottlenecks as maps of its shards, with today's labels and paths."""

    directory: Path
    module: Module
    index: Index
    shards: Sequence[Shard]  # in the order of index.shards

    @property
    def labels(self) -> list[str]:
        """The class names, in the order of a classifier's outputs."""
        return list(self.index.labels)

    @property
    def label_ids(self) -> np.ndarray:
        """int32 [N]: each image's class."""
        return self.index.label_ids

    @property
    def paths(self) -> Strings:
        """N paths below image_dir."""
        return self.index.paths

    @property
    def backbone_dir(self) -> Path:
        """The SavedModel that made the bottlenecks."""
        return self.directory / BACKBONE

    @cached_property
    def dtype(self) -> np.dtype:
        """The widest type among the shards: float16 or float32."""
        return np.result_type(*{s.rows.bottlenecks.dtype for s in self.shards})

    def __len__(self) -> int:
        return len(self.index.paths)

    def bottlenecks(self, images: np.ndarray) -> np.ndarray:
        """The bottlenecks of `images` (int [M], rows of the index): a new array [M, D] of `dtype`."""
        vectors = np.empty((len(images), self.module.dimension), self.dtype)
        shard_ids = np.asarray(self.index.shard_ids[images])
        shard_rows = np.asarray(self.index.shard_rows[images])
        order = np.argsort(shard_ids, kind="stable")
        starts = np.flatnonzero(np.diff(shard_ids[order], prepend=-1))
        for places in np.split(order, starts[1:]):
            if len(places):
                vectors[places] = self.shards[shard_ids[places[0]]].rows.bottlenecks[shard_rows[places]]
        return vectors


def open(path: str | os.PathLike, module: str | None = None) -> Cache:
    """Opens the cache at `path`: a cache_dir, or one backbone's folder in it.

    `module` chooses among several backbones. Raises CacheError where there is no cache, several to choose from,
    none of that module, or one that is damaged or newer than this version.
    """
    directory = _choose(Path(path), module)
    # An extraction may replace the index while its shards are being opened; it only ever adds shards.
    made_by, index = read_index(directory)
    shards = [shard.read(directory / SHARDS / name) for name in index.shards]
    for opened in shards:
        if Module.of(opened.attributes).fingerprint != made_by.fingerprint:
            raise CacheError(f"{opened.path} was made by another backbone; delete it and run the extraction again")
        if opened.rows.bottlenecks.shape[1] != made_by.dimension:
            raise CacheError(f"{opened.path} is damaged (its vectors' length); delete it and run the extraction again")
    lengths = np.array([len(opened) for opened in shards])
    inside = (index.shard_ids >= 0) & (index.shard_ids < len(shards)) & (index.shard_rows >= 0)
    if len(index.paths) and not (inside.all() and (index.shard_rows < lengths[index.shard_ids]).all()):
        raise CacheError(f"{directory / INDEX} points outside its shards; delete it and run the extraction again")
    return Cache(directory, made_by, index, shards)


def directories(cache_dir: Path) -> list[Path]:
    """The folders of backbones in a cache_dir that hold anything committed, sorted; [cache_dir] if it is one itself."""
    if _is_store(cache_dir):
        return [cache_dir]
    if not cache_dir.is_dir():
        return []
    return sorted(entry for entry in cache_dir.iterdir() if entry.is_dir() and _is_store(entry))


def module_of(directory: Path) -> Module:
    """The module that made the cache in `directory`, from its index or else its first shard."""
    if (directory / INDEX).exists():
        return read_index(directory)[0]
    first = next(iter(shard_names(directory)))
    return Module.of(shard.read(directory / SHARDS / first).attributes)


def shard_names(directory: Path) -> list[str]:
    """The file names of all committed shards, in the order of their making."""
    if not (directory / SHARDS).is_dir():
        return []
    return sorted(
        name for name in os.listdir(directory / SHARDS) if name.endswith(shard.SUFFIX) and not name.startswith(".")
    )


def read_index(directory: Path) -> tuple[Module, Index]:
    """The index in `directory` and the module that it was made with.

    Raises CacheError where it is missing, damaged or newer than this version.
    """
    path = directory / INDEX
    attributes, arrays = columns.read(path, "index")
    try:
        index = Index(
            image_dir=attributes["image_dir"],
            labels=list(columns.strings(arrays, "labels")),
            shards=list(columns.strings(arrays, "shards")),
            paths=columns.strings(arrays, "paths"),
            **{name: arrays[name] for name in ("sizes", "mtimes", "label_ids", "shard_ids", "shard_rows")},
        )
        module = Module.of(attributes)
    except KeyError as missing:
        raise CacheError(f"{path} is damaged (no {missing}); delete it and run the extraction again") from None
    if any("/" in name or name.startswith(".") for name in index.shards):
        raise CacheError(f"{path} names a shard outside its folder; delete it and run the extraction again")
    lengths = {len(c) for c in (index.paths, index.sizes, index.mtimes, index.label_ids, index.shard_ids)}
    if lengths != {len(index.shard_rows)} or (
        len(index.label_ids) and not (index.label_ids.min() >= 0 and index.label_ids.max() < len(index.labels))
    ):
        raise CacheError(f"{path} is damaged (its columns disagree); delete it and run the extraction again")
    return module, index


def write_index(directory: Path, module: Module, index: Index) -> None:
    """Replaces the index in `directory` atomically."""
    columns.write(
        directory / INDEX,
        "index",
        {**module.attributes(), "image_dir": index.image_dir},
        {
            "labels": Strings.of(index.labels),
            "shards": Strings.of(index.shards),
            "paths": index.paths,
            "sizes": index.sizes.astype(np.int64, copy=False),
            "mtimes": index.mtimes.astype(np.int64, copy=False),
            "label_ids": index.label_ids.astype(np.int32, copy=False),
            "shard_ids": index.shard_ids.astype(np.int32, copy=False),
            "shard_rows": index.shard_rows.astype(np.int32, copy=False),
        },
    )


def read_rejected(directory: Path) -> list[Rejected]:
    """The images that could not be read at the last extraction; empty where there is no list."""
    path = directory / REJECTED
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")  # untranslated: a name may hold any line end
        rows = csv.DictReader(io.StringIO(text, newline=""))
        return [Rejected(row["path"], int(row["size"]), int(row["mtime"]), row["reason"]) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        raise CacheError(f"{path} is damaged; delete it and run the extraction again") from None


def write_rejected(directory: Path, rejected: Sequence[Rejected]) -> None:
    """Replaces `rejected.csv` atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(Rejected)])
    writer.writerows((r.path, r.size, r.mtime, r.reason) for r in rejected)
    columns.replace(directory / REJECTED, text.getvalue().encode("utf-8", "surrogateescape"))


class Writer:
    """Collects bottlenecks and commits them as shards, at least every COMMIT_SECONDS, while it takes the next.

    Use it as a context: leaving it commits what is left, after an error or Ctrl-C too.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any]):
        self._directory = directory / SHARDS
        self._attributes = attributes
        self._pending: list[Rows] = []
        self._since = time.monotonic()
        # One thread: what is being written and what is being collected bound the memory.
        self._thread = ThreadPoolExecutor(1, "commit")
        self._writing: Future[int] | None = None
        self.committed = 0  # rows on disk
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self._directory}: {error.strerror}; choose another --cache_dir") from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # Where a write failed, this raises or has raised its error, and no other is tried: it would fail the same way.
        with self._thread:
            self.commit()

    def append(self, rows: Rows) -> None:
        """Takes rows [n, D]; they are safe once `committed` counts them. Raises UserError when a commit failed."""
        self._pending.append(rows)
        size = sum(pending.bottlenecks.nbytes for pending in self._pending)
        if size >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self._start_writing()

    def commit(self) -> None:
        """Writes what is pending as one shard, and waits for it. Raises UserError when it cannot be written."""
        self._start_writing()
        self._finish_writing()

    def _start_writing(self) -> None:
        self._finish_writing()
        self._since = time.monotonic()
        if self._pending:
            pending, self._pending = self._pending, []
            self._writing = self._thread.submit(self._write, pending)

    def _finish_writing(self) -> None:
        if not self._writing:
            return
        # Ctrl-C while waiting is no failure of the write: leaving the context waits for it once more.
        try:
            self.committed += self._writing.result()
        except Exception:
            self._writing = None
            self._pending.clear()
            raise
        self._writing = None

    def _write(self, pending: Sequence[Rows]) -> int:
        shard.write(self._directory, self._attributes, concatenate(pending))
        return sum(len(rows.bottlenecks) for rows in pending)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """One after the other. All parts have the same D and dtype."""
    arrays = ("bottlenecks", "sizes", "mtimes", "fingerprints")
    return Rows(
        paths=Strings.concatenate([part.paths for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays},
    )


def _is_store(directory: Path) -> bool:
    return (directory / INDEX).exists() or bool(shard_names(directory))


def _choose(path: Path, module: str | None) -> Path:
    if not path.exists():
        raise CacheError(f"no cache at {path}; run the extraction first, or give its --cache_dir")
    found = directories(path)
    if not found:
        raise CacheError(f"{path} holds no bottlenecks; run the extraction first, or give its --cache_dir")
    names = {directory: module_of(directory).module for directory in found}
    if module is not None:
        found = [d for d in found if module in (names[d], d.name)]
        if not found:
            raise CacheError(
                f"{path} holds no bottlenecks of {module}, only of {', '.join(sorted(set(names.values())))}; "
                "choose one of these with --module, or run the extraction with this one"
            )
    if len(found) > 1:
        raise CacheError(
            f"{path} holds the bottlenecks of several backbones; choose with --module: "
            + ", ".join(directory.name for directory in found)
        )
    return found[0]
