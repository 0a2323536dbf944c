"""The labelled photos that a cache is to hold the bottlenecks of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import damage
from cache.rejected import Rejected
from cache.strings import Strings

NOT_A_FILE = -1  # a size that no file has
LISTED = "listed"  # the attribute of a file that says when the photos were listed whose bottlenecks it holds or names
LONG_AFTER = 2**63 - 1  # instead of it in files of versions that did not write it: no photo counts as changed later


@dataclass(frozen=True, eq=False)
class Photos:
    """N files below `image_dir`, in the order of a sorted walk. Only decoding shows whether they are photos."""

    image_dir: Path
    labels: Sequence[str]  # class names, sorted
    folders: Sequence[str]  # the folder of each label, below image_dir
    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes, or NOT_A_FILE
    mtimes: np.ndarray  # int64 [N], when the content was last modified, nanoseconds since 1970
    ctimes: np.ndarray  # int64 [N], when the file was last modified, renamed or had its mtime set, nanoseconds
    label_ids: np.ndarray  # int32 [N], into labels
    listed: int  # nanoseconds since 1970, not later than the moment at which the first file was looked at
    unlisted: Sequence[Rejected] = ()  # files and folders beside these N that the system did not let be looked at

    def __len__(self) -> int:
        return len(self.paths)


def when_listed(path: Path, attributes: Mapping[str, Any]) -> int:
    """From the attributes of the file `path`, nanoseconds since 1970. Raises CacheError where it is no time."""
    listed = attributes.get(LISTED, LONG_AFTER)
    if not isinstance(listed, int):
        raise damage(path, f"the attribute {LISTED}")
    return listed
