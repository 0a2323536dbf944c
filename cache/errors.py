"""Errors that a user can cause. `console.run` prints them as one line."""

from __future__ import annotations

from pathlib import Path

from cache.text import printable

REPAIR = "run `python -m cache verify --repair` on the cache and extract again"
_LONGEST = 200  # characters of a reason that somebody else's library gives


class UserError(Exception):
    """Something that the user can fix: one line that names the thing and the remedy."""

    def __str__(self) -> str:
        return printable(super().__str__())  # a name quoted in it may hold anything


class CacheError(UserError):
    """A cache that is missing, damaged, foreign, or newer than this reader."""


class UnreadableError(CacheError):
    """A file of a cache that may be sound, but that this program cannot read, or not now. Nobody may delete it."""


def damage(path: Path, reason: str, remedy: str = REPAIR) -> CacheError:
    """The error for a file that does not hold what was written."""
    return CacheError(f"{path} is damaged ({reason}); {remedy}")


def first_line(error: BaseException) -> str:
    """The reason in one line: the system's word for it, else the first line of the message that says something, without
    the names of operations that TensorFlow adds, else the error's type."""
    reason = getattr(error, "strerror", None) or str(error)
    for line in reason.splitlines():
        text = line.rpartition("}} ")[2].partition(" [Op:")[0].strip()
        if text and text != "Graph execution error:":
            return text[:_LONGEST]
    return type(error).__name__
