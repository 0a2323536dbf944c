"""Labels, paths and shares as text of one line."""

from __future__ import annotations

import os


def percent(share: float) -> str:
    """`93.1%`; NaN, of a class that has no photos, is no number to show."""
    return "" if share != share else f"{share:.1%}"


def printable(path: str) -> str:
    """A path or label as text of one line: bytes that are not UTF-8 become replacement characters, control
    characters their escapes."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
