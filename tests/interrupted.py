"""Commands as forked processes that something happens to, at a named step of a commit or from outside."""

from __future__ import annotations

import builtins
import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cache import layout, writer
from tests.processes import Process, command
from train.export.runs import LATEST, RUNS


@dataclass(frozen=True)
class Step:
    """A moment of a commit: before, amid or after a call on the `which`th file or folder of a kind.

    The calls: open (to write), write (the first one), fsync, symlink, replace (of a file or link), rename (of a
    folder), unlink, rmdir. The kinds: shard, index, rejected, backbone, the folder of shards, a run of training, the
    link to the latest of these, and the folder above. Of a replacement or a renaming, the target counts.
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
    """`python -m extract`, `python -m cache` or `python -m train`, forked. An extraction commits every batch.

    `first` happens in it before anything else, and `then` when it comes to `at`: a step, or the number of a moment
    before a step or amid one.
    """

    def __init__(
        self,
        program: str,
        flags: Sequence[object],
        at: Step | int | None = None,
        then: Callable[[], object] = die,
        *,
        first: Callable[[], object] = bool,
    ):
        self._process = Process(_run, program, flags, at, then, first)

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> tuple[int, str]:
        """Its exit status, or a negative signal's number, and what it wrote to standard error."""
        done = self._process.wait()
        return done.returncode, done.stderr


def _run(
    program: str,
    flags: Sequence[object],
    at: Step | int | None,
    then: Callable[[], object],
    first: Callable[[], object],
) -> int:
    first()
    writer.COMMIT_SECONDS = 0
    seen = 0

    def reached(moment: str, call: str, path: str | os.PathLike) -> None:
        nonlocal seen
        if isinstance(at, int):
            seen += moment != "after"  # which is before the next one
            if seen == at and moment != "after":
                then()
        elif at and (moment, call, _kind(Path(path))) == (at.moment, at.call, at.kind):
            seen += 1
            if seen == at.which:
                then()

    with watched(reached):
        return command(program, flags)


@contextlib.contextmanager
def watched(reached: Callable[[str, str, str | os.PathLike], None]) -> Iterator[None]:
    """Calls `reached` with the moment, the call and the path of each step.

    Wraps the functions with which Python changes what is on a disk. Of a file's writes only the first one is a "write",
    which is so for every file; the others are "further writes". Files that are opened by their number or for more than
    writing, as locks are, are "created".
    """

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
            call, self._is_written = "further write" if self._is_written else "write", True
            reached("before", call, self._path)
            half = len(data) // 2
            self._file.write(data[:half])
            self._file.flush()
            reached("amid", call, self._path)
            self._file.write(data[half:])
            reached("after", call, self._path)
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

    places: dict[str, Callable[..., str | os.PathLike]] = {
        **dict.fromkeys(("fsync", "pwritev"), lambda file, *_: _path_of(file)),
        **dict.fromkeys(("symlink", "replace", "rename"), lambda _, target: target),
        **dict.fromkeys(("unlink", "rmdir"), lambda path, dir_fd=None: os.path.join(_path_of(dir_fd), path)),
        "mkdir": lambda path, *_: path,
    }
    unwatched = {name: getattr(os, name) for name in (*places, "open")}
    create = between("create", os.open, lambda path, *_, **__: path)

    def watched_os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        call = create if flags & os.O_CREAT else unwatched["open"]
        return call(path, flags, *arguments, **options)

    for name, place in places.items():
        setattr(os, name, between(name, unwatched[name], place))
    os.open = watched_os_open  # type: ignore[assignment]
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
    names = {layout.INDEX: "index", layout.REJECTED: "rejected", layout.BACKBONE: "backbone"}
    for name, kind in names.items():
        # A temporary name is a dot and the name, then more.
        if any(part.lstrip(".").startswith(name) for part in (path.name, path.parent.name)):
            return kind
    if path.parent.name == layout.SHARDS:
        return "shard"
    if path.name == layout.SHARDS:
        return "folder of shards"
    if path.parent.name == RUNS:
        return "run"
    if path.name.lstrip(".").startswith(LATEST):
        return "link"
    return "folder above" if path.is_dir() else "other"
