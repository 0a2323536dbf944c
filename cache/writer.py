"""Collects bottlenecks, and commits them as shards."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cache import shard, store
from cache.errors import UserError
from cache.shard import Rows

COMMIT_SECONDS = 30.0  # work that a killed run repeats, at most
COMMIT_BYTES = 128 << 20  # memory that uncommitted bottlenecks take, at most


class Writer:
    """Collects bottlenecks and commits them as shards, at least every COMMIT_SECONDS, while it takes the next.

    Use it as a context: leaving it commits what is left, after an error or Ctrl-C too.
    """

    def __init__(self, directory: Path, attributes: Mapping[str, Any]):
        self._directory = directory / store.SHARDS
        self._attributes = attributes
        self._pending: list[Rows] = []
        self._since = time.monotonic()
        # One thread: what is being written and what is being collected bound the memory.
        self._thread = ThreadPoolExecutor(1, "commit")
        self._writing: Future[int] | None = None
        self.committed = 0  # rows on disk
        self.own_end = shard.own_end()  # of the file names of its shards, and of no others
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {self._directory}: {error.strerror}; choose another --cache_dir") from None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # Where a write failed, this raises or has raised its error, and no other is tried: it would fail the same way.
        with self._thread:
            self.commit()

    def append(self, rows: Rows) -> None:
        """Takes rows [n, D]; they are safe once `committed` counts them. Raises UserError when a commit failed."""
        self._pending.append(rows)
        size = sum(pending.bottlenecks.nbytes for pending in self._pending)
        if size >= COMMIT_BYTES or time.monotonic() - self._since >= COMMIT_SECONDS:
            self._start_writing()

    def commit(self) -> None:
        """Writes what is pending as one shard, and waits for it. Raises UserError when it cannot be written."""
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
        # Ctrl-C while waiting is no failure of the write: leaving the context waits for it once more.
        try:
            self.committed += self._writing.result()
        except Exception:
            self._writing = None
            self._pending.clear()
            raise
        self._writing = None

    def _write(self, pending: Sequence[Rows]) -> int:
        shard.write(self._directory, self._attributes, pending, self.own_end)
        return sum(map(len, pending))
