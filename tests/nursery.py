"""Child processes that are killed at a moment that is given by its number."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from tests.interrupted import die, watched


class Nursery:
    """Forks the children off a process without TensorFlow and without threads: a child takes milliseconds.

    The moments of a child are those before each call that changes what is on a disk, and amid each write of a file.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def moments(self, work: Callable[..., object], *arguments: object) -> int:
        """How many moments there are in `work(*arguments)`, which is done to its end in a child."""
        status, said = self._child(0, work, arguments)
        assert status == 0, said
        return int(said)

    def is_killed(self, moment: int, work: Callable[..., object], *arguments: object) -> bool:
        """Whether a child that does `work(*arguments)` was killed at its `moment`th moment, from 1; or else ended."""
        status, said = self._child(moment, work, arguments)
        assert status in (0, -signal.SIGKILL), said
        return status != 0

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _child(self, moment: int, work: Callable[..., object], arguments: tuple[object, ...]) -> tuple[int, str]:
        self._connection.send((moment, work, arguments))
        return self._connection.recv()


@contextlib.contextmanager
def nursing() -> Iterator[Nursery]:
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


def _serve(connection: Connection) -> None:
    with contextlib.suppress(EOFError):
        while True:
            moment, work, arguments = connection.recv()
            reading, writing = os.pipe()
            if not (child := os.fork()):
                os.close(reading)
                _do(moment, work, arguments, writing)
            os.close(writing)
            with os.fdopen(reading) as said:
                content = said.read()
            _, status = os.waitpid(child, 0)
            connection.send((os.waitstatus_to_exitcode(status), content))


def _do(moment: int, work: Callable[..., object], arguments: tuple[object, ...], said: int) -> None:
    """What a child does. It says how many moments there were, or what went wrong."""
    counter = itertools.count(1)
    count = 0

    def reached(when: str, *_: object) -> None:
        nonlocal count
        if when != "after":  # that is before the next one
            count = next(counter)
            if count == moment:
                die()

    status = 1
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with os.fdopen(said, "w") as answer:
        try:
            with watched(reached):
                work(*arguments)
            answer.write(str(count))
            status = 0
        except BaseException:
            answer.write(traceback.format_exc())
    os._exit(status)
