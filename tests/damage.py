"""What can happen to a file of a cache: bits flip, its end is lost, other bytes get into it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
from hypothesis import strategies as st

FOOTER = 24  # bytes at the end of an HDF5 file of a cache, with the checksum of its structures


def place_of(path: Path, array: str, row: int) -> int:
    """Where in an HDF5 file the row of an array begins."""
    with h5py.File(path) as file:
        dataset = file[array]
        return dataset.id.get_offset() + row * dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=int))


def flip(path: Path, place: int, mask: int = 1) -> None:
    """Flips bits of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


@contextlib.contextmanager
def flipped(path: Path, masks: Mapping[int, int]) -> Iterator[None]:
    """Flips bits of the bytes at some places of a file, each by its mask, until the block ends."""
    # In place: to write a new file for each flip would take longer than to read it.
    with path.open("r+b", buffering=0) as file:
        before = {place: os.pread(file.fileno(), 1, place) for place in masks}
        for place, byte in before.items():
            os.pwrite(file.fileno(), bytes([byte[0] ^ masks[place]]), place)
        try:
            yield
        finally:
            for place, byte in before.items():
                os.pwrite(file.fileno(), byte, place)


def cut_in_last_row(path: Path) -> None:
    """Cuts the last byte off the bottlenecks of a shard, which are the last array in the file."""
    with h5py.File(path) as file:
        vectors = file["bottlenecks"]
        os.truncate(path, vectors.id.get_offset() + vectors.nbytes - 1)


def mutated(content: bytes, other: bytes) -> st.SearchStrategy[bytes]:
    """What may become of the bytes: some changed, the end cut off, more at the end, bytes of `other` in the middle."""
    places = st.integers(0, len(content) - 1)
    # Structures lie at the start and arrays are few: most of a file is empty.
    interesting = st.sampled_from([i for i, byte in enumerate(content) if byte])
    changes = st.lists(st.tuples(places | interesting, st.integers(0, 255)), min_size=1, max_size=8)

    def change(pairs: list[tuple[int, int]]) -> bytes:
        new = bytearray(content)
        for place, byte in pairs:
            new[place] = byte
        return bytes(new)

    def splice(ends: tuple[int, int]) -> bytes:
        begin, end = sorted(ends)
        return content[:begin] + other[begin:end] + content[end:]

    return st.one_of(
        changes.map(change),
        places.map(lambda end: content[:end]),
        st.binary(max_size=5000).map(lambda more: content + more),
        st.tuples(places, places).map(splice),
        st.binary(max_size=300).map(lambda start: start + content[len(start) :]),
    )
