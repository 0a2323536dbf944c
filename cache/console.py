"""What the commands share: flags, one line for an error, exit statuses."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import dataclasses
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

from cache import foreign_flags
from cache.errors import UserError, first_line
from cache.text import printable

T = TypeVar("T", int, float)
READER_GONE = 128 + signal.SIGPIPE  # the status that a shell gives a command which writes to a pipe without a reader


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says what was kept and how to go on."""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line: the usage of a command with twenty flags would hide the message."""

    def __init__(self, **settings: object) -> None:
        # No abbreviated flags: a script that says --image today must not change its meaning when a flag is added.
        super().__init__(
            formatter_class=_Help,
            allow_abbrev=False,
            **settings,  # type: ignore[arg-type]
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The flags. An argument that the command does not have is an error that says what to write instead."""
        given = sys.argv[1:] if args is None else list(args)
        if problem := foreign_flags.value_of_a_switch(self, given):
            self.error(problem)
        flags, unknown = self.parse_known_args(given, namespace)
        if unknown:
            self.error("; ".join([f"unrecognized arguments: {' '.join(unknown)}", *foreign_flags.advice(unknown)]))
        return flags

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; `{self.prog} -h` lists the flags")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Prints the default of each flag, except None: the flag's own text says what that stands for."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def flag(
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    type: Callable[[str], Any] | None = None,
    choices: Iterable[str] | None = None,
    metavar: str | None = None,
    nargs: str | None = None,
) -> Any:
    """A field of a data class of settings that `add_flags` turns into the flag of its name.

    Without a default the flag is required. A default of False makes a switch that takes no value. The other parameters
    are argparse's.
    """
    given = {"help": help, "type": type, "choices": choices, "metavar": metavar, "nargs": nargs}
    options = {name: value for name, value in given.items() if value is not None}
    if default is False:
        options["action"] = "store_true"
    return dataclasses.field(default=default, metadata={"flag": options})


def add_flags(parser: argparse.ArgumentParser, settings: type, only: Iterable[str] | None = None, **help: str) -> None:
    """Adds a flag for each field of the data class `settings` that `flag` made, or for the names in `only`.

    `help` replaces the help text of the flags that it names.
    """
    fields = {field.name: field for field in dataclasses.fields(settings) if "flag" in field.metadata}
    for name in fields if only is None else only:
        options = dict(fields[name].metadata["flag"])
        if name in help:
            options["help"] = help[name]
        if fields[name].default is dataclasses.MISSING:
            parser.add_argument(f"--{name}", required=True, default=argparse.SUPPRESS, **options)
        else:
            parser.add_argument(f"--{name}", default=fields[name].default, **options)


def run(main: Callable[[list[str] | None], None], arguments: list[str] | None = None, is_job: bool = False) -> int:
    """Runs a command and returns its exit status.

    0; 2 after an error that the user can fix; 130 after Ctrl-C; 141 if whoever reads its output, such as `| head`, has
    gone. With `is_job`, what the command leaves on disk counts more than what it prints: without a reader it goes on.
    """
    # TensorFlow's C++ code logs during start-up. What a user must know, the commands say themselves.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # By default TensorFlow takes all memory of every GPU at once. That leaves none to others, and hides how much a
    # batch needs.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    _open_closed_streams()
    streams = sys.stdout, sys.stderr
    for stream in streams:  # a message may have characters that this terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = _Output(streams[0], is_needed=not is_job), _Output(streams[1], is_needed=False)
    try:
        status = _status(main, arguments)
        with contextlib.suppress(OSError, UserError):  # otherwise Python would complain about this at its end
            sys.stdout.flush()
        return status
    finally:
        sys.stdout, sys.stderr = streams


def _status(main: Callable[[list[str] | None], None], arguments: list[str] | None) -> int:
    status = 0
    try:
        try:
            main(arguments)
        except SystemExit as end:  # argparse has printed the help
            status = int(end.code or 0)
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: not enough memory ({str(error) or 'none left'}); choose smaller batches", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        message = error if isinstance(error, Interrupted) else "interrupted; run the same command again to go on"
        print(message, file=sys.stderr)
        return 130
    except BrokenPipeError:
        return READER_GONE
    except OSError as error:  # the failures that a command expects have a message with a better remedy
        print(f"error: {error}; fix that and run again: what was committed before is kept", file=sys.stderr)
        return 2
    return status


def _open_closed_streams() -> None:
    """Opens standard streams that are closed (`2>&-`) to nowhere.

    Otherwise the next file that is opened, such as a shard, would take the place of standard error. Opening a file
    takes the lowest number that is free, which is the stream's own.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 -- to the end of the process


class _Output:
    """A standard stream whose reader may go away, and whose disk may be full.

    One that is needed then ends the command, with BrokenPipeError or UserError. Any other prints nothing from then on.
    """

    def __init__(self, stream: TextIO, is_needed: bool):
        self._stream, self._is_needed = stream, is_needed

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            # What it still holds goes nowhere: Python would try once more at its end, and complain.
            with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            problem = f"cannot write standard output: {first_line(error)}"
            if self._is_needed:
                if isinstance(error, BrokenPipeError):
                    raise
                raise UserError(f"{problem}; write it elsewhere, and run again") from None
            if not isinstance(error, BrokenPipeError):
                print(f"warning: {problem}; the work goes on without", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def print(line: object, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints one line for people: a name in it does nothing to the terminal. Data for programs is written as it is."""
    builtins.print(printable(str(line)), file=file, flush=flush)


def write_names_as_they_are() -> None:
    """From now on, standard output gets the names of files as the bytes that they are on the disk."""
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not, and takes text alone
        sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")


def counted(number: int, noun: str) -> str:
    """Such as "1 shard" or "1,200 shards"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def interrupt_on_sigterm() -> None:
    """Treats SIGTERM like Ctrl-C: a job that has to stop saves its work."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def positive(text: str) -> int:
    """The value of a flag that counts things: an integer of at least 1."""
    return _number(int, text, lambda value: value >= 1, "a whole number of 1 or more")


def batch_size(text: str) -> int:
    """A batch size: an integer of at least 1, or -1 for everything at once."""
    return _number(int, text, lambda value: value >= 1 or value == -1, "a whole number of 1 or more, or -1 for all")


def port(text: str) -> int:
    """The number of a TCP port; 0 stands for a free one."""
    return _number(int, text, lambda value: 0 <= value <= 65535, "a port, from 0 to 65535")


def threads(text: str) -> int:
    """A number of threads: an integer from 1 to 1024, more than any machine's pipeline can use."""
    return _number(int, text, lambda value: 1 <= value <= 1024, "a whole number from 1 to 1024")


def percent(text: str) -> int:
    """How far something may be changed: an integer from 0 to 100."""
    return _number(int, text, lambda value: 0 <= value <= 100, "a whole number from 0 to 100")


def path(text: str) -> str:
    """A file or folder. The empty string, which an unset variable in a script leaves, would mean "here"."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path; name a file or folder")
    return os.path.expanduser(text)  # the shell does not expand ~ in --flag=~/folder


def to_path(text: str) -> Path:
    """The same, as a Path."""
    return Path(path(text))


def percentage(text: str) -> float:
    """A value of a flag that is a share: a number from 0 to 100."""
    return _number(float, text, lambda value: 0 <= value <= 100, "a number from 0 to 100")


def natural(text: str) -> int:
    """A number of things that may be none, or a seed: an integer from 0 to 2^31 - 1."""
    return _number(int, text, lambda value: 0 <= value < 2**31, f"a whole number from 0 to {2**31 - 1}")


def positive_float(text: str) -> float:
    """A value of a flag that is a finite number above 0."""
    return _number(float, text, lambda value: 0 < value < float("inf"), "a number above 0")


def not_negative_float(text: str) -> float:
    """A value of a flag that is a finite number of 0 or more."""
    return _number(float, text, lambda value: 0 <= value < float("inf"), "a number of 0 or more")


def _number(kind: Callable[[str], T], text: str, valid: Callable[[T], bool], expected: str) -> T:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value
