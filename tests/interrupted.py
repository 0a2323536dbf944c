"""Commands as child processes that something happens to, at a named step of a commit or from outside.

The children are forked off a server that has TensorFlow imported already, so that a hundred of them take a minute.
"""

from __future__ import annotations

import builtins
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from cache import command, store, writer

_PATIENCE = 120  # seconds, many times what any of the children takes
_CONTEXT = multiprocessing.get_context("forkserver")
# Imported and not used: TensorFlow starts its threads with the first operation, and those a fork would lose.
_CONTEXT.set_forkserver_preload(["tensorflow", "extract.run", "extract.fill", "extract.serving", "cache.compact"])


@dataclass(frozen=True)
class Step:
    """A moment of a commit: before, amid or after a call on the `which`th file or folder of a kind.

    The calls: open (to write), write (the first one), fsync, replace, unlink. The kinds: shard, index, rejected,
    backbone, the folder of shards and the folder above it.
    """

    moment: str
    call: str
    kind: str
    which: int = 1

    def __str__(self) -> str:
        return f"{self.moment} {self.call} of {self.kind} {self.which}"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """`python -m extract` or `python -m cache`, committing every batch.

    `first` happens in it before anything else, and `then` when it comes to `at`.
    """

    def __init__(
        self,
        program: str,
        flags: list[str],
        at: Step | None = None,
        then: Callable[[], object] = die,
        first: Callable[[], object] = bool,
    ):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        self._errors = receiver
        self._process = _CONTEXT.Process(target=_run, args=(program, flags, at, then, first, sender))
        self._process.start()
        sender.close()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> tuple[int, str]:
        """Its exit status, or less a signal's number, and what it wrote to standard error."""
        self._process.join(_PATIENCE)
        assert self._process.exitcode is not None, "it hangs"
        with open(self._errors.fileno(), closefd=False) as errors:
            return self._process.exitcode, errors.read()


def _run(
    program: str,
    flags: list[str],
    at: Step | None,
    then: Callable[[], object],
    first: Callable[[], object],
    errors: Connection,
) -> None:
    os.dup2(errors.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    errors.close()
    first()
    writer.COMMIT_SECONDS = 0
    with _watched(at, then) if at else contextlib.nullcontext():
        if program == "extract":
            from extract.__main__ import main
        else:
            from cache.__main__ import main
        sys.exit(command.run(main, flags))


@contextlib.contextmanager
def _watched(at: Step, then: Callable[[], object]) -> Iterator[None]:
    """Lets `then` happen at `at`, by putting itself between this process and the calls that change a disk."""
    seen = 0

    def reached(moment: str, call: str, path: str | os.PathLike) -> None:
        nonlocal seen
        if (moment, call, _kind(Path(path))) == (at.moment, at.call, at.kind):
            seen += 1
            if seen == at.which:
                then()

    def between(call: str, function: Callable, place: Callable[..., str | os.PathLike]) -> Callable:
        def watched(*arguments: Any, **options: Any) -> Any:
            path = place(*arguments, **options)
            reached("before", call, path)
            result = function(*arguments, **options)
            reached("after", call, path)
            return result

        return watched

    class File:
        def __init__(self, file: IO[bytes], path: str | os.PathLike):
            self._file, self._path, self._is_written = file, path, False

        def write(self, data: Any) -> int:
            if self._is_written:
                return self._file.write(data)
            self._is_written = True
            reached("before", "write", self._path)
            half = len(data) // 2
            self._file.write(data[:half])
            self._file.flush()
            reached("amid", "write", self._path)
            self._file.write(data[half:])
            reached("after", "write", self._path)
            return len(data)

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    opened = builtins.open
    to_write = between("open", opened, lambda path, *_: path)

    def watched_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "wb":
            return opened(path, mode, *arguments, **options)
        return File(to_write(path, mode, *arguments, **options), path)

    unwatched = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
    os.fsync = between("fsync", os.fsync, _path_of)
    os.replace = between("replace", os.replace, lambda _, target: target)
    os.unlink = between("unlink", os.unlink, lambda path, dir_fd=None: os.path.join(_path_of(dir_fd), path))
    builtins.open = watched_open
    try:
        yield
    finally:
        builtins.open = opened
        for name, function in unwatched.items():
            setattr(os, name, function)


def _path_of(descriptor: int | None) -> str:
    return "" if descriptor is None else os.readlink(f"/proc/self/fd/{descriptor}")


def _kind(path: Path) -> str:
    names = {store.INDEX: "index", store.REJECTED: "rejected", store.BACKBONE: "backbone"}
    for name, kind in names.items():
        if path.name.lstrip(".").startswith(name) or path.parent.name == name:
            return kind
    if path.parent.name == store.SHARDS:
        return "shard"
    if path.name == store.SHARDS:
        return "folder of shards"
    return "folder above" if path.is_dir() else "other"
