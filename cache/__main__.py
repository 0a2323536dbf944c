"""`python -m cache`: what is in a cache, and whether it is sound."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from cache import command
from cache.errors import CacheError


def parser() -> command.Parser:
    flags = command.Parser(prog="python -m cache", description="Looks into a cache of bottlenecks.")
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in (
        ("info", "tell what is in the cache: images, classes, shards, module, rejected files"),
        ("verify", "read every byte and compare it with its checksum; exit status 2 if any differs"),
    ):
        one = commands.add_parser(name, help=help_text, description=help_text)
        one.add_argument(
            "directory",
            type=Path,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="a cache_dir, or a backbone's folder in it",
        )
    return flags


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    from cache import store

    found = store.directories(flags.directory)
    if not found:
        raise CacheError(f"{flags.directory} holds no bottlenecks; give the --cache_dir of an extraction")
    for directory in found:
        (info if flags.command == "info" else verify)(directory)


def info(directory: Path) -> None:
    """Prints what the cache in `directory` holds. Raises CacheError when it is damaged."""
    from cache import shard, store

    module = store.module_of(directory)
    shards = [shard.read(directory / store.SHARDS / name) for name in store.shard_names(directory)]
    size = sum(opened.path.stat().st_size for opened in shards)
    stored = sum(map(len, shards))
    print(directory)
    print(f"  module         {module.module}, fingerprint {module.fingerprint}")
    print(f"  images         {module.image_height} x {module.image_width} pixels, {module.preprocessing}")
    print(f"  shards         {len(shards)} with {stored} bottlenecks of {module.dimension} values, {size / 1e6:.1f} MB")
    made = Counter((s.rows.bottlenecks.dtype.name, s.attributes["precision"], s.attributes["engine"]) for s in shards)
    for (dtype, precision, engine), count in sorted(made.items()):
        print(f"  made as        {dtype} by {engine} in {precision}: {count} shards")
    if (directory / store.INDEX).exists():
        cache = store.open(directory)
        print(f"  image_dir      {cache.index.image_dir}")
        print(f"  labelled       {len(cache)} images of {len(cache.labels)} classes")
        counts = Counter(cache.label_ids.tolist())
        for label_id, label in enumerate(cache.labels):
            print(f"    {counts[label_id]:>9}  {label}")
    else:
        print("  labelled       nothing yet: the extraction has not ended; run it again to go on")
    rejected = store.read_rejected(directory)
    print(f"  rejected       {len(rejected)} files" + (f", see {directory / store.REJECTED}" if rejected else ""))


def verify(directory: Path) -> None:
    """Raises CacheError, after naming every damaged file, unless all of `directory` is sound."""
    from tqdm import tqdm

    from cache import columns, store

    damage = []
    for name in tqdm(store.shard_names(directory), desc="verify", unit=" shards", leave=False):
        damage += columns.damage(directory / store.SHARDS / name, "shard")
    if (directory / store.INDEX).exists():
        damage += columns.damage(directory / store.INDEX, "index")
        if not damage:
            store.open(directory)
    for line in damage:
        print(line, file=sys.stderr)
    if damage:
        raise CacheError(f"{directory} is damaged: delete the files named above and run the extraction again")
    print(f"{directory}: sound")


if __name__ == "__main__":
    sys.exit(command.run(main))
