"""A column of many strings, in two arrays."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

ABSENT = -1  # the place of a string that is not among those looked up
_BLOCK = 1 << 16  # strings handled at a time


class Strings(Sequence[str]):
    """Many strings as two arrays: the bytes of all in one, the place where each starts in the other.

    `data` uint8 [total bytes], `offsets` int64 [N + 1]; string i is data[offsets[i]:offsets[i + 1]], in the
    file system's encoding. A hundred million paths fit into memory where that many Python strings would not.
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
        if len(parts) == 1 and parts[0].offsets[0] == 0 and parts[0].offsets[-1] == len(parts[0].data):
            return parts[0]
        lengths = np.concatenate([np.zeros(1, np.int64)] + [np.diff(part.offsets) for part in parts])
        data = [part.data[part.offsets[0] : part.offsets[-1]] for part in parts]
        return cls(np.concatenate([np.zeros(0, np.uint8), *data]), np.cumsum(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: Any) -> Any:
        """The string at an integer. A slice of step 1 gives `Strings` that share the arrays."""
        if isinstance(i, slice):
            start, stop, step = i.indices(len(self))
            if step != 1:
                raise TypeError("a slice of strings has step 1; `take` gives any others")
            return Strings(self.data, self.offsets[start : max(start, stop) + 1])
        if not isinstance(i, (int, np.integer)):
            raise TypeError(f"one string at a time: an integer, not {type(i).__name__}")
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return os.fsdecode(self.data[self.offsets[i] : self.offsets[i + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return map(os.fsdecode, self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each string, cut from blocks: slicing the array for each would be ten times slower."""
        for start in range(0, len(self), _BLOCK):
            ends = self.offsets[start : start + _BLOCK + 1].tolist()
            block = self.data[ends[0] : ends[-1]].tobytes()
            for begin, end in itertools.pairwise(ends):
                yield block[begin - ends[0] : end - ends[0]]

    def take(self, indices: np.ndarray) -> Strings:
        """The strings at `indices` (int [M]), in that order."""
        starts, ends = self.offsets[:-1][indices], self.offsets[1:][indices]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - starts)])
        data = np.empty(offsets[-1], np.uint8)
        # In blocks: the places of all bytes at once would take several times eight times the memory of the bytes.
        for begin in range(0, len(starts), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            first, last = offsets[begin], offsets[min(begin + _BLOCK, len(starts))]
            # Byte k of the result comes from the start of its string plus its distance from that start.
            source = np.repeat(starts[block] - offsets[:-1][block], ends[block] - starts[block])
            data[first:last] = self.data[source + np.arange(first, last)]
        return Strings(data, offsets)

    def equals(self, other: Strings) -> bool:
        return np.array_equal(self.offsets, other.offsets) and np.array_equal(self.data, other.data)

    def length(self) -> int:
        """The bytes of all strings together; bytes that two strings share count twice. Damaged offsets do no harm."""
        places = np.clip(self.offsets, 0, len(self.data))
        return int(np.maximum(places[1:] - places[:-1], 0).sum())

    def misplaced(self) -> np.ndarray:
        """bool [N]: whether a string lies outside the data, or ends before it begins."""
        begin, end = self.offsets[:-1], self.offsets[1:]
        return (begin < 0) | (end > len(self.data)) | (end < begin)

    def is_sound(self) -> bool:
        """Whether every string lies inside the data, each where the one before it ends."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        return first == 0 and last == len(self.data) and bool((self.offsets[1:] >= self.offsets[:-1]).all())


class Lookup:
    """The places of strings among the N `strings`, found by their hashes.

    It takes 16 bytes a string: a dict of a hundred million paths would not fit into memory. Python draws the key of its
    hashes anew for each process, so nobody can choose names that collide; those that do by chance are told apart.
    """

    def __init__(self, strings: Strings):
        hashes = _hashes(strings)
        self._strings, self._order = strings, np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def find(self, wanted: Strings) -> np.ndarray:
        """int64 [len(wanted)]: the place of each, or ABSENT."""
        places = np.full(len(wanted), ABSENT, np.int64)
        if not len(self._strings) or not len(wanted):
            return places
        for begin in range(0, len(wanted), _BLOCK):
            block = wanted[begin : begin + _BLOCK]
            hashes = _hashes(block)
            at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            found = np.flatnonzero(self._hashes[at] == hashes)
            at = self._order[at[found]]
            pairs = zip(block.take(found).encoded(), self._strings.take(at).encoded(), strict=True)
            equal = np.fromiter((a == b for a, b in pairs), bool, len(found))
            places[begin + found[equal]] = at[equal]
        return places


def find(wanted: Strings, strings: Strings) -> np.ndarray:
    """int64 [len(wanted)]: the place of each of `wanted` among `strings`, or ABSENT."""
    return np.arange(len(wanted)) if wanted.equals(strings) else Lookup(strings).find(wanted)


def _hashes(strings: Strings) -> np.ndarray:
    return np.fromiter(map(hash, strings.encoded()), np.int64, len(strings))
