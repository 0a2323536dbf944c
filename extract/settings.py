"""The choices of an extraction."""

from __future__ import annotations

from dataclasses import dataclass

from cache import command


@dataclass(frozen=True)
class Distortion:
    """One distorted version of the images: in what, and how far, each may differ from the plain one, at random."""

    flip_left_right: bool
    random_crop: int  # per cent, as the other two
    random_scale: int
    random_brightness: int
    seed: int  # 0 to 2^31 - 1
    version: int  # from 1

    def __str__(self) -> str:
        """In words. Other pixels for any image need other words: versions are told apart by them."""
        percents = {"crop": self.random_crop, "scale": self.random_scale, "brightness": self.random_brightness}
        kinds = ["flip"] * self.flip_left_right + [f"{kind} {part}%" for kind, part in percents.items() if part]
        return f"{', '.join(kinds)} (1), seed {self.seed}, version {self.version}"


@dataclass(frozen=True)
class Settings:
    """What the flags of `python -m extract` say, whose `-h` describes them; and for callers, whether bars are shown."""

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
    augment: int = 0  # distorted versions
    flip_left_right: bool = False
    random_crop: int = 0  # per cent, as the next two
    random_scale: int = 0
    random_brightness: int = 0
    augment_seed: int = 0
    show_bar: bool = True  # of the progress, on standard error

    @property
    def threads(self) -> int:
        return self.decode_threads or command.cores()

    def distortion(self, version: int) -> Distortion:
        """The distorted version of that number, from 1. Where no kind of distortion was chosen it is all four."""
        chosen = self.flip_left_right, self.random_crop, self.random_scale, self.random_brightness
        return Distortion(*(chosen if any(chosen) else (True, 10, 10, 10)), self.augment_seed, version)
