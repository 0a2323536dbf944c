"""`python -m extract`: every photo of a folder through a network once, its bottlenecks into a cache."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from cache import console, files
from cache.console import print
from cache.errors import UserError
from extract.settings import Settings

if TYPE_CHECKING:
    from extract.run import Result

DESCRIPTION = """Runs every photo below --image_dir through a network trained on ImageNet, once, and keeps the vector
before its last layer (the bottleneck) in --cache_dir. Each subfolder is a class. Run it again after adding, changing,
moving or deleting photos: only new and changed ones are computed. A run that was stopped goes on where it was."""

# Flags that mean nothing without --augment.
AUGMENT_ONLY = ("flip_left_right", "random_crop", "random_scale", "random_brightness", "augment_seed")


def parser() -> console.Parser:
    flags = console.Parser(prog="python -m extract", description=DESCRIPTION)
    console.add_flags(flags, Settings)
    return flags


def main(arguments: list[str] | None = None) -> None:
    settings = Settings(**vars(parser().parse_args(arguments)))
    for name in AUGMENT_ONLY:
        if getattr(settings, name) and not settings.augment:
            raise UserError(f"--{name} needs --augment, the number of augmentations to make: add --augment 5")
    from extract.run import extract

    if settings.trace:
        files.make_writable(Path(settings.trace), "--trace")
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    _print(settings, extract(settings))


def _print(settings: Settings, result: Result) -> None:
    print(f"{result.computed + result.reused} bottlenecks of {result.classes} classes in {result.directory}")
    see = f": see {result.directory / 'rejected.csv'}" if result.rejected else ""
    print(f"{result.computed} computed, {result.reused} reused, {result.rejected} files rejected{see}")
    if settings.augment:
        title = "1 augmentation" if settings.augment == 1 else f"{settings.augment} augmentations"
        print(f"{title}: {result.augmented} computed, {result.augmented_reused} reused")
    if settings.thumbnails:
        print(f"{result.thumbnails} thumbnails made")
    if settings.trace:
        was_traced = result.computed or result.augmented
        print(f"trace: tensorboard --logdir {settings.trace}" if was_traced else "no trace: nothing was computed")
    print(f"next: python -m train --cache_dir {shlex.quote(str(result.directory))}")


def script() -> int:
    """The command `retrain-extract`."""
    console.interrupt_on_sigterm()
    return console.run(main, is_job=True)


if __name__ == "__main__":
    sys.exit(script())
