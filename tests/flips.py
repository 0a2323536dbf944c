"""Flips bits in the files of a cache, and looks what the program makes of it, in a new process for each try.

A process that has read a sound file before hides crashes, since the HDF5 library keeps what it learned and the memory
that it used. So this is a program of its own, which opens no HDF5 file and forks a process for each try:

    python -m tests.flips DIRECTORY < tries.json

A try is [file, places, mask, whether to use the cache for everything], and flips the bits of the mask in the bytes at
these places. Prints, as JSON, what went against what is promised.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.ma

import cache
from cache import index as indexes
from cache import info, layout, shard, thumbnails, verify
from cache.errors import UserError
from cache.repair import repair
from cache.verify import Damage
from tests.damage import flipped
from tests.random_cache import content, vectors_by_path
from train.data import dataset
from train.settings import TrainSettings

Use = Callable[[Path], Any]
_PATIENCE = 60  # seconds, many times what one try takes


def main() -> None:
    directory, broken = Path(sys.argv[1]), []
    gc.freeze()  # a collection in a forked process would copy the memory of this one
    sound = pickle.loads(in_new_process(lambda: pickle.dumps(answers(directory, USES))))
    for name, places, mask, thorough in json.load(sys.stdin):
        path = directory / name
        with flipped(path, dict.fromkeys(places, mask)):
            report = in_new_process(partial(check, directory, path, sound, USES if thorough else READING))
            if thorough and not report:
                report = in_new_process(partial(check_repair, directory, path, sound))
        if report:
            broken.append(f"{name}, bytes {places} ^ {mask}: {report.decode()}")
    json.dump(broken, sys.stdout)


def in_new_process(work: Callable[[], bytes | None]) -> bytes:
    """What `work` returns in a forked process, or its traceback, or the name of the signal that ended it."""
    read, write = os.pipe()
    if not (child := os.fork()):
        signal.alarm(_PATIENCE)
        with open(write, "wb") as pipe, contextlib.redirect_stdout(io.StringIO()):
            try:
                answer = work()
            except Exception:
                answer = traceback.format_exc().encode()
            pipe.write(answer or b"")
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer if status == 0 else signal.Signals(-status).name.encode()


def answers(directory: Path, uses: Mapping[str, Use]) -> dict[str, Any]:
    """What each use of a cache makes of it; None where it refuses."""
    values: dict[str, Any] = dict.fromkeys(uses)
    for name, use in uses.items():
        with contextlib.suppress(UserError):
            values[name] = use(directory)
    return values


def check(directory: Path, path: Path, sound: Mapping[str, Any], uses: Mapping[str, Use]) -> None:
    """Raises AssertionError unless the flip in `path` is named, or harmless."""
    # Before any sound file.
    with contextlib.suppress(UserError):
        if path.name == layout.INDEX:
            indexes.read(path.parent)
        elif path.suffix == ".h5":
            shard.read(path) if path.parent.name == layout.SHARDS else thumbnails.read(path)
    is_named = any(path.is_relative_to(damage.path) for damage in _damages(directory))
    found = answers(directory, uses)
    # A flip in the list of rejected photos costs another try of a photo at most.
    if not is_named and path.name != layout.REJECTED:
        differ = [use for use in uses if found[use] != sound[use]]
        assert not differ, f"not found, and {differ} differ"
    assert found.get("training") in (None, sound["training"]), "it trains on something else"
    shown = found["thumbnails"] or []
    assert all(one in (None, other) for one, other in zip(shown, sound["thumbnails"], strict=bool(shown)))


def check_repair(directory: Path, path: Path, sound: Mapping[str, Any]) -> None:
    """Raises AssertionError unless a repair drops what is damaged, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(directory, Path(folder) / directory.name))
        path = copy / path.relative_to(directory)
        damages = [damage for one in _folders(copy) for damage in repair(one)]
        assert not _damages(copy), "damaged after the repair"
        dropped = {damage.path for damage in damages}
        for original in [*directory.rglob("*.*")]:
            same = copy / original.relative_to(directory)
            is_kept = original.is_file() and same.name != layout.INDEX and not dropped & {same, *same.parents}
            assert not is_kept or same.read_bytes() == original.read_bytes(), f"{same} is not as it was"
        for number, one in enumerate(_folders(copy)):
            vectors = vectors_by_path(one) if (one / layout.INDEX).exists() else {}
            whole = sound["vectors"][number]
            assert vectors.items() <= whole.items(), "other bottlenecks"
            lost = _photos_lost(damages, one, len(whole))
            assert len(vectors) == len(whole) - lost, f"{len(whole) - len(vectors)} photos lost instead of {lost}"


def _photos_lost(damages: list[Damage], folder: Path, count: int) -> int:
    """How many of the photos of a folder with one shard are lost by the damage to its shard or index."""
    places = (folder, folder / layout.SHARDS)
    rows = [damage.rows for damage in damages if damage.path.suffix == ".h5" and damage.path.parent in places]
    return sum(count if some is None else len(some) for some in rows)


def _folders(directory: Path) -> list[Path]:
    return [directory, *layout.augmentations(directory)]


def _damages(directory: Path) -> list[Damage]:
    return [damage for folder in _folders(directory) for damage in verify.find(folder)]


def _info(directory: Path) -> Any:
    return ["\n".join(info.lines(info.describe(folder))) for folder in _folders(directory)]


def _read(directory: Path) -> Any:
    return [content(folder) for folder in _folders(directory)]


def _thumbnails(directory: Path) -> Any:
    opened = cache.open(directory)
    return thumbnails.find(opened, np.arange(len(opened)))


def _training_set(directory: Path) -> Any:
    opened = dataset.open_split(TrainSettings(cache_dir=directory))
    opened.check()
    return [
        (one.labels, one.label_ids.tolist(), list(one.paths), one.bottlenecks(np.arange(len(one))).tobytes())
        for one in (opened.cache, *opened.augmentations)
    ]


def _vectors(directory: Path) -> Any:
    return [vectors_by_path(folder) for folder in _folders(directory)]


READING: dict[str, Use] = {"reading": _read, "thumbnails": _thumbnails}
USES = READING | {"vectors": _vectors, "info": _info, "training": _training_set}


if __name__ == "__main__":
    main()
