"""HDF5 files of plain arrays: laid out so that each array can be mapped, and read without trusting what they say.

Only the structures are left to the HDF5 library. The arrays are written by the operating system and mapped by it.
Damaged structures make the library crash, so a footer behind the end of the HDF5 file has their checksum.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import mmap
import os
import resource
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5p, h5s, h5t
from isal import isal_zlib  # zlib's own crc32 takes four times as long

from cache.errors import REPAIR, UnreadableError, damage, first_line
from cache.files import check_regular

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKSUMMED = (2, 3)  # versions of HDF5's superblock with checksums over the file's own structures
# HDF5 puts its structures on pages of their own, which come first, and every array of a page or more on a page
# boundary. So mapping an array touches no other one, and a file that was cut off has lost its last rows only.
_PAGE = 8192
_FOOTER = struct.Struct("<8sQII")  # a mark, the length of the structures, their CRC-32, that of the bytes before it
_MARK = b"BNECKEND"
_MOST_STRUCTURES = 1 << 20  # bytes: several times what the longest attributes take
_LONGEST = 1 << 16  # bytes of an attribute: HDF5's limit for those that its checksums cover
_LARGEST = 1 << 30  # bytes of one buffer to write: macOS refuses 2 GiB
_BUFFERS = 1024  # that one system call writes at most (POSIX's IOV_MAX)
_OTHER_FILES = 256  # that a process opens later, beside its maps

Attributes = dict[str, Any]
# What h5py raises for files that are not what they seem. A MemoryError comes of a size that is made up.
_DAMAGE = (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, ArithmeticError, MemoryError)


def structures(
    root_attributes: Mapping[str, Any],
    parts_by_name: Mapping[str, Sequence[np.ndarray]],
    array_attributes: Mapping[str, Mapping[str, Any]],
) -> tuple[bytes, dict[str, int], int]:
    """HDF5's structures for a file of arrays, each of which comes in parts that follow one another.

    Returns the structures' bytes, which end where the first array begins, the offset of each array that is not empty,
    and the size of the HDF5 file.
    """
    page = _PAGE
    while True:
        content, offsets, size = _structures(root_attributes, parts_by_name, array_attributes, page)
        first = min(offsets.values(), default=size)
        if len(content) <= first:
            return content.ljust(first, b"\0"), offsets, size
        # Long attributes have filled the first pages, and further structures came behind an array.
        page *= 2


def _structures(
    root_attributes: Mapping[str, Any],
    parts_by_name: Mapping[str, Sequence[np.ndarray]],
    array_attributes: Mapping[str, Mapping[str, Any]],
    page: int,
) -> tuple[bytes, dict[str, int], int]:
    image = io.BytesIO()  # receives the structures alone, since no array is written
    with h5py.File(image, "w", libver=("v110", "v110"), fs_strategy="page", fs_page_size=page) as file:
        _set_attributes(file, root_attributes)
        offsets = {}
        options = h5p.create(h5p.DATASET_CREATE)
        options.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        options.set_fill_time(h5d.FILL_TIME_NEVER)
        options.set_obj_track_times(False)
        for name, parts in parts_by_name.items():
            shape = (sum(map(len, parts)), *parts[0].shape[1:])
            kind = h5t.py_create(parts[0].dtype.newbyteorder("<"))
            dataset = h5py.Dataset(h5d.create(file.id, name.encode(), kind, h5s.create_simple(shape), options))
            _set_attributes(dataset, array_attributes.get(name, {}))
            if dataset.size:
                offsets[name] = dataset.id.get_offset()
        file.flush()
        size = file.id.get_filesize()
    return image.getvalue(), offsets, size


def footer(structures: bytes) -> bytes:
    """What comes behind the end of an HDF5 file: with it, `reading` finds damage in the structures."""
    start = _FOOTER.pack(_MARK, len(structures), isal_zlib.crc32(structures), 0)[:-4]
    return start + isal_zlib.crc32(start).to_bytes(4, "little")


def write_arrays(file: IO[bytes], parts_by_offset: Iterable[tuple[int, Sequence[np.ndarray]]]) -> None:
    """Writes at each offset its arrays, one after the other. Raises OSError."""
    for offset, parts in parts_by_offset:
        flat = (part.reshape(-1).view(np.uint8) for part in parts)
        buffers = deque(part[i : i + _LARGEST].data for part in flat for i in range(0, len(part), _LARGEST))
        while buffers:
            # Many buffers in one call: between two calls, Python would run the thread of the checksums for
            # milliseconds.
            offset += (written := os.pwritev(file.fileno(), list(itertools.islice(buffers, _BUFFERS)), offset))
            while buffers and written >= len(buffers[0]):
                written -= len(buffers.popleft())
            if written:
                buffers[0] = buffers[0][written:]


@contextlib.contextmanager
def reading(path: Path, remedy: str = REPAIR) -> Iterator[h5py.File]:
    """The file `path`, opened. Whatever its content makes the HDF5 library or the block fail with is damage, for which
    the message names the `remedy`.

    Raises FileNotFoundError, UnreadableError if the system refuses, and CacheError for a damaged file.
    """
    try:
        check_regular(path, remedy)
        _check_structures(path)
        # The files never change once they are there: locking would only keep read-only mounts from working.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno:  # the system's error, not HDF5's
            raise UnreadableError(f"cannot read {path}: {first_line(error)}; fix that, and try again") from None
        raise damage(path, first_line(error), remedy) from None


def arrays(file: h5py.File, names: Iterable[str]) -> dict[str, np.ndarray]:
    """The arrays of these names, those that there are, as read-only maps. Raises what `reading` translates."""
    # By their names alone: to list what is in a damaged file crashes the HDF5 library.
    datasets = {name: _dataset(file, name) for name in names if file.id.links.exists(os.fsencode(name))}
    layout = {name: (dataset.dtype, dataset.shape, dataset.get_offset()) for name, dataset in datasets.items()}
    # The file that HDF5 has open, even if another one has taken its name meanwhile.
    with open(os.dup(file.id.get_vfd_handle()), "rb") as same:
        return _map(same, layout)


def attributes(of: h5py.HLObject, names: Iterable[str]) -> Attributes:
    """The attributes of these names, those that are one number or one string of fixed length.

    Any others were not written by this program.
    """
    found: Attributes = {}
    for name in names:
        if not h5a.exists(of.id, os.fsencode(name)):
            continue
        attribute = h5a.open(of.id, os.fsencode(name))
        dtype = attribute.dtype  # h5py computes it again on each access
        if attribute.shape == () and dtype.kind in "iufS" and dtype.itemsize <= _LONGEST:
            value = np.empty((), dtype)
            attribute.read(value)
            found[name] = os.fsdecode(value.item()) if value.dtype.kind == "S" else value.item()
    return found


def will_need(mapped: np.ndarray) -> None:
    """Asks the system to read what a contiguous view into a mapped file shows, and does not wait for it.

    Otherwise each page that is not in memory is read when it is touched, one after the other.
    """
    view, owner = mapped, mapped.base
    while isinstance(owner, np.ndarray):
        view, owner = owner, owner.base
    if isinstance(owner, mmap.mmap):
        start = mapped.ctypes.data - view.ctypes.data
        begin = start // mmap.PAGESIZE * mmap.PAGESIZE
        owner.madvise(mmap.MADV_WILLNEED, begin, start + mapped.nbytes - begin)


def allow_files(count: int) -> None:
    """Lets this process open `count` files more than it has open, if its limit is lower: a map counts as an open file.

    By default a process may open 1,024 files on Linux, and 256 on macOS. A long extraction leaves thousands of shards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/dev/fd")) + count + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):  # opening the files then says what is wrong
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _check_structures(path: Path) -> None:
    """Raises ValueError for structures that the HDF5 library must not see.

    Its older formats have no checksums over the structures: a damaged one may seem to be in order. And those of the
    newer ones do not keep it from crashing.
    """
    with open(path, "rb", buffering=0) as file:
        start = file.read(len(_SIGNATURE) + 1)
        if not start.startswith(_SIGNATURE):
            raise ValueError("no HDF5 file")
        if start[-1] not in _CHECKSUMMED:
            raise ValueError("not written by this program, or format 1, from before the first release")
        end = os.pread(file.fileno(), _FOOTER.size, max(0, os.fstat(file.fileno()).st_size - _FOOTER.size))
        mark, length, checksum, _ = _FOOTER.unpack(end.ljust(_FOOTER.size))
        # Files of earlier versions have no footer, nor do those whose end is lost. A damaged one checks nothing.
        if mark == _MARK and isal_zlib.crc32(end[:-4]) == int.from_bytes(end[-4:], "little"):
            content = os.pread(file.fileno(), min(length, _MOST_STRUCTURES), 0)
            if len(content) != length or isal_zlib.crc32(content) != checksum:
                raise ValueError("its structures differ from their checksum")


def _set_attributes(of: h5py.File | h5py.Dataset, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, str):
            # HDF5 keeps strings of variable length in a separate heap, which its checksums do not cover.
            text = os.fsencode(value)
            of.attrs.create(name, np.array(text, h5py.string_dtype("utf-8", max(1, len(text)))))
        else:
            of.attrs[name] = value


def _dataset(file: h5py.File, name: str) -> h5d.DatasetID:
    """An array that can be mapped. A link that leads to another file is not followed."""
    encoded = os.fsencode(name)
    is_hard = file.id.links.get_info(encoded).type == h5l.TYPE_HARD
    dataset = h5o.open(file.id, encoded) if is_hard else None
    if isinstance(dataset, h5d.DatasetID):
        dtype, options = dataset.dtype, dataset.get_create_plist()
        if (
            dtype.kind in "fiu"
            and dtype == dtype.newbyteorder("<")
            # h5py reports a common type for numbers of an unusual layout.
            and dataset.get_type().equal(h5t.py_create(dtype))
            and options.get_layout() == h5d.CONTIGUOUS
            and not options.get_external_count()
        ):
            return dataset
    raise ValueError(f"{name} is not a contiguous array of little-endian numbers")


def _map(file: IO[bytes], layout: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """One map of the whole file, and each array as a view into it: the number of maps in a process is limited."""
    try:
        data = np.asarray(np.memmap(file, np.uint8, mode="r"))  # memmap's own indexing takes twice as long
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        data = _read(file.fileno())  # some network file systems cannot map files
    views = {}
    for name, (dtype, shape, offset) in layout.items():
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if size and (offset is None or offset + size > len(data)):
            raise ValueError(f"{name} reaches past the end of the file")
        content = data[offset : offset + size] if size else np.zeros(0, np.uint8)
        views[name] = content.view(dtype).reshape(shape)
    return views


def _read(descriptor: int) -> np.ndarray:
    """The whole file, uint8, read-only. Leaves the place where HDF5 reads next."""
    data, start = np.empty(os.fstat(descriptor).st_size, np.uint8), 0
    while count := os.preadv(descriptor, [data[start : start + _LARGEST].data], start):
        start += count
    data.flags.writeable = False
    return data[:start]
