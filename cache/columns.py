"""One HDF5 file of plain arrays: written once and atomically, a checksum for each row, mapped on reading.

Shards and indexes are both such files. `FORMAT.md` is the promise that this module keeps.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import itertools
import math
import mmap
import os
import resource
import secrets
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5p, h5s, h5t
from isal import isal_zlib  # zlib's own crc32 takes four times as long

from cache.errors import CacheError, UnreadableError, UserError
from cache.strings import Strings

FORMAT = "bottleneck-cache"
VERSION = 2
TEMPORARY = ".tmp"
CHECKSUMS = "_checksums"
OFFSETS = "_offsets"

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKSUMMED = (2, 3)  # versions of HDF5's superblock with checksums over the file's own structures
_LARGEST = 1 << 30  # bytes of a buffer to write: macOS takes none of 2 GiB
_BUFFERS = 1024  # that one call of the system writes at most (POSIX's IOV_MAX)
_FLUSH_SECONDS = 0.01  # between two flushes of a file that is being written
_AT_ONCE = 1 << 16  # rows checksummed at a time: Python's integers take ten times an array's memory
# HDF5 puts its own structures on pages of their own, the first ones, and every array of a page or more on a whole
# number of these: mapping an array touches no other, and a file that was cut off has lost its last rows only.
_PAGE = 8192
_LONGEST = 1 << 16  # bytes of an attribute: HDF5's limit for those that lie where its checksums reach
_OVERLAPS = 8  # times that strings may cover their column before none is believed, see Table.damaged

Column = np.ndarray | Strings
Columns = Mapping[str, Column]


@dataclass(frozen=True)
class Table:
    """Columns of N rows each. The arrays are read-only maps of the file."""

    columns: Columns  # in the order in which they are checksummed
    checksums: np.ndarray  # uint32 [N], as they were written

    def __len__(self) -> int:
        return len(self.checksums)

    def damaged(self) -> np.ndarray:
        """int64 [M]: the rows that differ from their checksums."""
        bad = [np.zeros(0, np.int64)]
        # Where offsets are made up, each of many strings may be the whole column: reading them all would never end.
        left = {name: _OVERLAPS * len(c.data) for name, c in self.columns.items() if isinstance(c, Strings)}
        for begin in range(0, len(self), _AT_ONCE):
            end = min(begin + _AT_ONCE, len(self))
            block = {name: column[begin:end] for name, column in self.columns.items()}
            for name in left:
                left[name] -= block[name].length()  # type: ignore[union-attr]
            if min(left.values(), default=0) < 0:
                bad.append(np.arange(begin, len(self)))
                break
            differ = checksums(block) != self.checksums[begin:end]
            for name in left:
                differ |= block[name].misplaced()  # type: ignore[union-attr]
            bad.append(begin + np.flatnonzero(differ))
        return np.concatenate(bad)


def write(path: Path, kind: str, attributes: Mapping[str, Any], tables: Mapping[str, Sequence[Columns]]) -> None:
    """Writes `tables` as the file `path`, which appears whole or not at all.

    Each table comes in parts, whose rows are written one after the other. Raises UserError when the disk is full or the
    place cannot be written; then nothing is left behind.
    """
    arrays: dict[str, list[np.ndarray]] = {}
    covers = {}
    for table, parts in tables.items():
        covers[table] = " ".join(parts[0])
        arrays[table + CHECKSUMS] = [np.zeros(len(next(iter(part.values()))), np.uint32) for part in parts]
        for name, column in parts[0].items():
            if isinstance(column, Strings):
                joined = Strings.concatenate([part[name] for part in parts])  # type: ignore[misc]
                arrays[name], arrays[name + OFFSETS] = [joined.data], [joined.offsets]
            else:
                arrays[name] = [np.ascontiguousarray(part[name]) for part in parts]
    structures, places, size = _layout(
        {**attributes, "format": FORMAT, "version": VERSION, "kind": kind}, arrays, covers
    )
    # The operating system writes the arrays, not HDF5: nothing is copied, and a full disk fails in one place with a
    # plain errno, where HDF5 reports it from wherever it happens to flush, its own clean-up included.
    with replacing(path) as file, ThreadPoolExecutor(2, "write") as threads:
        file.truncate(size)
        file.write(structures)
        file.flush()
        # Checksums, copying to the system's memory and the disk take about as long: they go on at the same time.
        writing = threads.submit(_write, file, [(places[name], arrays[name]) for name in places])
        flushing = threads.submit(_flush_meanwhile, file, writing)
        sums = [(places.get(table + CHECKSUMS), [checksums(part) for part in parts]) for table, parts in tables.items()]
        writing.result()
        flushing.result()
        _write(file, [(place, arrays) for place, arrays in sums if place is not None])


def _write(file: IO[bytes], arrays: Iterable[tuple[int, Sequence[np.ndarray]]]) -> None:
    """Writes at each place its arrays, one behind the other. Raises OSError."""
    for place, parts in arrays:
        flat = (part.reshape(-1).view(np.uint8) for part in parts)
        buffers = deque(part[i : i + _LARGEST].data for part in flat for i in range(0, len(part), _LARGEST))
        while buffers:
            # Many at once: between two calls Python would let the checksums go on for milliseconds.
            place += (written := os.pwritev(file.fileno(), list(itertools.islice(buffers, _BUFFERS)), place))
            while buffers and written >= len(buffers[0]):
                written -= len(buffers.popleft())
            if written:
                buffers[0] = buffers[0][written:]


def _flush_meanwhile(file: IO[bytes], writing: Future[None]) -> None:
    """Has the disk take what is there already, until `writing` ends. Raises OSError."""
    while wait([writing], _FLUSH_SECONDS).not_done:
        getattr(os, "fdatasync", os.fsync)(file.fileno())  # macOS has the second only


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which becomes `path` at the end: written beside it, flushed to disk, renamed over it.

    Raises UserError when that fails; what was at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        try:
            with open(temporary, "wb") as file:
                with contextlib.suppress(OSError):  # a file system without locks; `store.sweep` asks for it
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the folder itself may be what went away
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
    except FileNotFoundError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; somebody moved or deleted its folder: run again"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another --cache_dir, "
            "and run again: what was committed before is kept"
        ) from None


def sync(path: Path) -> None:
    """Makes what a file holds, or the renames and deletions in a folder, survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Table]]:
    """The attributes and the tables of a file that `write` made.

    Checks the structure, not the rows: `Strings.is_sound` and `Table.damaged` do. Raises CacheError for a file that is
    missing, damaged, of another kind or format, or newer than this reader.
    """
    _allow_many_files()
    try:
        check_regular(path)
        _check_signature(path)
        # The files never change once they are there: locking would only keep read-only mounts from working.
        with h5py.File(path, "r", locking=False) as file:
            attributes = _attributes(file.id)
            _check_kind(path, attributes, kind)
            datasets = {name: _dataset(file, name) for name in file}
            layout = {name: (dataset.dtype, dataset.shape, dataset.get_offset()) for name, dataset in datasets.items()}
            covers = {
                name.removesuffix(CHECKSUMS): str(_attributes(dataset)["covers"]).split()
                for name, dataset in datasets.items()
                if name.endswith(CHECKSUMS)
            }
            # The file that HDF5 has open: another may have taken its name meanwhile.
            with open(os.dup(file.id.get_vfd_handle()), "rb") as same:
                arrays = _map(same, layout)
        return attributes, {table: _table(table, names, arrays) for table, names in covers.items()}
    except FileNotFoundError:
        raise CacheError(f"{path} is missing; copy it again, or {REPAIR}") from None
    # What h5py raises for files that are not what they seem; a MemoryError would come of a size made up.
    except (
        OSError,
        KeyError,
        ValueError,
        RuntimeError,
        TypeError,
        AttributeError,
        ArithmeticError,
        MemoryError,
    ) as error:
        if isinstance(error, OSError) and error.errno:  # the system's word, not HDF5's
            raise UnreadableError(f"cannot read {path}: {error.strerror}; put that right, and try again") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise damage(path, reason) from None


REPAIR = "run `python -m cache verify --repair` on the cache and extract again"


def damage(path: Path, reason: str) -> CacheError:
    """The error for a file that is not what was written."""
    return CacheError(f"{path} is damaged ({reason}); {REPAIR}")


def check_rows(path: Path, table: Table) -> None:
    """Raises CacheError where rows of a `table` of the file `path` differ from their checksums.

    Whoever writes them anew asks first: with new checksums, damage would pass for what was meant.
    """
    if len(table.damaged()):
        raise damage(path, "rows differ from their checksums")


def check_regular(path: Path) -> None:
    """Raises CacheError for what is no file of the cache's own: a link may lead anywhere, and a pipe never ends.

    Raises FileNotFoundError where there is none.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise CacheError(f"{path} is a link or no regular file; put the file itself there, or {REPAIR}")


def checksums(columns: Columns) -> np.ndarray:
    """CRC-32 (zlib's) of each row: its bytes in every column, one column after the other. uint32 [N]."""
    count = len(next(iter(columns.values())))
    sums = np.zeros(count, np.uint32)
    for start in range(0, count, _AT_ONCE):
        block = [column[start : start + _AT_ONCE] for column in columns.values()]
        crcs = [0] * len(block[0])
        for column in _side_by_side(block):
            crcs = list(map(isal_zlib.crc32, _row_bytes(column), crcs))
        sums[start : start + _AT_ONCE] = crcs
    return sums


def _side_by_side(columns: Iterable[Column]) -> Iterator[Column]:
    """The columns, those of single numbers that follow one another as one: a call costs as much as a hundred bytes."""
    narrow: list[np.ndarray] = []
    for column in columns:
        if isinstance(column, np.ndarray) and column.ndim == 1:
            narrow.append(np.ascontiguousarray(column).view(np.uint8).reshape(len(column), column.itemsize))
            continue
        if narrow:
            yield np.concatenate(narrow, axis=1)
        narrow = []
        yield column
    if narrow:
        yield np.concatenate(narrow, axis=1)


def _row_bytes(column: Column) -> Iterable[memoryview | np.ndarray]:
    if isinstance(column, Strings):
        # Offsets that damage made negative are no places from the end.
        ends = np.maximum(column.offsets, 0).tolist()
        return map(column.data.data.__getitem__, itertools.starmap(slice, itertools.pairwise(ends)))
    return np.ascontiguousarray(column).reshape(len(column), math.prod(column.shape[1:])).view(np.uint8)


def _layout(
    attributes: Mapping[str, Any], arrays: Mapping[str, Sequence[np.ndarray]], covers: Mapping[str, str]
) -> tuple[bytes, dict[str, int], int]:
    """HDF5's own structures for a file of `arrays`, where in the file each array belongs, and the file's size."""
    image = io.BytesIO()  # gets the structures alone, since no array is written
    with h5py.File(image, "w", libver=("v110", "v110"), fs_strategy="page", fs_page_size=_PAGE) as file:
        _set_attributes(file, attributes)
        places = {}
        options = h5p.create(h5p.DATASET_CREATE)
        options.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        options.set_fill_time(h5d.FILL_TIME_NEVER)
        options.set_obj_track_times(False)
        for name, parts in arrays.items():
            shape = (sum(map(len, parts)), *parts[0].shape[1:])
            kind = h5t.py_create(parts[0].dtype.newbyteorder("<"))
            dataset = h5py.Dataset(h5d.create(file.id, name.encode(), kind, h5s.create_simple(shape), options))
            if name.endswith(CHECKSUMS):
                _set_attributes(dataset, {"covers": covers[name.removesuffix(CHECKSUMS)]})
            if dataset.size:
                places[name] = dataset.id.get_offset()
        file.flush()
        size = file.id.get_filesize()
    return image.getvalue(), places, size


def _check_signature(path: Path) -> None:
    """HDF5's older formats have no checksums over their structures: a damaged one may seem to be in order."""
    with open(path, "rb") as file:
        start = file.read(len(_SIGNATURE) + 1)
    if not start.startswith(_SIGNATURE):
        raise ValueError("no HDF5 file")
    if start[-1] not in _CHECKSUMMED:
        raise ValueError("not written by this program, or format 1, from before the first release")


def _check_kind(path: Path, attributes: Mapping[str, Any], kind: str) -> None:
    if attributes.get("format") != FORMAT:
        raise CacheError(f"{path} is no file of a bottleneck cache; give the folder that `extract` filled")
    if attributes["version"] > VERSION:
        raise UnreadableError(
            f"{path} has cache format {attributes['version']}, newer than format {VERSION} that this version "
            "reads; update this program"
        )
    if attributes["version"] != VERSION:
        raise ValueError(f"format {attributes['version']}, which was never released")
    if attributes["kind"] != kind:
        raise CacheError(f"{path} is no {kind} of a cache; {REPAIR}")


def _attributes(of: h5py.h5g.GroupID | h5d.DatasetID) -> dict[str, Any]:
    """The attributes that are one number or one string of fixed length; any other is not ours, whatever it holds."""
    names: list[bytes] = []
    h5a.iterate(of, names.append)
    found: dict[str, Any] = {}
    for name in names:
        attribute = h5a.open(of, name)
        dtype = attribute.dtype  # h5py works it out each time that it is asked
        if attribute.shape == () and dtype.kind in "iufS" and dtype.itemsize <= _LONGEST:
            value = np.empty((), dtype)
            attribute.read(value)
            found[os.fsdecode(name)] = os.fsdecode(value.item()) if value.dtype.kind == "S" else value.item()
    return found


def _set_attributes(of: h5py.File | h5py.Dataset, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):
            # HDF5 keeps strings of no fixed length in a heap of their own, over which it has no checksum.
            text = os.fsencode(value)
            of.attrs.create(name, np.array(text, h5py.string_dtype("utf-8", max(1, len(text)))))
        else:
            of.attrs[name] = value


def _dataset(file: h5py.File, name: str) -> h5d.DatasetID:
    """An array that can be mapped as it lies there. A link that leads to another file is not followed."""
    encoded = os.fsencode(name)
    is_hard = file.id.links.get_info(encoded).type == h5l.TYPE_HARD
    dataset = h5o.open(file.id, encoded) if is_hard else None
    if isinstance(dataset, h5d.DatasetID):
        dtype, options = dataset.dtype, dataset.get_create_plist()
        if (
            dtype.kind in "fiu"
            and dtype == dtype.newbyteorder("<")
            # h5py takes numbers of odd layouts for their next of kin.
            and dataset.get_type().equal(h5t.py_create(dtype))
            and options.get_layout() == h5d.CONTIGUOUS
            and not options.get_external_count()
        ):
            return dataset
    raise ValueError(f"{name} is not a contiguous array of little-endian numbers")


@functools.cache
def _allow_many_files() -> None:
    """Lets this process hold as many files as it may: each map holds one, and a long extraction leaves thousands.

    Unless it asks, a process gets 1,024 of them on Linux, and 256 on macOS.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (1 << 16, 10240):  # the second is macOS's OPEN_MAX
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        with contextlib.suppress(OSError, ValueError):  # too many for this system
            return resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _map(file: IO[bytes], layout: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """One map of the whole file, and each array as a view into it: the number of maps a process may hold is small."""
    data = np.asarray(np.memmap(file, np.uint8, mode="r"))  # memmap's own indexing takes twice as long
    arrays = {}
    for name, (dtype, shape, offset) in layout.items():
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if size and (offset is None or offset + size > len(data)):
            raise ValueError(f"{name} reaches past the end of the file")
        content = data[offset : offset + size] if size else np.zeros(0, np.uint8)
        arrays[name] = content.view(dtype).reshape(shape)
    return arrays


def will_need(mapped: np.ndarray) -> None:
    """Has the system read what a contiguous view into a mapped file shows, and does not wait for it.

    Without, each page that is not in memory is read when it is touched, one after the other.
    """
    view, owner = mapped, mapped.base
    while isinstance(owner, np.ndarray):
        view, owner = owner, owner.base
    if isinstance(owner, mmap.mmap):
        start = mapped.ctypes.data - view.ctypes.data
        begin = start // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_WILLNEED, begin, start + mapped.nbytes - begin)


def _table(table: str, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Table:
    columns: dict[str, Column] = {}
    for name in names:
        if name + OFFSETS in arrays:
            data, offsets = arrays[name], arrays[name + OFFSETS]
            if (data.dtype, data.ndim, offsets.dtype, offsets.ndim) != (np.uint8, 1, np.int64, 1) or not len(offsets):
                raise ValueError(f"{name} is no column of strings")
            columns[name] = Strings(data, offsets)
        else:
            columns[name] = arrays[name]
    stored = arrays[table + CHECKSUMS]
    if (stored.dtype, stored.ndim) != (np.uint32, 1) or {len(column) for column in columns.values()} != {len(stored)}:
        raise ValueError(f"the columns of {table} disagree")
    return Table(columns, stored)
