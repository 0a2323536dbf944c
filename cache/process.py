"""This process: the cores that it may use, and importing TensorFlow quietly."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cache.errors import UserError

# The container's share of the processors (cgroup v2): microseconds of computing in a period, and the period.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """How many cores this process may use, also in a container that has only a share of its machine's."""
    # macOS cannot restrict a process to some cores, and has no such function.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


def import_tensorflow() -> None:
    """Imports TensorFlow without the lines about CUDA and oneDNN that it prints before anything can turn them off."""
    with _interrupts_delayed(), quiet_stderr():
        importlib.import_module("tensorflow")


@contextlib.contextmanager
def _interrupts_delayed() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of the block: TensorFlow's import swallows some, and the run would go on."""
    came = []
    kinds = [kind for kind in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(kind) is signal.default_int_handler]
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        kinds = []
    for kind in kinds:
        signal.signal(kind, lambda *_: came.append(True))
    try:
        yield
    finally:
        for kind in kinds:
            signal.signal(kind, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what libraries write to standard error, and prints it only if an unexpected error ends the block."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException:
            log.seek(0)
            os.write(terminal, log.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Holds back what libraries in C write to standard error, such as a decoder's remarks on each photo.

    They would name no file and break the progress bar. What Python writes to sys.stderr gets through.
    """
    try:
        terminal = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with open(terminal, "w", buffering=1, errors="backslashreplace") as file:
        # Otherwise somebody has replaced it, as notebooks do.
        python = file if _is_standard_error(sys.stderr) else sys.stderr
        with quiet_stderr(), contextlib.redirect_stderr(python):
            yield


def _is_standard_error(stream: IO[str]) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):
        return False
