"""Paths for TensorFlow, which takes some of them for patterns, and others for text that they are not."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator

_PLAIN = re.compile(r"[A-Za-z0-9_./ ,:=@%+~-]*")


@contextlib.contextmanager
def plain(path: str | os.PathLike) -> Iterator[str]:
    """The path of a file or folder as TensorFlow opens it, whatever its name.

    TensorFlow looks for the files of a SavedModel by a pattern, in which `[`, `*`, `?` and a backslash mean something,
    and it turns every path into UTF-8, whatever bytes the name has on the disk. Such a path is reached by way of a
    temporary link, for the time of the block. Raises OSError where no link can be made.
    """
    text = os.fspath(path)
    if _PLAIN.fullmatch(text) or "://" in text:
        yield text
        return
    place = None if _PLAIN.fullmatch(tempfile.gettempdir()) else "/tmp"
    with tempfile.TemporaryDirectory(dir=place) as folder:
        link = os.path.join(folder, "link")
        os.symlink(os.path.abspath(text), link)
        yield link
