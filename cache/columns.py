"""One HDF5 file of plain arrays: written once and atomically, checksummed, mapped on reading.

Shards and indexes are both such files. `FORMAT.md` is the promise that this module keeps.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cache.errors import CacheError, UserError

FORMAT = "bottleneck-cache"
VERSION = 1
BLOCK = 1 << 20  # bytes that one checksum covers
PAGE = 4096  # arrays start on page boundaries, so that mapping one touches no other
TEMPORARY = ".tmp"


class Strings(Sequence[str]):
    """Many strings as two arrays: all the bytes in one, where each starts in the other.

    `data` uint8 [total bytes], `offsets` int64 [N + 1]; string i is data[offsets[i]:offsets[i + 1]], in the
    file system's encoding. A hundred million paths fit where that many Python strings would not.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray):
        self.data, self.offsets = data, offsets

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        return cls.of_encoded([os.fsencode(string) for string in strings])

    @classmethod
    def of_encoded(cls, encoded: Sequence[bytes]) -> Strings:
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Strings]) -> Strings:
        lengths = np.concatenate([np.zeros(1, np.int64)] + [np.diff(part.offsets) for part in parts])
        data = [part.data[part.offsets[0] : part.offsets[-1]] for part in parts]
        return cls(np.concatenate([np.zeros(0, np.uint8), *data]), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        if not isinstance(i, (int, np.integer)):
            raise TypeError(f"one string at a time: an integer, not {type(i).__name__}")
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self.data[self.offsets[i] : self.offsets[i + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """Each string's bytes, read in blocks: a slice of an array for each would be ten times slower."""
        step = 65536
        for start in range(0, len(self), step):
            ends = self.offsets[start : start + step + 1].tolist()
            block = self.data[ends[0] : ends[-1]].tobytes()
            for begin, end in itertools.pairwise(ends):
                yield block[begin - ends[0] : end - ends[0]]

    def take(self, indices: np.ndarray) -> Strings:
        """The strings at `indices` (int [M]), in that order."""
        starts, ends = self.offsets[:-1][indices], self.offsets[1:][indices]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - starts)])
        # Byte k of the result comes from its own string's start plus how far k is into that string.
        source = np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])
        return Strings(self.data[source], offsets)

    def equals(self, other: Strings) -> bool:
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.data, other.data)


def write(path: Path, kind: str, attributes: Mapping[str, Any], columns: Mapping[str, Any]) -> None:
    """Writes `columns` (arrays or `Strings`) as the file `path`, which appears whole or not at all.

    Raises UserError when the disk is full or the place cannot be written; then nothing is left behind.
    """
    # HDF5 reports a full disk from wherever it happens to flush, its own clean-up included. Built in memory
    # and written by the operating system, the file fails in one place with a plain errno.
    image = io.BytesIO()
    with h5py.File(image, "w", alignment_threshold=1, alignment_interval=PAGE) as file:
        file.attrs.update({"format": FORMAT, "version": VERSION, "kind": kind, **attributes})
        for name, column in columns.items():
            if isinstance(column, Strings):
                _create(file, name, column.data)
                _create(file, f"{name}_offsets", column.offsets)
            else:
                _create(file, name, column)
    replace(path, image.getbuffer())


def replace(path: Path, content: bytes | memoryview) -> None:
    """Makes `content` the file `path`: written beside it, flushed to disk, renamed over it.

    Raises UserError when that fails; what was at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the rename itself must survive a power cut
        finally:
            os.close(directory)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder itself may be what went away
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another --cache_dir, "
            "and run again: what was committed before is kept"
        ) from None


def read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The attributes and the arrays of a file that `write` made; the arrays are read-only maps of it.

    Raises CacheError for a file that is missing, damaged, of another kind or format, or newer than this reader.
    """
    try:
        # The files never change once they are there: locking would only keep read-only mounts from working.
        with h5py.File(path, "r", locking=False) as file:
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
            _check_kind(path, attributes, kind)
            layout = {name: (d.dtype, d.shape, d.id.get_offset(), d.chunks) for name, d in file.items()}
        return attributes, _map(path, layout)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing; copy it again or run the extraction again") from None
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CacheError(f"{path} is damaged ({reason}); delete it and run the extraction again") from None


def strings(columns: Mapping[str, np.ndarray], name: str) -> Strings:
    """The column `name` of strings among what `read` returned."""
    return Strings(columns[name], columns[f"{name}_offsets"])


def damage(path: Path, kind: str) -> list[str]:
    """What is wrong with the file, one line each; empty when every checksum agrees."""
    try:
        _, columns = read(path, kind)
        with h5py.File(path, "r", locking=False) as file:
            stored = {name: dataset.attrs["crc32"] for name, dataset in file.items()}
    except CacheError as error:
        return [str(error)]
    except (OSError, KeyError, RuntimeError) as error:
        return [f"{path} is damaged ({error})"]
    return [
        f"{path}: the bytes of {name} differ from their checksum"
        for name, column in columns.items()
        if not np.array_equal(stored[name], _checksums(column))
    ]


def _create(file: h5py.File, name: str, column: np.ndarray) -> None:
    dataset = file.create_dataset(name, data=np.ascontiguousarray(column), track_times=False)
    dataset.attrs["crc32"] = _checksums(column)


def _checksums(column: np.ndarray) -> np.ndarray:
    """CRC-32 (zlib's) of each BLOCK of the array's bytes: uint32 [ceil(bytes / BLOCK)]."""
    data = np.ascontiguousarray(column).reshape(-1).view(np.uint8)
    return np.array([zlib.crc32(data[i : i + BLOCK].data) for i in range(0, len(data), BLOCK)], np.uint32)


def _check_kind(path: Path, attributes: Mapping[str, Any], kind: str) -> None:
    if attributes.get("format") != FORMAT:
        raise CacheError(f"{path} is no file of a bottleneck cache; give the folder that `extract` filled")
    if attributes["version"] > VERSION:
        raise CacheError(
            f"{path} has cache format {attributes['version']}, newer than format {VERSION} that this version "
            "reads; update this program"
        )
    if attributes["kind"] != kind:
        raise CacheError(f"{path} is a cache's {attributes['kind']}, not its {kind}")


def _map(path: Path, layout: Mapping[str, tuple]) -> dict[str, np.ndarray]:
    """One map of the whole file, and each array as a view into it: the number of maps a process may hold is small."""
    data = np.memmap(path, np.uint8, mode="r")
    columns = {}
    for name, (dtype, shape, offset, chunks) in layout.items():
        size = dtype.itemsize * int(np.prod(shape, dtype=object))
        if dtype.kind not in "fiu" or chunks is not None or (size and offset is None):
            raise ValueError(f"{name} is not a contiguous array of numbers")
        if size and offset + size > len(data):
            raise ValueError(f"{name} reaches past the end of the file")
        content = data[offset : offset + size] if size else np.zeros(0, np.uint8)
        columns[name] = content.view(dtype).reshape(shape)
    return columns


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
