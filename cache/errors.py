"""Errors that a user can cause, and how the commands report them."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one line that names the thing and the remedy."""


class CacheError(UserError):
    """A cache that is missing, damaged, foreign, or newer than this reader."""
