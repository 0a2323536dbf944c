"""The labelled images of a folder: each folder of files is a class, named by its path below `image_dir`."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import UserError
from cache.strings import Strings

NOT_A_FILE = -1  # a size that no file has


@dataclass(frozen=True)
class Images:
    """N files below `image_dir`, in the order of a sorted walk. Whether they are images, only decoding tells."""

    image_dir: Path
    labels: list[str]  # class names, sorted
    folders: list[str]  # the folder of each label, below image_dir
    paths: Strings  # below image_dir
    sizes: np.ndarray  # int64 [N], bytes
    mtimes: np.ndarray  # int64 [N], nanoseconds since the epoch
    label_ids: np.ndarray  # int32 [N], into labels

    def __len__(self) -> int:
        return len(self.paths)


def normalise(folder: str) -> str:
    """The label of a class folder, as the tutorial makes it: in lower case, each run of anything but a to z and 0 to 9
    a space."""
    return re.sub(r"[^a-z0-9]+", " ", folder.lower())


def list_images(image_dir: str | os.PathLike) -> Images:
    """Every file in the class folders of `image_dir`; hidden files and folders are passed over.

    Raises UserError for a folder that is missing or cannot be listed, for fewer than two classes, for an empty
    class folder, and for two folders whose labels fall together.
    """
    root = Path(image_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"image_dir {root} is not a folder; give one that has a subfolder of images for each class")
    folders: dict[str, str] = {}  # label -> folder
    paths, sizes, mtimes, counts, labels = [], [], [], [], []
    for folder, files in _walk(root, "", ()):
        if folder == "":
            if files.names:
                warnings.warn(
                    f"{len(files.names)} files lie in {root} itself, in no class folder: left out", stacklevel=2
                )
            continue
        label = normalise(folder)
        if not label.strip():
            raise UserError(f"class folder {root / folder} has no letter a-z or digit in its name; rename it")
        if label in folders:
            raise UserError(
                f"class folders {root / folders[label]} and {root / folder} both have the label {label!r}; "
                "rename or merge them"
            )
        folders[label] = folder
        labels.append(label)
        counts.append(len(files.names))
        below = os.fsencode(folder) + b"/"
        order = sorted(range(len(files.names)), key=files.names.__getitem__)
        paths.append(Strings.of_encoded([below + files.names[place] for place in order]))
        sizes.append(np.array(files.sizes, np.int64)[order])
        mtimes.append(np.array(files.mtimes, np.int64)[order])
    ordered = sorted(labels)
    if not ordered:
        raise UserError(f"image_dir {root} has no subfolder with images; make one for each class")
    if len(ordered) == 1:
        raise UserError(
            f"image_dir {root} has only one class, {ordered[0]!r}; a classifier needs two or more subfolders"
        )
    rank = {label: i for i, label in enumerate(ordered)}
    return Images(
        image_dir=root,
        labels=ordered,
        folders=[folders[label] for label in ordered],
        paths=Strings.concatenate(paths),
        sizes=np.concatenate(sizes),
        mtimes=np.concatenate(mtimes),
        label_ids=np.repeat(np.array([rank[label] for label in labels], np.int32), counts),
    )


@dataclass(frozen=True)
class _Files:
    """The files of one folder, unsorted. Columns: a tuple for each file would take a third longer to make and sort."""

    names: list[bytes]
    sizes: list[int]
    mtimes: list[int]


def _walk(root: Path, folder: str, above: tuple) -> Iterator[tuple[str, _Files]]:
    """(folder, its files) of `folder` if it has files, then of the folders in it, sorted."""
    files, folders = _Files([], [], []), []
    try:
        # A link to a folder above would be walked for ever.
        here = os.stat(root / folder)
        above = (*above, (here.st_dev, here.st_ino))
        # Names stay bytes: a million strings made and encoded again would take longer than the listing.
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
        raise UserError(f"cannot list {root / folder}: {error.strerror}; change its permissions or move it") from None
    if folder and not files.names and not folders:
        raise UserError(f"class folder {root / folder} is empty; add images or delete it")
    if files.names:
        yield folder, files
    for name in map(os.fsdecode, sorted(folders)):
        yield from _walk(root, f"{folder}/{name}" if folder else name, above)


def _size_and_mtime(entry: os.DirEntry[bytes]) -> tuple[int, int]:
    """A file's bytes and time of modification in nanoseconds; -1 bytes for what is no file (reading a pipe would
    wait for ever)."""
    try:
        status = entry.stat()
    except FileNotFoundError:  # a link to nothing: reading it says so
        status = entry.stat(follow_symlinks=False)
        return status.st_size, status.st_mtime_ns
    return status.st_size if stat.S_ISREG(status.st_mode) else NOT_A_FILE, status.st_mtime_ns
