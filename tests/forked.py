"""Commands in child processes that are forked off a server which has TensorFlow imported already.

They are real processes, with standard streams, signals and limits of their own. But they do not import TensorFlow,
which takes four seconds.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import IO

PATIENCE = 120  # seconds, many times what any of the children takes
CONTEXT = multiprocessing.get_context("forkserver")
# Imported and not used: TensorFlow starts its threads with the first operation, and a fork would lose them.
PRELOAD = ["tensorflow", "extract.compute", "extract.backbones.serving", "extract.engines.tensorflow", "cache.compact"]
PRELOAD += ["train.run", "train.predict", "train.progress", "train.export.output", "train.export.extras"]
PRELOAD += ["train.solvers.lbfgs", "train.solvers.sgd", "train.solvers.sweep"]
PRELOAD += ["tests.interrupted", "tests.trouble"]
CONTEXT.set_forkserver_preload(PRELOAD)
# Waits for the server at the end, so that `time make test` counts what it and the children needed.
atexit.register(forkserver._forkserver._stop)  # type: ignore[attr-defined]


class Child:
    """A child process that does `work`, with pipes to its standard streams: binary files `stdin`, `stdout`, `stderr`.

    `instead` has file descriptors that are used instead of pipes: 1 for standard output, 2 for standard error.
    """

    def __init__(self, work: Callable[..., object], *arguments: object, instead: dict[int, int] | None = None):
        files: dict[int, IO[bytes]] = {}
        streams = []
        for number in range(3):
            if instead and number in instead:
                streams.append(os.dup(instead[number]))
                continue
            read, write = os.pipe()
            streams.append(write if number else read)
            files[number] = os.fdopen(read, "rb") if number else os.fdopen(write, "wb")
        self.stdin, self.stdout, self.stderr = (files.get(number) for number in range(3))
        # A Connection is the one kind of object that takes a file descriptor to such a child.
        connections = [Connection(descriptor) for descriptor in streams]
        self._process = CONTEXT.Process(target=_run, args=(connections, work, arguments))
        self._process.start()
        for connection in connections:
            connection.close()

    def send_signal(self, kind: int) -> None:
        os.kill(self._process.pid, kind)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit status, or the negative number of a signal."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, "it hangs"
        return self._process.exitcode

    def communicate(self, content: bytes = b"") -> tuple[int, bytes, bytes]:
        """Writes `content` to its standard input; returns (exit status, standard output, standard error)."""
        received = {1: b"", 2: b""}

        def read(number: int, stream: IO[bytes]) -> None:
            received[number] = stream.read()

        streams = {number: stream for number, stream in ((1, self.stdout), (2, self.stderr)) if stream}
        readers = [threading.Thread(target=read, args=item) for item in streams.items()]
        for reader in readers:
            reader.start()
        with self.stdin:
            self.stdin.write(content)
        status = self.wait()
        for reader in readers:
            reader.join()
        for stream in streams.values():
            stream.close()
        return status, received[1], received[2]


def start(module: str, *arguments: object, instead: dict[int, int] | None = None) -> Child:
    """`python -m module arguments`."""
    return Child(_command, module, list(map(str, arguments)), instead=instead)


def run(module: str, *arguments: object, content: bytes = b"") -> tuple[int, bytes, bytes]:
    """The same to its end, with `content` as standard input: (exit status, standard output, standard error)."""
    return start(module, *arguments).communicate(content)


def _command(module: str, arguments: list[str]) -> None:
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(module).script())


def _run(streams: list[Connection], work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    # As Python opens them when it starts.
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    work(*arguments)
