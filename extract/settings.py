"""The choices of an extraction. Each one that is a flag of `python -m extract` has its default and its help here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from cache import console, process
from cache.console import flag

DEFAULT_MODULE = "efficientnet_lite0"
MODULE_HELP = """the network: efficientnet_lite0 (built in, needs no download); inception_v3, nasnet_large,
pnasnet_large, mobilenet_v1_100_224 or mobilenet_v2_100_224 (from TensorFlow Hub); keras:NAME for one of
keras.applications; a TensorFlow Hub handle or URL; or the path of a SavedModel"""

AUGMENT_HELP = """also run the network on this many randomly changed copies (augmentations) of every photo, and keep
their bottlenecks beside the plain ones; training then draws among them. What is drawn for a photo depends only on its
content, the seed and the number of the augmentation. Without any of the four changes below, all are used: flipping, and
10 per cent of the other three"""


def image_size(text: str) -> tuple[int, int]:
    """The value of `--image_size`: (height, width) in pixels, from `224` or `HEIGHTxWIDTH`."""
    try:
        height, width = [int(side) for side in text.lower().split("x")] * (1 if "x" in text.lower() else 2)
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size; write 224, or 224x224") from None
    return height, width


@dataclass(frozen=True)
class Augmentation:
    """One augmentation: in what, and how far, each photo may be changed at random."""

    flip_left_right: bool
    random_crop: int  # per cent, as the other two
    random_scale: int
    random_brightness: int
    seed: int  # 0 to 2^31 - 1
    number: int  # from 1

    def __str__(self) -> str:
        """The description that the cache keeps. Augmentations with other pixels have another description."""
        percents = {"crop": self.random_crop, "scale": self.random_scale, "brightness": self.random_brightness}
        kinds = ["flip"] if self.flip_left_right else []
        kinds += [f"{kind} {percent}%" for kind, percent in percents.items() if percent]
        return f"{', '.join(kinds)} (1), seed {self.seed}, version {self.number}"


@dataclass(frozen=True)
class Settings:
    """What an extraction is asked to do."""

    image_dir: str = flag("folder with a subfolder of photos for each class", type=console.path)
    cache_dir: str = flag("where the bottlenecks are kept", default="bottlenecks", type=console.path)
    module: str = flag(MODULE_HELP, default=DEFAULT_MODULE)
    image_size: tuple[int, int] | None = flag(
        "pixels, as 224 or HEIGHTxWIDTH, where the module leaves it open (default: the module's own)",
        default=None,
        type=image_size,
    )
    batch_size: int | None = flag(
        "photos at once on each device; with engine tensorflow, batches that its memory cannot hold are halved "
        "(default: 256 on GPUs; on CPUs 8 with openvino, 32 with tensorflow)",
        default=None,
        type=console.positive,
    )
    precision: str = flag(
        "mixed: float16 on GPUs, bfloat16 on CPUs with AVX-512; auto: mixed where the hardware multiplies such numbers "
        "itself",
        default="auto",
        choices=("auto", "float32", "mixed"),
    )
    engine: str = flag(
        "what runs the network; openvino: on CPUs, faster there; auto: openvino where it is installed and no GPU is "
        "used",
        default="auto",
        choices=("auto", "tensorflow", "openvino"),
    )
    devices: str = flag("auto: every GPU, else the CPU; or a list such as GPU:0,GPU:1 or CPU:0", default="auto")
    dtype: str = flag("of the bottlenecks on disk", default="float16", choices=("float16", "float32"))
    decode_threads: int | None = flag(
        "threads that decode photos (default: one for each core)", default=None, type=console.threads
    )
    thumbnails: bool = flag(
        "keep a small picture of each photo in the cache too, so that the report of a training can show its mistakes "
        "where the photos are not at hand",
        default=False,
    )
    trace: str | None = flag(
        "write a trace by TensorFlow's profiler there, for TensorBoard's profile plugin: of 40 batches after the first "
        "10 (in a short run, after its first quarter), since one of a whole run would not fit into memory",
        default=None,
        type=console.path,
        metavar="DIR",
    )
    augment: int = flag(AUGMENT_HELP, default=0, type=console.natural, metavar="N")
    flip_left_right: bool = flag("augmentation: mirror half of the photos", default=False)
    random_crop: int = flag(
        "augmentation: enlarge by this many per cent, and crop at a random place",
        default=0,
        type=console.percent,
        metavar="PERCENT",
    )
    random_scale: int = flag(
        "augmentation: enlarge by up to this many per cent", default=0, type=console.percent, metavar="PERCENT"
    )
    random_brightness: int = flag(
        "augmentation: multiply pixels by 1 plus or minus up to this many per cent",
        default=0,
        type=console.percent,
        metavar="PERCENT",
    )
    augment_seed: int = flag("another seed draws other augmentations", default=0, type=console.natural)
    show_bar: bool = True  # whether stderr shows the progress; for callers, not a flag

    @property
    def threads(self) -> int:
        return self.decode_threads or process.cores()

    def augmentation(self, number: int) -> Augmentation:
        """The augmentation of that number, from 1. If no kind of change was chosen, all four are used."""
        chosen = self.flip_left_right, self.random_crop, self.random_scale, self.random_brightness
        return Augmentation(*(chosen if any(chosen) else (True, 10, 10, 10)), self.augment_seed, number)
