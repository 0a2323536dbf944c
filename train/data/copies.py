"""Copies: photos whose files have the same bytes."""

from __future__ import annotations

import sys

import numpy as np

from cache.console import counted, print
from cache.strings import Strings
from train.data.parts import LEFT_OUT, TRAIN


def originals(fingerprints: np.ndarray, paths: Strings, parts: np.ndarray) -> np.ndarray:
    """int64 [N]: of each photo, the one that it is a copy of; itself, if it is no copy.

    Of photos with equal `fingerprints` (uint64 [N]) it is the one whose path comes first in sorted order, among those
    in the training part (`parts` uint8 [N]) if there are any. Photos that are left out are nobody's copies.
    """
    found = np.arange(len(fingerprints))
    used = np.flatnonzero(parts != LEFT_OUT)
    in_order = np.sort(fingerprints[used])
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(repeated):
        return found
    rows = used[np.isin(fingerprints[used], repeated)]
    encoded = list(paths.take(rows).encoded())
    rows = rows[sorted(range(len(rows)), key=encoded.__getitem__)]
    rows = rows[np.argsort(parts[rows] != TRAIN, kind="stable")]
    _, first, group = np.unique(fingerprints[rows], return_index=True, return_inverse=True)
    found[rows] = rows[first[group]]
    return found


def warn(original: np.ndarray, paths: Strings, label_ids: np.ndarray, parts: np.ndarray) -> None:
    """Warns on standard error of photos that have copies of another class, copies in another part, or others.

    `original` int64 [N] is that of `originals`; label_ids int [N], parts uint8 [N].
    """
    copies = np.flatnonzero(original != np.arange(len(original)))
    of = original[copies]
    other_class, other_part = label_ids[copies] != label_ids[of], parts[copies] != parts[of]
    for is_one, where, remedy in (
        (other_class, "in another class", "delete those in the wrong one, and run the extraction again"),
        (other_part, "in another part", "accuracies are too high by that; leave each photo in one part"),
        (~other_class & ~other_part, "in its own class", "each counts, and all are in the same part"),
    ):
        if is_one.any():
            first = int(np.argmax(is_one))
            example = f"{paths[of[first]]!r} and {paths[copies[first]]!r}"
            count = counted(len(np.unique(of[is_one])), "photo")
            print(f"warning: {count} with a copy {where}, such as {example}: {remedy}", file=sys.stderr)
