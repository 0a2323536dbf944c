"""Runs of the commands in processes of their own."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cache import console
from tests import forked

REPO = Path(__file__).parents[1]


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    returncode: int  # the exit status, or a negative signal's number
    stdout: str
    stderr: str


class Process:
    """`function(*arguments)`, forked; what it returns is the exit status.

    The function must be importable. What it prints, at most the 64 KiB that a pipe holds, can be read while it runs.
    """

    def __init__(self, function: Callable[..., int | None], *arguments: object):
        self._child = forked.Child(_exit_with, function, arguments)
        self._child.stdin.close()
        self.stdout, self.stderr = io.TextIOWrapper(self._child.stdout), io.TextIOWrapper(self._child.stderr)
        self.send_signal, self.kill = self._child.send_signal, self._child.kill

    def wait(self) -> Done:
        status = self._child.wait()
        with self.stdout, self.stderr:
            return Done(status, self.stdout.read(), self.stderr.read())


def run(function: Callable[..., int | None], *arguments: object) -> Done:
    """Runs `function(*arguments)` in a process of its own, to the end; what it returns is the exit status."""
    return Process(function, *arguments).wait()


def command(name: str, flags: Iterable[object]) -> int:
    """`python -m NAME FLAGS` in this process; its exit status."""
    main = importlib.import_module(f"{name}.__main__").main
    return console.run(main, list(map(str, flags)))


def _exit_with(function: Callable[..., int | None], arguments: tuple[object, ...]) -> None:
    sys.exit(function(*arguments))


def extract_with_nothing_to_do(cache_dir: Path, flags: Iterable[object]) -> str:
    """The output of an extraction that imports no TensorFlow, prints no warning, and leaves `cache_dir` as it is."""
    before = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*")}
    # A fork would have TensorFlow.
    script = f"""
import sys
from cache import console
from extract.__main__ import main
status = console.run(main, {list(map(str, flags))})
sys.exit(99 if "tensorflow" in sys.modules else status)"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*")} == before
    return done.stdout
