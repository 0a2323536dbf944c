"""`python -m cache`: what is in a cache, whether it is sound, and its housekeeping."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache import console
from cache.errors import CacheError

if TYPE_CHECKING:
    from cache.verify import Damage

COMMANDS = {
    "info": "print what is in the cache: photos, classes, shards, thumbnails, module, engine and precision, rejected "
    "files",
    "verify": "read every byte and compare it with its checksum; exit status 2 if any differs",
    "compact": "merge small shards and drop the bottlenecks and thumbnails that no photo uses any more; training and "
    "extraction may go on meanwhile",
}


def parser() -> console.Parser:
    flags = console.Parser(prog="python -m cache", description="Looks after a cache of bottlenecks.")
    commands = flags.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        one = commands.add_parser(name, help=help_text, description=help_text)
        one.add_argument(
            "directory",
            type=console.path,
            metavar="DIR",
            default=argparse.SUPPRESS,
            help="a cache_dir, or a backbone's folder in it",
        )
        one.add_argument(
            "--json",
            action="store_true",
            help="print it for programs: a list, an entry for each backbone and each of its augmentations",
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
    from cache import layout

    found = layout.directories(Path(flags.directory))
    if not found:
        raise CacheError(f"{flags.directory} holds no bottlenecks; give the --cache_dir of an extraction")
    if flags.command == "verify" and flags.repair:
        work = _repair
    else:
        work = {"info": _info, "verify": _verify, "compact": _compact}[flags.command]
    results = []
    for directory in [folder for plain in found for folder in (plain, *layout.augmentations(plain))]:
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


def _verify(directory: Path) -> tuple[dict[str, Any], list[str]]:
    from cache import verify

    return _report(directory, verify.find(directory), repaired=False)


def _repair(directory: Path) -> tuple[dict[str, Any], list[str]]:
    from cache import repair

    return _report(directory, repair.repair(directory), repaired=True)


def _report(directory: Path, found: list[Damage], repaired: bool) -> tuple[dict[str, Any], list[str]]:
    content = {
        "directory": str(directory),
        "sound": not found,
        "repaired": repaired and bool(found),
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
    end = [f"{directory}: repaired; the next extraction makes again what was dropped"] if repaired else []
    return content, [*map(str, found), *end]


def _compact(directory: Path) -> tuple[dict[str, Any], list[str]]:
    from cache import compact, layout

    if not (directory / layout.INDEX).exists():  # an extraction that has not ended is no reason to fail for the others
        count = len(layout.shard_names(directory))
        unchanged = compact.Result(count, count, 0, 0, 0, 0, 0)
        return {"directory": str(directory), **vars(unchanged)}, [
            f"{directory}: left alone, its extraction has not ended"
        ]
    result = compact.compact(directory)
    content = {"directory": str(directory), **vars(result)}
    shards = console.counted(result.shards_before, "shard")
    before = result.shards_before, result.thumbnail_files_before
    after = result.shards_after, result.thumbnail_files_after
    if before == after and not result.rows_dropped and not result.thumbnails_dropped:
        return content, [f"{directory}: {shards}, nothing to compact"]
    parts = [f"{shards} became {after[0]}", f"{console.counted(result.rows_dropped, 'unused bottleneck')} dropped"]
    if before[1]:
        parts.append(f"{console.counted(before[1], 'file')} of thumbnails became {after[1]}")
        parts.append(f"{console.counted(result.thumbnails_dropped, 'unused thumbnail')} dropped")
    parts.append(f"{result.bytes_freed / 1e6:,.1f} MB freed")
    return content, [f"{directory}: {', '.join(parts)}"]


def script() -> int:
    """The command `retrain-cache`."""
    return console.run(main)


if __name__ == "__main__":
    sys.exit(script())
