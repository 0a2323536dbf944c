"""A cache: for each backbone a folder of shards, and an index that says which row belongs to which image today."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache import columns, shard
from cache.columns import Table
from cache.errors import CacheError, UnreadableError, UserError
from cache.shard import Shard
from cache.strings import Strings

INDEX, SHARDS, BACKBONE, REJECTED = "index.h5", "shards", "backbone", "rejected.csv"
THUMBNAILS, DISTORTED = "thumbnails", "distorted"
LOCK = ".lock"
_ABANDONED = 3600.0  # seconds without a write
NUMBERS = {"sizes": "i8", "mtimes": "i8", "label_ids": "i4", "shard_ids": "i4", "shard_rows": "i4"}


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
    def of(cls, path: Path, attributes: Mapping[str, Any]) -> Module:
        """From the attributes of the file `path`. Raises CacheError where these are no module's."""
        values = {field.name: attributes.get(field.name) for field in fields(cls)}
        for field in fields(cls):
            value = values[field.name]
            if not (isinstance(value, str) if field.type == "str" else isinstance(value, int) and value > 0):
                raise columns.damage(path, f"the attribute {field.name}")
        return cls(**values)  # type: ignore[arg-type]


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


def directories(cache_dir: Path) -> list[Path]:
    """The folders of backbones in a cache_dir that hold anything committed, sorted; [cache_dir] if it is one itself.

    Raises CacheError for one that is a link, which leads out of the cache.
    """
    if _is_store(cache_dir):
        return [cache_dir]
    if not cache_dir.is_dir():
        return []
    found = sorted(entry for entry in cache_dir.iterdir() if entry.is_dir() and _is_store(entry))
    for entry in found:
        if entry.is_symlink():
            raise CacheError(f"{entry} is a link; put the folder itself there, or give {entry.resolve()} alone")
    return found


def versions(directory: Path) -> list[Path]:
    """The folders of distorted versions in a backbone's folder that hold anything committed, in order of number.

    Raises CacheError as `begun_versions` does.
    """
    return list(filter(_is_store, begun_versions(directory)))


def begun_versions(directory: Path) -> list[Path]:
    """Those too that hold nothing committed yet.

    Raises CacheError as `folder_in` does, for the folder of all versions and for each.
    """
    folder = folder_in(directory, DISTORTED)
    if not folder.is_dir():
        return []
    found = sorted((number, entry.name) for entry in folder.iterdir() if (number := version_of(entry)))
    return [entry for _, name in found if (entry := folder_in(folder, name)).is_dir()]


def version_of(directory: Path) -> int | None:
    """The number of a distorted version, 1 or more, by the place and the name of its folder; None if it is none."""
    absolute = directory.absolute()
    name = re.fullmatch(r"([1-9][0-9]*)-[0-9a-f]{16}", absolute.name)
    return int(name[1]) if name and absolute.parent.name == DISTORTED else None


def distorted_module(plain: Module, distortion: str) -> Module:
    """What makes bottlenecks of images distorted as `distortion` says: they never meet those of `plain` in one file."""
    preprocessing = f"{plain.preprocessing}; {distortion}"
    return replace(
        plain,
        identity=f"{plain.identity}, {distortion}",
        fingerprint=hashlib.sha256(f"{plain.fingerprint} {preprocessing}".encode()).hexdigest()[:16],
        preprocessing=preprocessing,
    )


def module_of(directory: Path) -> Module:
    """The module that made the cache in `directory`, from its index or else its first shard."""
    names = shard_names(directory)
    if (directory / INDEX).exists() or not names:
        return read_index(directory)[0]
    first = directory / SHARDS / names[0]
    return Module.of(first, shard.read(first).attributes)


def shard_names(directory: Path) -> list[str]:
    """The file names of all committed shards, in the order of their making. Raises CacheError as `folder_in` does."""
    try:
        return sorted(filter(is_shard_name, os.listdir(folder_in(directory, SHARDS))))
    except (FileNotFoundError, NotADirectoryError):
        return []


def folder_in(directory: Path, name: str) -> Path:
    """The folder `name` of a cache's folder.

    Raises CacheError where it is a link: whoever repairs the cache would delete files of somewhere else.
    """
    folder = directory / name
    if folder.is_symlink():
        raise CacheError(f"{folder} is a link; put the folder itself there")
    return folder


def open_shard(directory: Path, name: str, made_by: Module) -> Shard:
    """The shard `name`. Raises CacheError where it is missing, damaged, or of another backbone than `made_by`."""
    opened = shard.check(shard.read(folder_in(directory, SHARDS) / name))
    if Module.of(opened.path, opened.attributes).fingerprint != made_by.fingerprint:
        raise columns.damage(opened.path, "made by another backbone")
    return opened


def is_shard_name(name: str) -> bool:
    """Whether a file in `shards/` is a committed shard; one that starts with a dot is being written, or was."""
    return name.endswith(shard.SUFFIX) and not name.startswith(".")


def read_index(directory: Path) -> tuple[Module, Index]:
    """The index in `directory` and the module that it was made with; its rows are not compared with their checksums.

    Raises CacheError where it is missing, damaged or newer than this version.
    """
    module, index, _ = read_index_table(directory)
    check_index(directory, index)
    return module, index


def read_index_table(directory: Path) -> tuple[Module, Index, Table]:
    """The same with the table of images; nothing is said of whether the images' numbers make sense."""
    path = directory / INDEX
    attributes, tables = columns.read(path, "index")
    try:
        names = {table: tables[table].columns[table] for table in ("labels", "shards")}
        # Names are few, and a wrong one would make many images wrong.
        for table, column in names.items():
            if not isinstance(column, Strings) or not column.is_sound() or len(tables[table].damaged()):
                raise columns.damage(path, table)
        images = tables["images"]
        index = Index(
            image_dir=str(attributes["image_dir"]),
            labels=list(names["labels"]),
            shards=list(names["shards"]),
            **images.columns,  # type: ignore[arg-type]
        )
        module = Module.of(path, attributes)
    except (KeyError, TypeError) as error:
        raise columns.damage(path, f"it has other columns: {error}") from None
    numbers = {name: getattr(index, name) for name in NUMBERS}
    if not isinstance(index.paths, Strings) or any(
        not isinstance(column, np.ndarray) or column.dtype != NUMBERS[name] or column.ndim != 1
        for name, column in numbers.items()
    ):
        raise columns.damage(path, "its columns have other types")
    for table in names:
        if len(set(getattr(index, table))) < len(getattr(index, table)):
            raise columns.damage(path, f"{table} names one twice")
    if any("/" in name or "\0" in name or not is_shard_name(name) for name in index.shards):
        raise columns.damage(path, "it names a shard outside its folder")
    return module, index, images


def check_index(directory: Path, index: Index) -> None:
    """Raises CacheError where an image's path or label is none."""
    if not index.paths.is_sound():
        raise columns.damage(directory / INDEX, "the offsets of paths")
    if len(index.label_ids) and not (index.label_ids.min() >= 0 and index.label_ids.max() < len(index.labels)):
        raise columns.damage(directory / INDEX, "label_ids")


def write_index(directory: Path, module: Module, index: Index) -> None:
    """Replaces the index in `directory` atomically. Raises UserError when it cannot be written."""
    numbers = {name: getattr(index, name).astype(kind, copy=False) for name, kind in NUMBERS.items()}
    columns.write(
        directory / INDEX,
        "index",
        {**module.attributes(), "image_dir": index.image_dir},
        {
            "labels": [{"labels": Strings.of(index.labels)}],
            "shards": [{"shards": Strings.of(index.shards)}],
            "images": [{"paths": index.paths, **numbers}],
        },
    )


@contextlib.contextmanager
def locked(directory: Path, shared: bool = False, required: bool = False) -> Iterator[None]:
    """Holds off those who replace shards that the index names, and with `shared` no others. Readers never wait.

    Where the file system has no locks, or the folder cannot be written, it goes without, unless the lock is `required`.
    Then it raises UserError.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(directory / LOCK, "r+b", buffering=0, opener=_lockable))
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError as error:
            if required:
                remedy = "do it where the folder can be written and files can be locked"
                raise UserError(f"cannot lock {directory}: {error.strerror}; {remedy}") from None
        yield


def _lockable(path: str, _: int) -> int:
    """Opens what lies there itself, not what a link leads to, and waits for nobody at a pipe's other end.

    For reading and writing: NFS gives shared locks to readers alone, and the others to writers.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


@contextlib.contextmanager
def withdrawing(directory: Path) -> Iterator[list[str]]:
    """A list for the names of new shards: where what follows fails before an index names them, they are deleted.

    Otherwise each attempt on a full disk would make it fuller.
    """
    new: list[str] = []
    try:
        yield new
    except BaseException:
        with contextlib.suppress(OSError, UserError):
            named = read_index(directory)[1].shards if (directory / INDEX).exists() else ()
            for name in set(new).difference(named):
                (directory / SHARDS / name).unlink()
        raise


def sweep(directory: Path) -> None:
    """Deletes what killed writers left half written: what is an hour old and what nobody writes any more."""
    for folder in (directory, directory / SHARDS, directory / THUMBNAILS):
        if folder != directory and folder.is_symlink():  # what lies there is not ours
            continue
        for path in folder.glob(f".*{columns.TEMPORARY}"):
            with contextlib.suppress(OSError):  # another sweep was faster, or there is no permission: it can wait
                if time.time() - path.stat().st_mtime < _ABANDONED:
                    continue
                if path.is_dir():  # a SavedModel, which takes seconds to write
                    shutil.rmtree(path)
                    continue
                with open(path, "r+b", buffering=0, opener=_lockable) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its writer has it locked
                    path.unlink()


def read_rejected(directory: Path) -> list[Rejected]:
    """The images that could not be read at the last extraction; empty where there is no list.

    Raises CacheError where the list is damaged, UnreadableError where the system does not let it be read.
    """
    path = directory / REJECTED
    try:
        columns.check_regular(path)
        text = path.read_bytes().decode("utf-8", "surrogateescape")  # untranslated: a name may hold any line end
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if rows.fieldnames != [field.name for field in fields(Rejected)]:
            raise ValueError("another header")
        return [Rejected(row["path"], int(row["size"]), int(row["mtime"]), row["reason"]) for row in rows]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error.strerror}; put that right, and try again") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise columns.damage(path, "no table of rejected images") from None


def write_rejected(directory: Path, rejected: Sequence[Rejected]) -> None:
    """Replaces `rejected.csv` atomically."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([field.name for field in fields(Rejected)])
    writer.writerows((r.path, r.size, r.mtime, r.reason) for r in rejected)
    with columns.replacing(directory / REJECTED) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _is_store(directory: Path) -> bool:
    return (directory / INDEX).exists() or bool(shard_names(directory))
