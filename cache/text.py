"""Text as people may safely see it."""

from __future__ import annotations

import re

# What a terminal would obey: control characters (the escape codes begin with one), other line ends, and marks that
# reverse what follows them. Half characters, which no encoding has, are among them.
_OBEYED = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")


def printable(text: str) -> str:
    """`text` on one line. What a terminal would obey becomes an escape such as \\x1b, and bytes that are no UTF-8
    become replacement characters; letters of all scripts stay."""
    # First what could not be encoded, then what comes to light when the bytes of a name are read as UTF-8.
    return _escaped(_escaped(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def _escaped(text: str) -> str:
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
