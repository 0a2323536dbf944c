"""`python -m benchmarks`: measures each stage beside its limit, and says which targets are met."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path

from cache import command
from cache.errors import UserError

SUITES = ("decode", "forward", "extract", "cache", "train", "accuracy")
NEED_PHOTOS = ("decode", "extract", "accuracy")


def parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m benchmarks",
        description="Measures each stage beside the limit that it has on this machine. Ours and the reference take "
        "turns; a ratio is taken in each turn, and the median counts. benchmarks/README.md says what each case does.",
    )
    add = parser.add_argument
    add(
        "--suite",
        type=_suites,
        action="extend",
        metavar="NAME",
        default=None,
        help=f"what to measure, several with commas: {', '.join(SUITES)} (default: all)",
    )
    add(
        "--image_dir",
        type=command.path,
        default=None,
        help="folder of photos with a subfolder for each class (default: the demo's digits, which are small and "
        "easier to decode than any photo)",
    )
    add("--repeats", type=command.positive, default=5, help="turns that each contender takes")
    add("--json", type=Path, default=None, metavar="FILE", help="write every turn's figure there too")
    add(
        "--scale",
        type=command.positive_float,
        default=1.0,
        help="of the sizes of what is measured: below 1 is faster, and tells less",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    if flags.json and not os.access(flags.json.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {flags.json}: its folder is missing or not yours; choose another --json")
    chosen = [name for name in SUITES if name in (flags.suite or SUITES)]
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        photos = _photos(flags.image_dir, Path(scratch)) if set(chosen) & set(NEED_PHOTOS) else None
        command.import_tensorflow()

        from benchmarks import measure
        from cache.bar import bar

        # A sample may well leave out a format or hold a stray file: what is measured does not depend on it.
        warnings.simplefilter("ignore")
        options = measure.Options(flags.repeats, flags.scale, photos, Path(scratch))
        suites = {name: importlib.import_module(f"benchmarks.{name}") for name in chosen}
        results: list[measure.Result] = []
        try:
            with bar(total=sum(len(suite.CASES) for suite in suites.values()), unit=" cases") as shown:
                for name, suite in suites.items():
                    for case in suite.CASES:
                        shown.set_description(f"{name} {case.__name__}")
                        results.extend(case(options))
                        shown.update()
        finally:  # Ctrl-C or an error in a late case leaves the minutes before it worth something
            print(measure.table(results))
            if flags.json:
                measure.write_json(flags.json, results, options)


def _suites(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SUITES:
            raise argparse.ArgumentTypeError(f"unknown suite {name!r}: give some of {', '.join(SUITES)}")
    return names


def _photos(image_dir: str | None, scratch: Path) -> Path:
    """The folder of photos to measure with, checked before anything is measured."""
    if image_dir is None:
        from extract import sample

        print("note: the demo's digits stand in for photos; --image_dir DIR gives figures that mean something")
        sample.write(scratch / "digits")
        return scratch / "digits"
    folder = Path(image_dir)
    if not folder.is_dir():
        raise UserError(f"--image_dir {folder} is not a folder; give one that has a subfolder of photos for each class")
    return folder


if __name__ == "__main__":
    # Told to stop, it deletes its gigabytes as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(command.run(main))
