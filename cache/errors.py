"""Errors that a user can cause; `command.run` tells them in one line."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one line that names the thing and the remedy."""

    def __str__(self) -> str:
        return " ".join(super().__str__().splitlines())  # a name that it quotes may hold anything


class CacheError(UserError):
    """A cache that is missing, damaged, foreign, or newer than this reader."""


class UnreadableError(CacheError):
    """A file of a cache that may be sound, but that this program cannot read, or not now: nobody may delete it."""
