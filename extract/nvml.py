"""What the GPUs do meanwhile, read from the NVIDIA driver by NVML. Whatever it does not answer is left out."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pynvml

INTERVAL = 1.0  # seconds; NVML's own average of the use goes back that far at most


@dataclass(frozen=True)
class Reading:
    """A GPU at one moment."""

    name: str  # TensorFlow's, such as GPU:0
    use: int | None  # per cent of the last moments in which anything ran
    memory: tuple[int, int] | None  # bytes: used, and in all

    def __str__(self) -> str:
        """Such as "GPU:0 87% 12/80 GiB", without what is not known; empty where nothing is."""
        use = "" if self.use is None else f" {self.use}%"
        memory = "" if self.memory is None else " {:.0f}/{:.0f} GiB".format(*(size / 2**30 for size in self.memory))
        return f"{self.name}{use}{memory}" if use or memory else ""


@contextlib.contextmanager
def watching(names: list[str]) -> Iterator[Gpus]:
    """Reads those of the devices `names` that are GPUs once a second, as long as the `with` lasts."""
    gpus = Gpus()
    wanted = [name for name in names if name.startswith("GPU:")]
    if not wanted or not _answer(lambda: pynvml.nvmlInit() or True):
        yield gpus
        return
    handles = {name: handle for name in wanted if (handle := _handle(name))}
    end = threading.Event()

    def watch() -> None:
        while not end.wait(INTERVAL):
            gpus.add([_read(name, handle) for name, handle in handles.items()])

    # A thread of its own: between two batches a GPU is idle more often than at other times, and a driver that takes
    # long to answer shall hold nothing up.
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
    """How many GPUs the driver has; 0 where there is none that answers."""
    if not _answer(lambda: pynvml.nvmlInit() or True):
        return 0
    found = _answer(pynvml.nvmlDeviceGetCount)
    _answer(pynvml.nvmlShutdown)
    return int(found or 0)


class Gpus:
    """The readings so far."""

    def __init__(self) -> None:
        self.latest: list[Reading] = []
        self._uses = 0
        self._sum = 0

    def add(self, readings: list[Reading]) -> None:
        self.latest = readings
        for reading in readings:
            if reading.use is not None:
                self._uses, self._sum = self._uses + 1, self._sum + reading.use

    def mean_use(self) -> float | None:
        """The share of the time, from 0 to 1, in which the GPUs were busy; None where no driver says so."""
        return self._sum / self._uses / 100 if self._uses else None

    def __str__(self) -> str:
        return ", ".join(filter(None, map(str, self.latest)))


def _read(name: str, handle: Any) -> Reading:
    rates = _answer(pynvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _answer(pynvml.nvmlDeviceGetMemoryInfo, handle)
    return Reading(name, rates and int(rates.gpu), memory and (int(memory.used), int(memory.total)))


def _handle(name: str) -> Any | None:
    """NVML's handle of TensorFlow's GPU `name`, by the one name that both libraries have for it.

    CUDA counts the fastest first, NVML along the bus, and CUDA_VISIBLE_DEVICES picks and reorders for CUDA alone: the
    driver itself is asked which GPU CUDA's n-th is. It also knows a MIG instance from the GPU that it is part of.
    """
    identity, ordinal = (ctypes.c_ubyte * 16)(), ctypes.c_int(int(name.removeprefix("GPU:")))
    device = ctypes.c_int()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        failed = (
            cuda.cuInit(0)
            or cuda.cuDeviceGet(ctypes.byref(device), ordinal)
            or cuda.cuDeviceGetUuid_v2(ctypes.byref(identity), device)
        )
    except (OSError, AttributeError):  # no such library, or an old one
        return None
    if failed:
        return None
    text = str(uuid.UUID(bytes=bytes(identity)))
    by_uuid = pynvml.nvmlDeviceGetHandleByUUID
    return _answer(by_uuid, f"GPU-{text}") or _answer(by_uuid, f"MIG-{text}")


def _answer(question: Callable[..., Any], *arguments: Any) -> Any | None:
    """What NVML says, or None where it does not: each driver, GPU and container leaves out something else."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None
