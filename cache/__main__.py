"""`python -m cache`: what is in a cache, whether it is sound, and its housekeeping."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cache import console
from cache.console import print
from cache.errors import CacheError

COMMANDS = {
    "info": "print what is in the cache: photos, classes, shards, thumbnails, module, engine and precision, rejected "
    "files",
    "verify": "read every byte and compare it with its checksum; exit status 2 if any differs",
    "compact": "merge small shards and drop the bottlenecks and thumbnails that no photo uses any more; training and "
    "extraction may go on meanwhile",
    "near": "print the photos whose bottlenecks are nearest to those of photos in the cache, with the cosine of the "
    "angle between them: 1 for the same picture",
    "duplicates": "print the photos that are there twice: equal files, and pairs whose bottlenecks are nearly the same",
}
FOR_ONE_FOLDER = ("near", "duplicates")  # the others look at the augmentations, too


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
        if name == "near":
            one.add_argument(
                "photos",
                nargs="+",
                metavar="PHOTO",
                default=argparse.SUPPRESS,
                help="a photo of the cache: its path, or the end of it below the folder that was extracted",
            )
            one.add_argument("--count", type=console.positive, default=10, help="how many of the nearest to print")
        if name == "duplicates":
            one.add_argument(
                "--cosine",
                type=console.positive_float,
                default=0.9,
                help="of two photos that are nearly the same, at least: 0.9 finds most mirrored and cropped copies",
            )
            one.add_argument(
                "--count", type=console.positive, default=100, help="how many pairs to print, nearest first"
            )
    return flags


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    from cache import layout

    found = layout.directories(Path(flags.directory))
    if not found:
        raise CacheError(f"{flags.directory} holds no bottlenecks; give the --cache_dir of an extraction")
    commands = {"info": _info, "verify": _verify, "compact": _compact, "near": _near, "duplicates": _duplicates}
    if flags.command not in FOR_ONE_FOLDER:
        found = [folder for plain in found for folder in (plain, *layout.augmentations(plain))]
    results, damages = [], []
    for directory in found:
        try:
            content, lines = commands[flags.command](directory, flags)
        except CacheError as error:  # the others are looked after all the same
            damages.append(error)
            continue
        results.append(content)
        if not flags.json:
            for line in lines:
                print(line)
    if flags.json:
        sys.stdout.write(json.dumps(results, indent=2) + "\n")
    for damage in damages[:-1]:
        print(f"error: {damage}", file=sys.stderr)
    if damages:
        raise damages[-1]
    damaged = [content["directory"] for content in results if content.get("sound") is False and not content["repaired"]]
    if damaged:
        raise CacheError(
            f"{', '.join(damaged)} is damaged; `python -m cache verify --repair {flags.directory}` drops exactly what "
            "is damaged, and the next extraction makes it again"
        )


def _info(directory: Path, flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from cache import info

    content = info.describe(directory)
    return content, info.lines(content)


def _verify(directory: Path, flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from cache import repair, verify

    found = repair.repair(directory) if flags.repair else verify.find(directory)
    content = {
        "directory": str(directory),
        "sound": not found,
        "repaired": flags.repair and bool(found),
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
    end = [f"{directory}: repaired; the next extraction makes again what was dropped"] if flags.repair else []
    return content, [*map(str, found), *end]


def _compact(directory: Path, flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
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
        left = f"; {result.bytes_freed / 1e6:,.1f} MB freed that a killed run left" if result.bytes_freed else ""
        return content, [f"{directory}: {shards}, nothing to compact{left}"]
    parts = [f"{shards} became {after[0]}", f"{console.counted(result.rows_dropped, 'unused bottleneck')} dropped"]
    if before[1]:
        parts.append(f"{console.counted(before[1], 'file')} of thumbnails became {after[1]}")
        parts.append(f"{console.counted(result.thumbnails_dropped, 'unused thumbnail')} dropped")
    parts.append(f"{result.bytes_freed / 1e6:,.1f} MB freed")
    return content, [f"{directory}: {', '.join(parts)}"]


def _near(directory: Path, flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from cache import near, reader

    cache = reader.open(directory)
    rows = near.rows_of(cache, flags.photos)
    # One more, since the nearest to each photo is the photo itself.
    found, cosines = near.nearest(cache, cache.bottlenecks(rows), flags.count + 1)
    content: dict[str, Any] = {"directory": str(directory), "photos": []}
    lines = []
    for row, others, scores in zip(rows.tolist(), found, cosines, strict=True):
        is_other = others != row
        neighbours = [
            {**near.photo(cache, other), "cosine": score}
            for other, score in zip(others[is_other].tolist(), scores[is_other].tolist(), strict=True)
        ][: flags.count]
        content["photos"].append({**near.photo(cache, row), "nearest": neighbours})
        lines.append("{path}  {label}".format(**near.photo(cache, row)))
        lines += ["  {cosine:.3f}  {path}  {label}".format(**neighbour) for neighbour in neighbours]
    return content, lines


def _duplicates(directory: Path, flags: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    from cache import near, reader

    cache = reader.open(directory)
    groups = [[near.photo(cache, row) for row in group.tolist()] for group in near.copies(cache)]
    pairs = near.pairs(cache, flags.cosine, flags.count)
    similar = [
        {"photos": [near.photo(cache, first), near.photo(cache, second)], "cosine": score}
        for first, second, score in zip(
            pairs.first.tolist(), pairs.second.tolist(), pairs.cosines.tolist(), strict=True
        )
    ]
    content = {"directory": str(directory), "equal": groups, "similar": similar, "similar_pairs": pairs.total}
    lines = [f"{directory}: {console.counted(len(groups), 'group')} of equal files"]
    for group in groups:
        lines += ["  {path}  {label}".format(**photo) for photo in group]
        lines.append("")
    printed = f", of which the {len(similar)} nearest" if len(similar) < pairs.total else ""
    counted = console.counted(pairs.total, "pair")
    lines.append(f"{counted} of other photos with a cosine of at least {flags.cosine:g}{printed}")
    for pair in similar:
        first, second = pair["photos"]
        apart = "" if first["label"] == second["label"] else f"  labels: {first['label']}, {second['label']}"
        lines.append(f"  {pair['cosine']:.3f}  {first['path']}  {second['path']}{apart}")
    return content, lines


def script() -> int:
    """The command `retrain-cache`."""
    return console.run(main)


if __name__ == "__main__":
    sys.exit(script())
