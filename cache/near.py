"""The photos whose bottlenecks point in nearly the same direction: those nearest to one, and copies of each other.

How near two are is the cosine of the angle between their bottlenecks: 1 for the same direction, 0 for a right one.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.bar import bar
from cache.errors import UserError
from cache.reader import Cache
from cache.strings import ABSENT, Strings, find

_BLOCK = 4096  # photos compared at a time: 20 MB of float32 at 1,280 values each


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of photos that are nearest to each other, nearest first."""

    first: np.ndarray  # int64 [M], rows of the index
    second: np.ndarray  # int64 [M], each a row behind the one in `first`
    cosines: np.ndarray  # float32 [M]
    total: int  # how many pairs are so near, M of which are here


def rows_of(cache: Cache, photos: Sequence[str]) -> np.ndarray:
    """int64 [len(photos)]: the rows of the index of photos, each named by its path, or by the end of it below
    image_dir. Raises UserError for one that is not in the cache."""
    image_dir = Path(cache.index.image_dir)
    below = [photo if photo in cache.paths else os.path.relpath(os.path.abspath(photo), image_dir) for photo in photos]
    rows = find(Strings.of(below), cache.paths)
    for photo in itertools.compress(photos, rows == ABSENT):
        raise UserError(
            f"{photo} is no photo of {cache.directory}; name one below {image_dir}, such as {cache.paths[0]}"
        )
    return rows


def photo(cache: Cache, row: int) -> dict[str, Any]:
    """The path and the label of the photo at `row` of the index."""
    return {"path": cache.paths[row], "label": cache.labels[cache.label_ids[row]]}


def nearest(cache: Cache, vectors: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The photos nearest to each of Q `vectors`, float [Q, D]; k of them, `count` or as many as there are.

    Returns rows of the index, int64 [Q, k], nearest first, and their cosines, float32 [Q, k]. Reads every bottleneck
    once, in memory for a block of them. Rows with equal cosines come in the order of the index.
    """
    queries = directions(vectors)
    rows = np.zeros((len(queries), 0), np.int64)
    cosines = np.zeros((len(queries), 0), np.float32)
    for block, block_directions in _blocks(cache):
        scores = queries @ block_directions.T
        best = np.argpartition(-scores, min(count, len(block)) - 1, axis=1)[:, :count]
        best.sort(axis=1)
        cosines = np.concatenate([cosines, np.take_along_axis(scores, best, 1)], axis=1)
        rows = np.concatenate([rows, block[best]], axis=1)
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
        cosines, rows = np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)
    return rows, cosines


def pairs(cache: Cache, least: float, count: int) -> Pairs:
    """The pairs of different files with a cosine of at least `least`: the `count` nearest, and how many there are.

    Compares each photo with each, in memory for two blocks of them. That takes the square of the time: a progress bar
    on stderr shows how far it is.
    """
    best = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 0)
    fingerprints, blocks = cache.fingerprints, -(-len(cache) // _BLOCK)
    with bar(desc="compare", total=blocks * (blocks + 1) // 2) as progress:
        for number, (first, ones) in enumerate(_blocks(cache)):
            for second, others in _blocks(cache, number):
                scores = ones @ others.T
                is_same_file = fingerprints[first][:, np.newaxis] == fingerprints[second]
                scores[is_same_file | (first[:, np.newaxis] >= second)] = -np.inf  # each pair once
                best = _merged(best, first, second, scores, least, count)
                progress.update()
    return best


def copies(cache: Cache) -> list[np.ndarray]:
    """Groups of photos whose files are equal, byte for byte, by their fingerprints: rows of the index, int64 [n]
    each, in its order."""
    fingerprints = cache.fingerprints
    order = np.argsort(fingerprints, kind="stable")
    starts = 1 + np.flatnonzero(np.diff(fingerprints[order]))
    groups = [group for group in np.split(order, starts) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def directions(vectors: np.ndarray) -> np.ndarray:
    """float32 [N, D] of length 1; a vector of zeros, which has no direction, stays one."""
    vectors = vectors.astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths == 0, 1, lengths)


def _blocks(cache: Cache, first: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of the index int64 [n], their directions float32 [n, D]), block by block, from block `first` on."""
    for start in range(first * _BLOCK, len(cache), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(cache)))
        following = np.arange(rows[-1] + 1, min(rows[-1] + 1 + _BLOCK, len(cache)))
        cache.will_need(following)  # read from disk while this block is compared
        yield rows, directions(cache.bottlenecks(rows))


def _merged(best: Pairs, first: np.ndarray, second: np.ndarray, scores: np.ndarray, least: float, count: int) -> Pairs:
    """`best` with what is nearer in `scores`, float32 [n, m] of the rows `first` [n] and `second` [m]."""
    near = np.count_nonzero(scores >= least)
    if not near:
        return best
    # What is further than all that are kept already need not be sorted.
    bound = best.cosines[-1] if len(best.cosines) == count else least
    ones, others = np.nonzero(scores >= bound)
    cosines = np.concatenate([best.cosines, scores[ones, others]])
    order = np.argsort(-cosines, kind="stable")[:count]
    return Pairs(
        np.concatenate([best.first, first[ones]])[order],
        np.concatenate([best.second, second[others]])[order],
        cosines[order],
        best.total + int(near),
    )
