"""`python -m extract`: every image of a folder through a network once, its bottlenecks into a cache."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import warnings
from pathlib import Path

from cache import command
from cache.errors import UserError

DESCRIPTION = """Runs every image below --image_dir through a network trained on ImageNet, once, and keeps the vector
before its last layer (the bottleneck) in --cache_dir. Each subfolder is a class. Run it again after adding, changing,
moving or deleting images: only new and changed ones are computed. A run that was stopped goes on where it was."""

MODULE_HELP = """the network: efficientnet_lite0 (built in, needs no download); inception_v3, nasnet_large,
pnasnet_large, mobilenet_v1_100_224 or mobilenet_v2_100_224 (from TensorFlow Hub); keras:NAME for one of
keras.applications; a TensorFlow Hub handle or URL; or the path of a SavedModel"""

AUGMENT_HELP = """also run the network on so many distorted versions of every image, and keep those bottlenecks beside
the plain ones: training then draws among them. What is drawn for an image depends on its content, the seed and the
version alone. Without a distortion of your choice: flipped, and 10 per cent of the other three"""

# What `--augment` makes versions of; alone they mean nothing.
DISTORTIONS = ("flip_left_right", "random_crop", "random_scale", "random_brightness", "augment_seed")


def parser() -> command.Parser:
    flags = command.Parser(prog="python -m extract", description=DESCRIPTION)
    flags.add_argument(
        "--image_dir",
        type=command.path,
        required=True,
        default=argparse.SUPPRESS,
        help="folder with a subfolder of images for each class",
    )
    flags.add_argument("--cache_dir", type=command.path, default="bottlenecks", help="where the bottlenecks are kept")
    flags.add_argument("--module", default="efficientnet_lite0", help=MODULE_HELP)
    flags.add_argument(
        "--image_size",
        type=_image_size,
        default=None,
        help="pixels, as 224 or HEIGHTxWIDTH, where the module leaves it open (default: the module's own)",
    )
    flags.add_argument(
        "--batch_size",
        type=command.positive,
        default=None,
        help="images at once on each device; engine tensorflow halves them where its memory cannot hold them (default: "
        "256 on GPUs; on CPUs 8 with openvino, 32 with tensorflow)",
    )
    flags.add_argument(
        "--precision",
        choices=("auto", "float32", "mixed"),
        default="auto",
        help="mixed: float16 on GPUs, bfloat16 on CPUs with AVX-512; auto: mixed where the hardware multiplies such "
        "numbers itself",
    )
    flags.add_argument(
        "--engine",
        choices=("auto", "tensorflow", "openvino"),
        default="auto",
        help="what runs the network; openvino: on processors, faster there; auto: openvino where it is installed and "
        "no GPU is used",
    )
    flags.add_argument(
        "--devices", default="auto", help="auto: every GPU, else the CPU; or a list such as GPU:0,GPU:1 or CPU:0"
    )
    flags.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the bottlenecks on disk")
    flags.add_argument(
        "--decode_threads",
        type=command.threads,
        default=None,
        help="threads that decode images (default: one for each core)",
    )
    flags.add_argument(
        "--thumbnails",
        action="store_true",
        help="keep a small picture of each image in the cache too, so that the report of a training can show its "
        "mistakes where the images are not at hand",
    )
    flags.add_argument(
        "--trace",
        type=command.path,
        default=None,
        metavar="DIR",
        help="write a trace by TensorFlow's profiler there, for TensorBoard's profile plugin: of 40 batches after the "
        "first 10 (in a short run, after its first quarter), since one of a whole run would not fit in memory",
    )
    flags.add_argument("--augment", type=command.natural, default=0, metavar="N", help=AUGMENT_HELP)
    flags.add_argument("--flip_left_right", action="store_true", help="distortion: mirror half of the images")
    percents = {
        "random_crop": "crop images, enlarged by so many per cent, at a random place",
        "random_scale": "enlarge by up to so many per cent",
        "random_brightness": "multiply pixels by 1 plus or minus up to so many per cent",
    }
    for name, help_text in percents.items():
        flags.add_argument(
            f"--{name}", type=command.percent, default=0, metavar="PERCENT", help=f"distortion: {help_text}"
        )
    flags.add_argument("--augment_seed", type=command.natural, default=0, help="another one draws other distortions")
    return flags


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    for name in DISTORTIONS:
        if getattr(flags, name) and not flags.augment:
            raise UserError(f"--{name} needs --augment, the number of distorted versions to make: add --augment 5")
    from extract.run import extract
    from extract.settings import Settings

    if flags.trace:
        command.make_writable(Path(flags.trace), "--trace")
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    result = extract(Settings(**vars(flags)))
    total = result.computed + result.reused
    print(f"{total} bottlenecks of {result.classes} classes in {result.directory}")
    print(f"{result.computed} computed, {result.reused} reused, {result.rejected} files rejected", end="")
    print(f": see {result.directory / 'rejected.csv'}" if result.rejected else "")
    if flags.augment:
        versions = f"{flags.augment} distorted version{'s' * (flags.augment != 1)}"
        print(f"{versions}: {result.distorted} computed, {result.distorted_reused} reused")
    if flags.thumbnails:
        print(f"{result.thumbnails} thumbnails made")
    if flags.trace:
        ran = result.computed or result.distorted
        print(f"trace: tensorboard --logdir {flags.trace}" if ran else "no trace: nothing was computed")
    print(f"next: python -m train --cache_dir {shlex.quote(str(result.directory))}")


def _image_size(text: str) -> tuple[int, int]:
    try:
        height, width = [int(side) for side in text.lower().split("x")] * (1 if "x" in text.lower() else 2)
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no image size; write 224, or 224x224") from None
    return height, width


if __name__ == "__main__":
    # A job that is told to stop commits what it has, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(command.run(main))
