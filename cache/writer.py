"""Collects bottlenecks, and commits them as shards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache import shard
from cache.errors import UserError, first_line
from cache.layout import SHARDS, own_ending
from cache.shard import Rows

COMMIT_SECONDS = 30.0  # at most this much work is lost when a run is killed
COMMIT_BYTES = 128 << 20  # at most this much memory is taken by uncommitted bottlenecks


class Writer:
    """Collects bottlenecks and commits them as shards at least every COMMIT_SECONDS, in the background.

    Use it as a context: leaving it commits the rest, also after an error or Ctrl-C.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any]):
        self._directory = directory / SHARDS
        self._attributes = attributes
        self._pending: list[Rows] = []
        self._since = time.monotonic()
        # One thread, so that memory holds at most the shard that is being written and the next one.
        self._thread = ThreadPoolExecutor(1, "commit")
        self._writing: Future[int] | None = None
        self.committed = 0  # rows on disk
        self.ending = own_ending()  # of the file names of its shards, and of no others
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write {self._directory}: {first_line(error)}; choose another --cache_dir"
            ) from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # If a write failed, its error is raised here or was raised before. The rest is not tried: it would fail too.
        with self._thread:
            self.commit()

    def append(self, rows: Rows) -> None:
        """Adds rows [n, D]. They are on disk once `committed` counts them. Raises UserError when a commit failed."""
        self._pending.append(rows)
        size = sum(pending.bottlenecks.nbytes for pending in self._pending)
        if size >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self._start_writing()

    def commit(self) -> None:
        """Writes the pending rows as one shard and waits for it. Raises UserError when it cannot be written."""
        self._start_writing()
        self._finish_writing()

    def _start_writing(self) -> None:
        self._finish_writing()
        self._since = time.monotonic()
        if self._pending:
            pending, self._pending = self._pending, []
            self._writing = self._thread.submit(self._write, pending)

    def _finish_writing(self) -> None:
        if not self._writing:
            return
        # Ctrl-C during the wait is no failure of the write: leaving the context waits for it again.
        try:
            self.committed += self._writing.result()
        except Exception:
            self._writing = None
            self._pending.clear()
            raise
        self._writing = None

    def _write(self, pending: Sequence[Rows]) -> int:
        shard.write(self._directory, self._attributes, pending, self.ending)
        return sum(map(len, pending))
