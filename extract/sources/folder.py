"""The labelled photos of a folder: each folder of files is a class, named by its path below `image_dir`."""

from __future__ import annotations

import contextlib
import os
import stat
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from cache import labels as class_labels
from cache.errors import UserError, first_line
from cache.passed_over import is_passed_over
from cache.photos import NOT_A_FILE, Photos
from cache.rejected import RETRY, Rejected
from cache.strings import Strings

_TICK = 20_000_000  # nanoseconds by which a system's stamp of a file may lag behind its clock


def list_photos(image_dir: str | os.PathLike) -> Photos:
    """Every file in the class folders of `image_dir`. Hidden files and folders are skipped, and those of systems.

    What the system does not let be looked at is in `Photos.unlisted`. Warns of it, of class folders without photos, of
    folders inside others that have photos, and of folders that may have been meant as one class. Raises UserError for a
    folder that is missing or cannot be listed, for fewer than two classes, and for one whose name cannot be a label.
    """
    root = Path(image_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"image_dir {root} is not a folder; give one that has a subfolder of photos for each class")
    listed = time.time_ns() - _TICK
    folders, paths, sizes, mtimes, ctimes, counts = [], [], [], [], [], []
    aside = _Aside([], [], [])
    for folder, files in _walk(root, aside):
        if folder == "":
            warnings.warn(f"{len(files.names)} files lie in {root} itself, in no class folder: left out", stacklevel=2)
            continue
        folders.append(folder)
        counts.append(len(files.names))
        below = os.fsencode(folder) + b"/"
        order = sorted(range(len(files.names)), key=files.names.__getitem__)
        paths.append(Strings.of_encoded([below + files.names[place] for place in order]))
        sizes.append(np.array(files.sizes, np.int64)[order])
        mtimes.append(np.array(files.mtimes, np.int64)[order])
        ctimes.append(np.array(files.ctimes, np.int64)[order])
    labels = class_labels.of_folders(folders)
    for first, second, *more in class_labels.alike(folders):
        warnings.warn(
            f"class folders {first!r} and {second!r}{f' and {len(more)} more' if more else ''} differ by case or "
            "punctuation alone, so each has its own name as its label; merge them if they are one class",
            stacklevel=2,
        )
    remarks = aside.remarks(root)
    for remark in remarks:
        warnings.warn(remark, stacklevel=2)
    ordered = sorted(labels)
    if not ordered:
        raise UserError(
            "; ".join([f"image_dir {root} has no subfolder with photos", *remarks, "make one for each class"])
        )
    if len(ordered) == 1:
        remedy = "a classifier needs two or more subfolders"
        raise UserError("; ".join([f"image_dir {root} has only one class, {ordered[0]!r}", *remarks, remedy]))
    rank, folder_of = {label: i for i, label in enumerate(ordered)}, dict(zip(labels, folders, strict=True))
    return Photos(
        image_dir=root,
        labels=ordered,
        folders=[folder_of[label] for label in ordered],
        paths=Strings.concatenate(paths),
        sizes=np.concatenate(sizes),
        mtimes=np.concatenate(mtimes),
        ctimes=np.concatenate(ctimes),
        label_ids=np.repeat(np.array([rank[label] for label in labels], np.int32), counts),
        listed=listed,
        unlisted=sorted(aside.unlisted, key=attrgetter("path")),
    )


def have_changed(photos: Photos, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Looks again at the files at `positions` (int64 [n]), to see which have changed since they were listed.

    Two arrays, bool [n]: which are gone or have another size or mtime, and which have another ctime only.
    """
    root = os.fsencode(photos.image_dir) + b"/"
    found = np.full((len(positions), 3), NOT_A_FILE, np.int64)
    for place, path in enumerate(photos.paths.take(positions).encoded()):
        with contextlib.suppress(OSError):
            status = os.stat(root + path)
            found[place] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    sizes, mtimes, ctimes = found.T
    others = (sizes != photos.sizes[positions]) | (mtimes != photos.mtimes[positions])
    touched = ~others & (ctimes != photos.ctimes[positions])
    return others, touched


@dataclass(frozen=True)
class _Files:
    """The files of one folder, unsorted. In columns: making and sorting a tuple for each file takes a third longer."""

    names: list[bytes]
    sizes: list[int]
    mtimes: list[int]
    ctimes: list[int]


@dataclass(frozen=True)
class _Aside:
    """What a walk finds beside the files of classes. Folders are paths below image_dir."""

    unlisted: list[Rejected]
    empty: list[str]  # folders
    nested: list[tuple[str, str]]  # folders with files, and for each the next one above it that has files, too

    def remarks(self, root: Path) -> list[str]:
        """What a user should know of it: a line for each kind, with the number and an example."""
        lines = []
        if self.unlisted:
            first = min(self.unlisted, key=attrgetter("path"))
            lines.append(
                "files or folders that cannot be looked at now are left out, with all that lies below: "
                f"{len(self.unlisted)}, such as {root / first.path} ({first.reason})"
            )
        if self.empty:
            lines.append(
                f"class folders without photos are left out: {len(self.empty)}, such as {root / self.empty[0]}"
            )
        if self.nested:
            inner, outer = self.nested[0]
            lines.append(
                "folders of photos inside a folder that has photos itself are classes of their own: "
                f"{len(self.nested)}, such as {root / inner} in {root / outer}"
            )
        return lines


def _walk(root: Path, aside: _Aside) -> Iterator[tuple[str, _Files]]:
    """Yields each folder below `root` that has files with these: a folder before those in it, in order of their names.

    `root` itself is "". The rest of what it finds goes to `aside`.
    """
    # Each folder that waits has the folders above it, which a link to one of them must not lead to again, and the
    # nearest one above it that has files.
    waiting: list[tuple[str, tuple[tuple[int, int], ...], str]] = [("", (), "")]
    while waiting:
        folder, above, outer = waiting.pop()
        files, folders, unlisted = _Files([], [], [], []), [], []
        try:
            here = os.stat(root / folder)
            above = (*above, (here.st_dev, here.st_ino))
            # Names stay bytes: decoding a million of them and encoding them again would take longer than the listing.
            with os.scandir(os.fsencode(root / folder)) as entries:
                for entry in entries:
                    if is_passed_over(entry.name):
                        continue
                    try:
                        status = entry.stat()
                    except OSError as error:  # such as a link to nothing or to itself, or a file renamed meanwhile
                        unlisted.append(_unlisted(os.path.join(folder, os.fsdecode(entry.name)), error))
                        continue
                    if not stat.S_ISDIR(status.st_mode):
                        files.names.append(entry.name)
                        # Reading a pipe would never end.
                        files.sizes.append(status.st_size if stat.S_ISREG(status.st_mode) else NOT_A_FILE)
                        files.mtimes.append(status.st_mtime_ns)
                        files.ctimes.append(status.st_ctime_ns)
                    elif (status.st_dev, status.st_ino) not in above:
                        folders.append(entry.name)
        except OSError as error:
            if not folder:
                raise UserError(f"cannot list {root}: {first_line(error)}; allow reading it or move it") from None
            unlisted.append(_unlisted(folder, error))
        aside.unlisted.extend(unlisted)
        if files.names:
            if outer:
                aside.nested.append((folder, outer))
            yield folder, files
        elif folder and not folders and not unlisted:
            aside.empty.append(folder)
        outer = folder if files.names else outer
        waiting += [(os.path.join(folder, os.fsdecode(name)), above, outer) for name in sorted(folders, reverse=True)]


def _unlisted(path: str, error: OSError) -> Rejected:
    """What is not known to be a file: a later run looks again."""
    return Rejected(path, NOT_A_FILE, RETRY, first_line(error))
