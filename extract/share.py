"""What is still to be done, piece by piece, while other extractions may be doing the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cache import shard, store
from cache.errors import CacheError
from cache.shard import Rows
from cache.strings import Lookup
from extract import plan
from extract.images import Images

PIECE = 256  # images handed out at a time


class Work:
    """The images `missing` (int64 [M], into `images`), without those that others commit to `directory` meanwhile.

    They are missing in the shards `known` (file names); any other has come since they were looked for.

    Nobody waits for anybody, and there are no claims that a killed run would leave behind: what another extraction has
    done is learnt from its shards as they appear. So two do twice what both have in hand, and no more: a piece, what is
    in the pipeline, and what is not committed yet.
    """

    def __init__(self, images: Images, missing: np.ndarray, directory: Path, known: Iterable[str] = ()):
        self._images, self._missing, self._directory = images, missing, directory
        self._seen = set(known)
        self._changed: int | None = None  # when the folder of shards last did
        self._lookup: Lookup | None = None  # of the missing paths; made when another extraction shows itself
        self._done = np.zeros(len(missing), bool)  # by others
        self.left_out = 0  # images that others had done when their turn came

    def pieces(self, own: str) -> Iterator[np.ndarray]:
        """int64 [n], into `images`: what is to be done, each image once. File names of our shards end in `own`.

        In random order: of two extractions that went the same way, the one behind would for ever repeat what the one
        before it has in hand.
        """
        starts = np.arange(0, len(self._missing), PIECE)
        for start in np.random.default_rng().permutation(starts).tolist():
            self._look_around(own)
            piece = slice(start, start + PIECE)
            todo = self._missing[piece][~self._done[piece]]
            self.left_out += len(self._missing[piece]) - len(todo)
            if len(todo):
                yield todo

    def _look_around(self, own: str) -> None:
        try:
            changed = (self._directory / store.SHARDS).stat().st_mtime_ns
            names = store.shard_names(self._directory) if changed != self._changed else []
        except OSError:  # the next commit says what is wrong, if it is not only for now
            return
        self._changed = changed
        for name in names:
            if name not in self._seen and not name.endswith(own):
                with contextlib.suppress(CacheError):  # gone again, or damaged: then its images are done here
                    self._leave_out(shard.check(shard.read(self._directory / store.SHARDS / name)).rows)
            self._seen.add(name)

    def _leave_out(self, rows: Rows) -> None:
        if self._lookup is None:
            self._lookup = Lookup(self._images.paths.take(self._missing))
        places, _ = plan.unchanged(self._images, self._missing, self._lookup, rows)
        self._done[places] = True
