"""The labels of a classifier: a file of one label a line, in the order of the outputs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cache import files

ASSET = Path("assets.extra", "labels.txt")  # in a SavedModel: where TensorFlow has others put their files


def write(path: Path, labels: Sequence[str]) -> None:
    """Replaces `path`. Raises UserError when it cannot be written."""
    files.write(path, b"".join(os.fsencode(label) + b"\n" for label in labels))


def read(path: Path) -> list[str]:
    """Raises OSError, also for a pipe, which would never end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return os.fsdecode(path.read_bytes()).removesuffix("\n").split("\n")
