"""`python -m benchmarks`: measures each stage beside its limit, and prints which targets are met."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import warnings
from pathlib import Path

from cache import console, process
from cache.errors import UserError

DESCRIPTION = """Measures each stage beside the limit that it has on this machine. Our code and the reference take
turns; each turn gives a ratio, and the table shows the median. benchmarks/README.md explains every case."""

SUITES = ("decode", "forward", "extract", "cache", "train", "accuracy", "serve")
NEED_PHOTOS = ("decode", "extract", "accuracy", "serve")


def parser() -> console.Parser:
    flags = console.Parser(prog="python -m benchmarks", description=DESCRIPTION)
    flags.add_argument(
        "--suite",
        type=_suites,
        action="extend",
        metavar="NAME",
        default=None,
        help=f"what to measure, one or several with commas: {', '.join(SUITES)} (default: all)",
    )
    flags.add_argument(
        "--image_dir",
        type=console.to_path,
        default=None,
        help="folder with a subfolder of photos for each class (default: the demo's digits, which are small and easier "
        "to decode than any photo)",
    )
    flags.add_argument("--repeats", type=console.positive, default=5, metavar="N", help="turns of each contender")
    flags.add_argument(
        "--json", type=console.to_path, default=None, metavar="FILE", help="also write the figure of every turn there"
    )
    flags.add_argument(
        "--scale",
        type=console.positive_float,
        default=1.0,
        metavar="FACTOR",
        help="multiplies the size of what is measured; below 1, a run is faster and its figures mean less",
    )
    return flags


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    if flags.json and not os.access(flags.json.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {flags.json}: its folder is missing or not yours; choose another --json")
    chosen = [name for name in SUITES if name in (flags.suite or SUITES)]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        photos = _photos(flags.image_dir, Path(scratch)) if set(chosen) & set(NEED_PHOTOS) else None
        process.import_tensorflow()

        from benchmarks import measure
        from cache.bar import bar

        # Such as the warning about files outside the class folders of --image_dir, which the figures do not depend on.
        warnings.simplefilter("ignore")
        options = measure.Options(flags.repeats, flags.scale, photos, Path(scratch))
        suites = {name: importlib.import_module(f"benchmarks.{name}") for name in chosen}
        results: list[measure.Result] = []
        try:
            with bar(total=sum(len(suite.CASES) for suite in suites.values()), unit=" cases") as progress:
                for name, suite in suites.items():
                    for case in suite.CASES:
                        progress.set_description(f"{name} {case.__name__}")
                        results.extend(case(options))
                        progress.update()
        finally:  # after Ctrl-C or an error in a late case, the results of the earlier ones are still printed
            print(measure.table(results))
            if flags.json:
                measure.write_json(flags.json, results, options)


def _suites(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SUITES:
            raise argparse.ArgumentTypeError(f"unknown suite {name!r}: choose from {', '.join(SUITES)}")
    return names


def _photos(image_dir: Path | None, scratch: Path) -> Path:
    """The folder of photos to measure with, checked before anything is measured."""
    if image_dir is None:
        from extract import sample

        print("note: the demo's digits stand in for photos; --image_dir DIR gives figures that mean something")
        sample.write(scratch / "digits")
        return scratch / "digits"
    if not image_dir.is_dir():
        raise UserError(f"--image_dir {image_dir} is no folder; give one that has a subfolder of photos for each class")
    return image_dir


if __name__ == "__main__":
    console.interrupt_on_sigterm()  # so that the gigabytes of temporary files are deleted, as after Ctrl-C
    sys.exit(console.run(main))
