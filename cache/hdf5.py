"""HDF5 files of plain arrays: laid out so that each array can be mapped, and read without trusting what they say.

Only the structures are left to the HDF5 library. The arrays are written by the operating system and mapped by it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import mmap
import os
import resource
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5o, h5p, h5s, h5t

from cache.errors import UnreadableError, damage, first_line
from cache.files import check_regular

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CHECKSUMMED = (2, 3)  # versions of HDF5's superblock with checksums over the file's own structures
# HDF5 puts its structures on pages of their own, which come first, and every array of a page or more on a page
# boundary. So mapping an array touches no other one, and a file that was cut off has lost its last rows only.
_PAGE = 8192
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

    Returns the structures' bytes, the offset of each array that is not empty, and the size of the whole file.
    """
    image = io.BytesIO()  # receives the structures alone, since no array is written
    with h5py.File(image, "w", libver=("v110", "v110"), fs_strategy="page", fs_page_size=_PAGE) as file:
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
def reading(path: Path) -> Iterator[h5py.File]:
    """The file `path`, opened. Whatever its content makes the HDF5 library or the block fail with is damage.

    Raises FileNotFoundError, UnreadableError if the system refuses, and CacheError for a damaged file.
    """
    try:
        check_regular(path)
        _check_signature(path)
        # The files never change once they are there: locking would only keep read-only mounts from working.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno:  # the system's error, not HDF5's
            raise UnreadableError(f"cannot read {path}: {first_line(error)}; fix that, and try again") from None
        raise damage(path, first_line(error)) from None


def arrays(file: h5py.File) -> tuple[dict[str, np.ndarray], dict[str, Attributes]]:
    """The arrays of a file as read-only maps, and the attributes of each. Raises what `reading` translates."""
    datasets = {name: _dataset(file, name) for name in file}
    layout = {name: (dataset.dtype, dataset.shape, dataset.get_offset()) for name, dataset in datasets.items()}
    # The file that HDF5 has open, even if another one has taken its name meanwhile.
    with open(os.dup(file.id.get_vfd_handle()), "rb") as same:
        mapped = _map(same, layout)
    return mapped, {name: attributes(dataset) for name, dataset in datasets.items()}


def attributes(of: h5py.h5g.GroupID | h5d.DatasetID) -> Attributes:
    """The attributes that are one number or one string of fixed length. Any other was not written by this program."""
    names: list[bytes] = []
    h5a.iterate(of, names.append)
    found: Attributes = {}
    for name in names:
        attribute = h5a.open(of, name)
        dtype = attribute.dtype  # h5py computes it again on each access
        if attribute.shape == () and dtype.kind in "iufS" and dtype.itemsize <= _LONGEST:
            value = np.empty((), dtype)
            attribute.read(value)
            found[os.fsdecode(name)] = os.fsdecode(value.item()) if value.dtype.kind == "S" else value.item()
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


def _check_signature(path: Path) -> None:
    """HDF5's older formats have no checksums over their structures: a damaged one may seem to be in order."""
    with open(path, "rb") as file:
        start = file.read(len(_SIGNATURE) + 1)
    if not start.startswith(_SIGNATURE):
        raise ValueError("no HDF5 file")
    if start[-1] not in _CHECKSUMMED:
        raise ValueError("not written by this program, or format 1, from before the first release")


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
