"""The labels of class folders: the tutorial's form of a folder's path, or the path itself where that form fails."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from cache.errors import UserError

_LEFT_OUT = re.compile(r"[^a-z0-9]+")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def normalise(folder: str) -> str:
    """The label of a class folder, as the tutorial makes it: lower case, with a space for each run of characters other
    than a to z and 0 to 9."""
    return _LEFT_OUT.sub(" ", folder.lower())


def of_folders(folders: Sequence[str]) -> list[str]:
    """The label of each class folder, all different; `folders` are different paths below image_dir.

    It is the tutorial's form. It is the path itself where that form would lose letters (`café`), leave nothing of a
    name (`++`), or be that of another folder, too (`C++` and `C#`). Raises UserError for a path with control characters
    that would be a label: a line end would make two labels of one.
    """
    counts = Counter(map(normalise, folders))
    labels = []
    for folder in folders:
        form = normalise(folder)
        labels.append(folder if counts[form] > 1 or _loses_something(folder) else form)
        if _CONTROLS.search(labels[-1]):
            raise UserError(f"class folder {folder!r} has a control character in its name; rename it")
    return labels


def alike(folders: Sequence[str]) -> list[list[str]]:
    """Groups of folders that may have been meant as one class: their labels in the tutorial's form lose nothing, and
    are the same."""
    groups: dict[str, list[str]] = {}
    for folder in folders:
        if not _loses_something(folder):
            groups.setdefault(normalise(folder), []).append(folder)
    return [group for group in groups.values() if len(group) > 1]


def _loses_something(folder: str) -> bool:
    """Whether the tutorial's form lacks a letter, a digit or an accent of the path, or all of a name in it."""
    if any(not normalise(name).strip() for name in folder.split("/")):
        return True
    left_out = "".join(_LEFT_OUT.findall(folder.lower()))
    # A byte that is no text stands for a letter of some other encoding.
    return any(unicodedata.category(c)[0] in "LMN" or "\ud800" <= c <= "\udfff" for c in left_out)
