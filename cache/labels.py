"""The labels of class folders: the tutorial's form of a folder's path, or the path itself where that form fails."""

from __future__ import annotations

import re
import unicodedata
import warnings
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
    name (`++`), or be that of another folder, too (`C++` and `C#`); of the last a warning says so. Raises UserError for
    a path with control characters that would be a label: a line end would make two labels of one.
    """
    forms = [normalise(folder) for folder in folders]
    counts = Counter(forms)
    fails = [_loses_something(folder) for folder in folders]
    labels = [
        folder if counts[form] > 1 or loses else form for folder, form, loses in zip(folders, forms, fails, strict=True)
    ]
    for label in labels:
        if _CONTROLS.search(label):
            raise UserError(f"class folder {label!r} has a control character in its name; rename it")
    alike: dict[str, list[str]] = {}  # only these may have been meant as one class
    for folder, form, loses in zip(folders, forms, fails, strict=True):
        if not loses:
            alike.setdefault(form, []).append(folder)
    for form, same in alike.items():
        if len(same) > 1:
            warnings.warn(
                f"the label {form!r} would be that of {len(same)} class folders, such as {same[0]!r} and {same[1]!r}, "
                "so each has its own name as its label; merge them if they are one class",
                stacklevel=3,
            )
    return labels


def _loses_something(folder: str) -> bool:
    """Whether the tutorial's form lacks a letter, a digit or an accent of the path, or all of a name in it."""
    if any(not normalise(name).strip() for name in folder.split("/")):
        return True
    left_out = "".join(_LEFT_OUT.findall(folder.lower()))
    # A byte that is no text stands for a letter of some other encoding.
    return any(unicodedata.category(c)[0] in "LMN" or "\ud800" <= c <= "\udfff" for c in left_out)
