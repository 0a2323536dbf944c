"""The choices of an extraction."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the flags of `python -m extract` say; `-h` describes them."""

    image_dir: str
    cache_dir: str
    module: str
    image_size: tuple[int, int] | None = None  # height, width; None: the module's own
    batch_size: int | None = None  # for each device; None: what runs fastest there
    precision: str = "auto"
    engine: str = "auto"
    devices: str = "auto"
    dtype: str = "float16"
    decode_threads: int | None = None  # None: one for each core
    thumbnails: bool = False
    trace: str | None = None  # a folder for TensorFlow's profiler; None: no trace

    @property
    def threads(self) -> int:
        return self.decode_threads or len(os.sched_getaffinity(0))
