"""Where the time goes: a clock for each stage, and a sentence about it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

# The stages, as the user reads them.
STARTING = "starting"  # until the first bottlenecks are there: kernels are compiled, buffers filled
DECODING = "decoding"
NETWORK = "the network"
WRITING = "writing"
TRACING = "tracing"  # the trace itself, when one was asked for: to start it, and to write it out
STAGES = (STARTING, DECODING, NETWORK, WRITING, TRACING)

DOMINANT = 0.6  # a stage that is waited for that share of the time holds the others up
IDLE = 0.5  # a GPU busy for less of the time is not what a run waits for, even if it waits for the network

_SHARED_CORES = "more CPU cores (decoding and the network share them)"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Setup:
    """What an extraction ran on, as far as there is something to change about it."""

    gpus: int  # that ran the network; 0: the processor did
    cores: int  # that this process may use
    threads: int  # that decoded
    gpu_use: float | None = None  # share of the time that the GPUs were busy; None where nobody says
    faster_precision: bool = False  # the hardware has one, and it was not used
    faster_engine: bool = False  # likewise


def verdict(seconds: Mapping[str, float], setup: Setup) -> str:
    """A sentence: which stage holds the others up, going by the seconds that each was waited for, and what helps."""
    stages = {stage: seconds.get(stage, 0.0) for stage in (DECODING, NETWORK, WRITING)}
    steady = sum(stages.values())
    slowest = max(stages, key=lambda stage: stages[stage])
    if seconds.get(STARTING, 0.0) >= steady:
        return "too short to tell: most of the time went into starting, which more images would not prolong"
    busy = ""
    if setup.gpus and setup.gpu_use is not None:
        busy = f"the GPU{'s were' if setup.gpus > 1 else ' was'} busy {setup.gpu_use:.0%} of the time; "
    if stages[slowest] < DOMINANT * steady:
        return f"balanced: {busy}no stage holds up the others"
    if slowest == DECODING:
        return f"decode-bound: {busy}{_for_decoding(setup)} would help"
    if slowest == WRITING:
        return f"write-bound: {busy}a faster disk for --cache_dir would help"
    return f"network-bound: {busy}{_for_the_network(setup)} would help"


def _for_decoding(setup: Setup) -> str:
    if setup.threads >= setup.cores:
        return "more CPU cores" if setup.gpus else _SHARED_CORES
    return f"more --decode_threads (now {setup.threads} on {setup.cores} cores)"


def _for_the_network(setup: Setup) -> str:
    if setup.gpus and setup.gpu_use is not None and setup.gpu_use < IDLE:
        return "it waits for work to be copied and started, where a larger --batch_size"
    remedies = ["--precision auto"] if setup.faster_precision else []
    if setup.gpus:
        return ", or ".join([*remedies, "more or faster GPUs"])
    remedies += ["--engine openvino"] if setup.faster_engine else []
    return ", or ".join([*remedies, "a GPU", _SHARED_CORES])


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

    def waiting(self, stage: str, items: Iterable[Item], first: str | None = None) -> Iterator[Item]:
        """Passes `items` on, counting the time that each took to come for `stage`; the first one's for `first`."""
        iterator = iter(items)
        clocked = first or stage
        while True:
            with self.clock(clocked):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            clocked = stage
            yield item

    def shares(self, images: int) -> str:
        """One line: images per second, and the share of the time that each stage was waited for."""
        seconds = time.perf_counter() - self._started
        waited = {stage: self.seconds[stage] for stage in STAGES if stage in self.seconds}
        shares = ", ".join(f"{stage} {spent / seconds:.0%}" for stage, spent in waited.items())
        return f"{images} images in {seconds:.1f} s, {images / seconds:.0f} images/s; waited for {shares}"
