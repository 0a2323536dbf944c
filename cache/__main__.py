"""`python -m cache`: what is in a cache, whether it is sound, and its housekeeping."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache import command
from cache.errors import CacheError

COMMANDS = {
    "info": "tell what is in the cache: images, classes, shards, thumbnails, module, engine and precision, rejected "
    "files",
    "verify": "read every byte and compare it with its checksum; exit status 2 if any differs",
    "compact": "merge small shards and drop the bottlenecks and thumbnails that no image uses any more; training and "
    "extraction may go on meanwhile",
}


def parser() -> command.Parser:
    flags = command.Parser(prog="python -m cache", description="Looks after a cache of bottlenecks.")
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        one = commands.add_parser(name, help=help_text, description=help_text)
        one.add_argument(
            "directory",
            type=command.path,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="a cache_dir, or a backbone's folder in it",
        )
        one.add_argument(
            "--json",
            action="store_true",
            help="print it for programs: a list, an entry for each backbone and each distorted version of it",
        )
        if name == "verify":
            one.add_argument(
                "--repair",
                action="store_true",
                help="drop exactly the damaged rows and files, so that the next extraction makes them again",
            )
    return flags


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    from cache import store

    found = store.directories(Path(flags.directory))
    if not found:
        raise CacheError(f"{flags.directory} holds no bottlenecks; give the --cache_dir of an extraction")
    work: Callable[[Path], tuple[dict[str, Any], list[str]]]
    if flags.command == "verify":
        work = lambda directory: _verify(directory, flags.repair)  # noqa: E731
    else:
        work = {"info": _info, "compact": _compact}[flags.command]
    results = []
    for directory in [folder for plain in found for folder in (plain, *store.versions(plain))]:
        content, lines = work(directory)
        results.append(content)
        if not flags.json:
            print("\n".join(lines))
    if flags.json:
        print(json.dumps(results, indent=2))
    damaged = [content["directory"] for content in results if content.get("sound") is False]
    if damaged and not flags.repair:
        raise CacheError(
            f"{', '.join(damaged)} is damaged; `python -m cache verify --repair {flags.directory}` drops exactly what "
            "is damaged, and the next extraction makes it again"
        )


def _info(directory: Path) -> tuple[dict[str, Any], list[str]]:
    from cache import info

    content = info.describe(directory)
    return content, info.lines(content)


def _verify(directory: Path, repair: bool) -> tuple[dict[str, Any], list[str]]:
    from cache import verify

    found = verify.repair(directory) if repair else verify.find(directory)
    content = {
        "directory": str(directory),
        "sound": not found,
        "repaired": repair and bool(found),
        "damage": [
            {
                "path": str(damage.path),
                "reason": damage.reason,
                "rows": None if damage.rows is None else damage.rows.tolist(),
            }
            for damage in found
        ],
    }
    if not found:
        return content, [f"{directory}: sound"]
    end = [f"{directory}: repaired; the next extraction makes again what was dropped"] if repair else []
    return content, [*map(str, found), *end]


def _compact(directory: Path) -> tuple[dict[str, Any], list[str]]:
    from cache import compact, store

    if not (directory / store.INDEX).exists():  # what an extraction is making need not keep the others from it
        count = len(store.shard_names(directory))
        left = compact.Result(count, count, 0, 0, 0, 0, 0)
        return {"directory": str(directory), **vars(left)}, [f"{directory}: left alone, its extraction has not ended"]
    result = compact.compact(directory)
    content = {"directory": str(directory), **vars(result)}
    before = result.shards_before, result.thumbnail_files_before
    after = result.shards_after, result.thumbnail_files_after
    if before == after and not result.rows_dropped and not result.thumbnails_dropped:
        return content, [f"{directory}: {_shards(result.shards_before)}, nothing to compact"]
    of_thumbnails = (
        f"{before[1]} files of thumbnails became {after[1]}, {result.thumbnails_dropped:,} unused thumbnails dropped, "
    )
    return content, [
        f"{directory}: {_shards(before[0])} became {after[0]}, {result.rows_dropped:,} unused bottlenecks dropped, "
        f"{of_thumbnails if before[1] else ''}{result.bytes_freed / 1e6:,.1f} MB freed"
    ]


def _shards(count: int) -> str:
    return f"{count} shard" + "s" * (count != 1)


if __name__ == "__main__":
    sys.exit(command.run(main))
