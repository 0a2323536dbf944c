"""Where the time goes: a clock for each stage of an extraction, and a sentence that sums them up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

# The stages, in the words that the user reads.
STARTING = "starting"  # until the first bottlenecks are there: kernels are compiled, buffers are filled
DECODING = "decoding"
NETWORK = "the network"
WRITING = "writing"
TRACING = "tracing"  # with --trace: starting the trace, and writing it
STAGES = (STARTING, DECODING, NETWORK, WRITING, TRACING)

DOMINANT = 0.6  # a stage that is waited for during this share of the time or more holds up the others
IDLE = 0.5  # a GPU that is busy for less of the time is not the bottleneck, even if the run waits for the network

_SHARED_CORES = "more CPU cores (decoding and the network share them)"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Setup:
    """What an extraction ran on, as far as a user can change it."""

    gpus: int  # that ran the network; 0: the CPU did
    cores: int  # that this process may use
    threads: int  # that decoded
    gpu_use: float | None = None  # share of the time during which the GPUs were busy; None if unknown
    faster_precision: bool = False  # whether the hardware has a faster precision than the one used
    faster_engine: bool = False  # whether there is a faster engine than the one used


def verdict(seconds: Mapping[str, float], setup: Setup) -> str:
    """A sentence that names the stage which holds up the others, and what helps. `seconds`: the wait for each stage."""
    stages = {stage: seconds.get(stage, 0.0) for stage in (DECODING, NETWORK, WRITING)}
    steady = sum(stages.values())
    slowest = max(stages, key=lambda stage: stages[stage])
    if seconds.get(STARTING, 0.0) >= steady:
        return "too short to say: most of the time went into starting, which does not grow with the number of photos"
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


class Clocks:
    """Adds up, stage by stage, the seconds that the run waited for it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._started = time.perf_counter()

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Counts the time inside the block for `stage`, and not for the stage of a block around it."""
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
        """Yields the `items`, and counts the wait for each for `stage`, for the first item for `first`."""
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

    def shares(self, photos: int) -> str:
        """One line: photos per second, and the share of the time spent waiting for each stage."""
        seconds = time.perf_counter() - self._started
        waited = {stage: self.seconds[stage] for stage in STAGES if stage in self.seconds}
        shares = ", ".join(f"{stage} {spent / seconds:.0%}" for stage, spent in waited.items())
        return f"{photos} photos in {seconds:.1f} s, {photos / seconds:.0f} photos/s; waited for {shares}"
