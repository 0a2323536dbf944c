"""Where the time goes: a clock for each stage, and a sentence about it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Monitor:
    """Adds up, stage by stage, the seconds that the run waited for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._started = time.perf_counter()

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Counts the time inside the `with` for `stage`, and not for the stage around it."""
        before = time.perf_counter()
        self._running.append(stage)
        try:
            yield
        finally:
            self._running.pop()
            spent = time.perf_counter() - before
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
            if self._running:
                self.seconds[self._running[-1]] = self.seconds.get(self._running[-1], 0.0) - spent

    def waiting(self, stage: str, items: Iterable[Item]) -> Iterator[Item]:
        """Passes `items` on, counting the time that each took to come for `stage`."""
        iterator = iter(items)
        while True:
            with self.clock(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def verdict(self, images: int) -> str:
        """One line: images per second, and the share of the time that each stage was waited for."""
        seconds = time.perf_counter() - self._started
        shares = ", ".join(f"{stage} {spent / seconds:.0%}" for stage, spent in self.seconds.items())
        return f"{images} images in {seconds:.1f} s, {images / seconds:.0f} images/s; waited for {shares}"
