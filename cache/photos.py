"""The labelled photos that a cache is to hold the bottlenecks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.rejected import Rejected
from cache.strings import Strings

NOT_A_FILE = -1  # a size that no file has


@dataclass(frozen=True, eq=False)
class Photos:
    """N files below `image_dir`, in the order of a sorted walk. Only decoding shows whether they are photos."""

    image_dir: Path
    labels: Sequence[str]  # class names, sorted
    folders: Sequence[str]  # the folder of each label, below image_dir
    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes, or NOT_A_FILE
    mtimes: np.ndarray  # int64 [N], nanoseconds since 1970
    label_ids: np.ndarray  # int32 [N], into labels
    unlisted: Sequence[Rejected] = ()  # files and folders beside these N that the system did not let be looked at

    def __len__(self) -> int:
        return len(self.paths)
