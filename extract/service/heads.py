"""The heads that the service answers with: files, read anew when a training replaces them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import head as head_files
from cache.console import print
from cache.errors import CacheError, UserError
from cache.head import Head
from cache.layout import HEAD, LATEST, RUNS, BackboneInfo
from extract.service.refused import Refused

_SECONDS = 1.0  # between two looks at the folders
Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A head as it was read."""

    name: str
    folder: Path  # as the user gave it
    head: Head
    version: int  # 1, and one more each time that a training has replaced it
    stamp: Stamp | None  # of the file


class Heads:
    """The heads by name."""

    def __init__(self, folders: Sequence[Path]):
        """Reads the heads in `folders`. Raises UserError for one that is missing or damaged, and for a name twice."""
        self.by_name: dict[str, Loaded] = {}
        for folder in folders:
            name = _name(folder)
            if name in self.by_name:
                raise UserError(
                    f"two heads have the name {name}: {self.by_name[name].folder} and {folder}; rename a folder"
                )
            stamp = _stamp(folder)  # before reading: one that replaces it meanwhile is seen later
            self.by_name[name] = Loaded(name, folder, head_files.read(folder), 1, stamp)

    def check(self, backbone: BackboneInfo) -> None:
        """Raises UserError for a head of another backbone."""
        for loaded in self.by_name.values():
            if problem := _of_another(loaded.head, backbone):
                raise UserError(f"the head {loaded.folder} {problem}")

    def find(self, name: str) -> Loaded:
        """Raises Refused where there is no head of that name."""
        if name not in self.by_name:
            there = ", ".join(self.by_name) or "none: start the service with --head"
            raise Refused(404, f"no head {name!r}; there are: {there}", "unknown")
        return self.by_name[name]

    def put(self, name: str, folder: Path) -> Loaded:
        """Reads the head in `folder` and puts it in the place of the one of that name. Raises UserError."""
        version = self.by_name[name].version + 1 if name in self.by_name else 1
        stamp = _stamp(folder)
        self.by_name[name] = Loaded(name, folder, head_files.read(folder), version, stamp)
        return self.by_name[name]

    async def watch(self) -> None:
        """Reloads, for ever: a new head is read beside the old one and checked before it takes its place."""
        failed: dict[str, Stamp | None] = {}
        while True:
            await asyncio.sleep(_SECONDS)
            all_loaded = dict(self.by_name)
            stamps = await asyncio.to_thread(lambda known: [_stamp(one.folder) for one in known], all_loaded.values())
            for (name, loaded), stamp in zip(all_loaded.items(), stamps, strict=True):
                if stamp == loaded.stamp or (name in failed and failed[name] == stamp):
                    continue
                try:
                    head = await asyncio.to_thread(head_files.read, loaded.folder)
                    if problem := _of_another(head, loaded.head.backbone):
                        raise CacheError(f"{loaded.folder} {problem}")
                except UserError as error:
                    failed[name] = stamp
                    print(f"warning: head {name} stays as it was: {error}", file=sys.stderr)
                    continue
                failed.pop(name, None)
                if self.by_name.get(name) is not loaded:  # a training has put another there meanwhile
                    continue
                self.by_name[name] = Loaded(name, loaded.folder, head, loaded.version + 1, stamp)
                print(f"head {name} is replaced by version {loaded.version + 1}")


def _name(folder: Path) -> str:
    return folder.absolute().resolve().name if folder.name in ("", ".", "..") else folder.name


def _of_another(head: Head, backbone: BackboneInfo) -> str | None:
    if head.backbone.fingerprint == backbone.fingerprint:
        return None
    return (
        f"is for bottlenecks of {head.backbone.module} ({head.backbone.fingerprint}), not of {backbone.module} "
        f"({backbone.fingerprint}); serve it with the cache that it was trained on"
    )


def _stamp(folder: Path) -> Stamp | None:
    """What changes when a training replaces the head; None where there is none to be seen."""
    try:
        status = os.stat(_place(folder))
    except (UserError, OSError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _place(folder: Path) -> str | Path:
    """What `head_files.find` finds, at a tenth of the time where it is plain: a thousand heads are looked for again and
    again."""
    newest = f"{folder}/{LATEST}/{HEAD}"
    if os.path.exists(newest):
        return newest
    alone = f"{folder}/{HEAD}"
    if os.path.exists(alone) and not os.path.exists(f"{folder}/{RUNS}") and not os.path.exists(f"{folder}/{LATEST}"):
        return alone
    return head_files.find(folder)
