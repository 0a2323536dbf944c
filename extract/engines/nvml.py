"""Readings of the GPUs during a run, from the NVIDIA driver by NVML. What the driver does not answer is left out."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

INTERVAL = 1.0  # seconds; NVML averages the use over one second at most


@dataclass(frozen=True)
class Reading:
    """A GPU at one moment."""

    name: str  # TensorFlow's, such as GPU:0
    use: int | None  # per cent of the last second, or of a part of it, in which anything ran
    memory: tuple[int, int] | None  # bytes: used, and in all

    def __str__(self) -> str:
        """Such as "GPU:0 87% 12/80 GiB", without what is unknown; empty if everything is."""
        use = "" if self.use is None else f" {self.use}%"
        memory = "" if self.memory is None else " {:.0f}/{:.0f} GiB".format(*(size / 2**30 for size in self.memory))
        return f"{self.name}{use}{memory}" if use or memory else ""


@contextlib.contextmanager
def watching(devices: list[str]) -> Iterator[Gpus]:
    """Reads the GPUs among `devices` once a second for the duration of the `with`."""
    gpus = Gpus()
    names = [name for name in devices if name.startswith("GPU:")]
    if not names or not _init():
        yield gpus
        return
    handles = {name: handle for name in names if (handle := _handle(name))}
    end = threading.Event()

    def watch() -> None:
        while not end.wait(INTERVAL):
            gpus.add([_read(name, handle) for name, handle in handles.items()])

    # In a thread of its own, because between two batches a GPU is idle more often than at other times, and because a
    # slow driver must not delay anything.
    thread = threading.Thread(target=watch, name="nvml", daemon=True)
    if handles:
        thread.start()
    try:
        yield gpus
    finally:
        end.set()
        if handles:
            thread.join(INTERVAL)
        if not thread.is_alive():
            _answer(pynvml.nvmlShutdown)


def count() -> int:
    """How many GPUs the driver finds; 0 without a driver that answers."""
    if not _init():
        return 0
    gpus = _answer(pynvml.nvmlDeviceGetCount)
    _answer(pynvml.nvmlShutdown)
    return int(gpus or 0)


class Gpus:
    """The readings so far."""

    def __init__(self) -> None:
        self.latest: list[Reading] = []
        self._count = 0  # of the readings that know the use
        self._sum = 0

    def add(self, readings: list[Reading]) -> None:
        self.latest = readings
        for reading in readings:
            if reading.use is not None:
                self._count += 1
                self._sum += reading.use

    def mean_use(self) -> float | None:
        """The share of the time, from 0 to 1, in which the GPUs were busy; None if no driver reports it."""
        return self._sum / self._count / 100 if self._count else None

    def __str__(self) -> str:
        return ", ".join(filter(None, map(str, self.latest)))


def _init() -> bool:
    """Whether there is a driver that answers. If so, nvmlShutdown must follow."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def _read(name: str, handle: Any) -> Reading:
    rates = _answer(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _answer(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Reading(name, rates and int(rates.gpu), memory and (int(memory.used), int(memory.total)))


def _handle(name: str) -> Any | None:
    """NVML's handle of TensorFlow's GPU `name`, by its UUID, which both libraries know.

    Their numbers differ: CUDA counts the fastest GPU first and NVML counts along the bus, and CUDA_VISIBLE_DEVICES
    selects and reorders for CUDA alone. So the driver itself is asked for the UUID of CUDA's n-th GPU. It also tells
    a MIG instance from the GPU that the instance is a part of.
    """
    uuid_bytes, ordinal = (ctypes.c_ubyte * 16)(), ctypes.c_int(int(name.removeprefix("GPU:")))
    device = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        failed = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), ordinal)
            or cuda.cuDeviceGetUuid_v2(ctypes.byref(uuid_bytes), device)
        )
    except (OSError, AttributeError):  # no such library, or an old one
        return None
    if failed:
        return None
    text = str(uuid.UUID(bytes=bytes(uuid_bytes)))
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID
    return _answer(by_uuid, f"GPU-{text}") or _answer(by_uuid, f"MIG-{text}")


def _answer(question: Callable[..., Any], *arguments: Any) -> Any | None:
    """What NVML answers, or None if it does not: each driver, GPU and container lacks something else."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None
