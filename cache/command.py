"""What the commands of every package share: how flags are checked and how errors are told."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from cache.errors import UserError

T = TypeVar("T", int, float)

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of this container: microseconds of all cores in a period, and the period


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with words on what was kept and how to go on."""


class Parser(argparse.ArgumentParser):
    """argparse, with an error of one line: the usage of a command with twenty flags hides the message."""

    def __init__(self, **settings: object) -> None:
        # Unabbreviated flags only: a script that says --image today must not change its meaning tomorrow.
        super().__init__(
            formatter_class=_Help,
            allow_abbrev=False,
            **settings,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; `{self.prog} -h` lists the flags")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells each flag's default, but for None: what that stands for, the flag's own text says."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit status: 0, 2 after an error of the user's, 130 after Ctrl-C."""
    # TensorFlow's C++ logs its way through start-up; what a user must know, the commands say themselves.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # It would take all of every GPU's memory at once, and leave none to others, nor tell how much a batch needs.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    # A folder's name may be no text, or none that this terminal can show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: not enough memory ({error or 'none left'}); choose smaller batches", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(
            error if isinstance(error, Interrupted) else "interrupted; run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # what a command expects to fail, it tells with a better remedy
        print(f"error: {error}; mend that and run again: what was committed before is kept", file=sys.stderr)
        return 2
    return 0


def import_tensorflow() -> None:
    """Imports TensorFlow without the lines on CUDA and oneDNN that it writes before anything can turn them off."""
    with _interrupts_held_back(), quiet_stderr():
        importlib.import_module("tensorflow")


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Lets Ctrl-C wait for the end: some of what TensorFlow imports swallows it, and the run would go on."""
    came = []
    kinds = [kind for kind in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(kind) is signal.default_int_handler]
    kinds = kinds if threading.current_thread() is threading.main_thread() else []  # others have no say in signals
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
    """Keeps what libraries write to standard error to itself, unless an error ends them that is not the user's."""
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


def make_writable(folder: Path, flag: str) -> None:
    """Makes `folder`, which `flag` named, where it is missing.

    Raises UserError where it cannot be written: better now than after hours of work.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another {flag}") from None


def cores() -> int:
    """How many cores this process may use, also in a container with a share of its machine's (cgroup v2)."""
    # macOS has no such restriction, nor the question.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no such file, or "max": no limit
        return cores
    return max(1, min(cores, math.ceil(quota / period)))


def positive(text: str) -> int:
    """A flag's value that counts things: an integer of at least 1."""
    return _number(int, text, lambda value: value >= 1, "a whole number of 1 or more")


def batch_size(text: str) -> int:
    """A batch size: an integer of at least 1, or -1 for everything at once."""
    return _number(int, text, lambda value: value >= 1 or value == -1, "a whole number of 1 or more, or -1 for all")


def threads(text: str) -> int:
    """A number of threads: an integer from 1 to 1024, more than any machine's pipeline can use."""
    return _number(int, text, lambda value: 1 <= value <= 1024, "a whole number from 1 to 1024")


def percent(text: str) -> int:
    """How far something may be changed: an integer from 0 to 100."""
    return _number(int, text, lambda value: 0 <= value <= 100, "a whole number from 0 to 100")


def path(text: str) -> str:
    """A file or folder: not the empty string, which a script's unset variable leaves and which means "here"."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path; name a file or folder")
    return os.path.expanduser(text)  # which the shell leaves to us in --flag=~/folder


def percentage(text: str) -> float:
    """A flag's value that is a share: a number from 0 to 100."""
    return _number(float, text, lambda value: 0 <= value <= 100, "a number from 0 to 100")


def natural(text: str) -> int:
    """A number of things that may be none, or a seed: an integer from 0 to 2^31 - 1."""
    return _number(int, text, lambda value: 0 <= value < 2**31, f"a whole number from 0 to {2**31 - 1}")


def positive_float(text: str) -> float:
    """A flag's value that is a finite number above 0."""
    return _number(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def not_negative_float(text: str) -> float:
    """A flag's value that is a finite number of 0 or more."""
    return _number(float, text, lambda value: 0 <= value < float("inf"), "a number of 0 or more")


def _number(kind: Callable[[str], T], text: str, valid: Callable[[T], bool], expected: str) -> T:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value
