"""The labelled photos of a folder: each folder of files is a class, named by its path below `image_dir`."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import labels as class_labels
from cache.errors import UserError, first_line
from cache.photos import NOT_A_FILE, Photos
from cache.strings import Strings


def list_photos(image_dir: str | os.PathLike) -> Photos:
    """Every file in the class folders of `image_dir`. Hidden files and folders are skipped.

    Raises UserError for a folder that is missing or cannot be listed, for fewer than two classes, for an empty class
    folder, and for one whose name cannot be a label.
    """
    root = Path(image_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"image_dir {root} is not a folder; give one that has a subfolder of photos for each class")
    folders, paths, sizes, mtimes, counts = [], [], [], [], []
    for folder, files in _walk(root, "", ()):
        if folder == "":
            if files.names:
                warnings.warn(
                    f"{len(files.names)} files lie in {root} itself, in no class folder: left out", stacklevel=2
                )
            continue
        folders.append(folder)
        counts.append(len(files.names))
        below = os.fsencode(folder) + b"/"
        order = sorted(range(len(files.names)), key=files.names.__getitem__)
        paths.append(Strings.of_encoded([below + files.names[place] for place in order]))
        sizes.append(np.array(files.sizes, np.int64)[order])
        mtimes.append(np.array(files.mtimes, np.int64)[order])
    labels = class_labels.of_folders(folders)
    for first, second, *more in class_labels.alike(folders):
        warnings.warn(
            f"class folders {first!r} and {second!r}{f' and {len(more)} more' if more else ''} differ by case or "
            "punctuation alone, so each has its own name as its label; merge them if they are one class",
            stacklevel=2,
        )
    ordered = sorted(labels)
    if not ordered:
        raise UserError(f"image_dir {root} has no subfolder with photos; make one for each class")
    if len(ordered) == 1:
        raise UserError(
            f"image_dir {root} has only one class, {ordered[0]!r}; a classifier needs two or more subfolders"
        )
    rank, folder_of = {label: i for i, label in enumerate(ordered)}, dict(zip(labels, folders, strict=True))
    return Photos(
        image_dir=root,
        labels=ordered,
        folders=[folder_of[label] for label in ordered],
        paths=Strings.concatenate(paths),
        sizes=np.concatenate(sizes),
        mtimes=np.concatenate(mtimes),
        label_ids=np.repeat(np.array([rank[label] for label in labels], np.int32), counts),
    )


@dataclass(frozen=True)
class _Files:
    """The files of one folder, unsorted. In columns: making and sorting a tuple for each file takes a third longer."""

    names: list[bytes]
    sizes: list[int]
    mtimes: list[int]


def _walk(root: Path, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, _Files]]:
    """Yields `folder` with its files, if it has any, then the folders in it, sorted. `above` identifies its parents."""
    files, folders = _Files([], [], []), []
    try:
        # A link to a parent would be walked for ever.
        here = os.stat(root / folder)
        above = (*above, (here.st_dev, here.st_ino))
        # Names stay bytes: decoding a million of them and encoding them again would take longer than the listing.
        with os.scandir(os.fsencode(root / folder)) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_dir():
                    inside = entry.stat()
                    if (inside.st_dev, inside.st_ino) not in above:
                        folders.append(entry.name)
                else:
                    size, mtime = _size_and_mtime(entry)
                    files.names.append(entry.name)
                    files.sizes.append(size)
                    files.mtimes.append(mtime)
    except OSError as error:
        raise UserError(f"cannot list {root / folder}: {first_line(error)}; allow reading it or move it") from None
    if folder and not files.names and not folders:
        raise UserError(f"class folder {root / folder} is empty; add photos or delete it")
    if files.names:
        yield folder, files
    for name in map(os.fsdecode, sorted(folders)):
        yield from _walk(root, f"{folder}/{name}" if folder else name, above)


def _size_and_mtime(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    """The bytes and mtime (nanoseconds) of a file; NOT_A_FILE bytes for a pipe, whose reading would never end."""
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link to nothing; reading it will report that
        status = entry.stat(follow_symlinks=False)
        return status.st_size, status.st_mtime_ns
    return status.st_size if stat.S_ISREG(status.st_mode) else NOT_A_FILE, status.st_mtime_ns
