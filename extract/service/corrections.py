"""Photos that users of the page have corrected: a folder of class folders, as the extraction takes it, too."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache import files, kinds, labels
from cache.errors import UserError
from cache.passed_over import is_passed_over
from extract.service.refused import Refused

HEADS = ".heads"  # in the folder: the classifiers that were made on the page, by name
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp"}
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST = 100  # bytes of a label
_NAME = re.compile(r"[0-9a-f]{16}\.(jpg|png|gif|bmp|webp)")


@dataclass(frozen=True)
class Corrected:
    """A photo in the folder."""

    label: str
    path: Path

    @property
    def below(self) -> str:
        """Its path below the folder."""
        return f"{self.label}/{self.path.name}"


class Corrections:
    """The folder of corrections. What it writes is never outside of it."""

    def __init__(self, folder: Path):
        """Makes the folder. Raises UserError where it cannot be written."""
        files.make_writable(folder, "--corrections")
        self.folder = folder

    def add(self, label: str, content: bytes, known: Sequence[str]) -> Corrected:
        """Keeps a photo as one of class `label`; where it was kept as another before, no longer so.

        `known` are the labels that there are: one that differs by case or punctuation alone is meant. Raises Refused
        for what can be no label, UserError where the folder cannot be written.
        """
        label = self.label(label, known)
        suffix = next(end for start, end in _SUFFIXES.items() if content.startswith(start))
        name = hashlib.sha256(content).hexdigest()[:16] + suffix
        corrected = Corrected(label, files.own_folder(self.folder, label) / name)
        files.write(corrected.path, content)
        for folder in self._classes():
            if folder.name != label and (folder / name).is_file():
                _delete(folder / name)
        return corrected

    def remove(self, label: str, name: str) -> None:
        """Takes a photo back. Raises Refused where there is none."""
        label = self.label(label, ())
        path = files.own_folder(self.folder, label) / name
        if not _NAME.fullmatch(name) or not path.is_file():
            raise Refused(404, f"no correction {name[:100]!r} of class {label!r}", "unknown")
        _delete(path)

    def __iter__(self) -> Iterator[Corrected]:
        """All of them, class by class."""
        for folder in self._classes():
            for path in sorted(folder.iterdir()):
                if _is_own_photo(path):
                    yield Corrected(folder.name, path)

    def _classes(self) -> list[Path]:
        return [
            entry
            for entry in sorted(self.folder.iterdir())
            if not is_passed_over(os.fsencode(entry.name)) and not entry.is_symlink() and entry.is_dir()
        ]

    def label(self, text: str, known: Sequence[str]) -> str:
        """The label that `text` stands for, which is also the name of its folder. Raises Refused for none."""
        label = text.strip()
        form = labels.normalise(label)
        for other in known:
            if label == other or (form.strip() and form == labels.normalise(other)):
                label = other
                break
        problem = ""
        if not label or _CONTROLS.search(label):
            problem = "a label is some text, without control characters"
        elif "/" in label or "\\" in label or is_passed_over(os.fsencode(label)):
            problem = "a label here has no slash, does not begin with a dot, and is no system's folder"
        elif len(label.encode("utf-8", "surrogateescape")) > _LONGEST or not _is_text(label):
            problem = f"a label has at most {_LONGEST} bytes of text"
        if problem:
            raise Refused(400, problem, "label")
        return label


def _is_own_photo(path: Path) -> bool:
    """Whether this is a file of our own name that begins as a photo."""
    if not _NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return kinds.is_photo(file.read(kinds.HEAD))


def _delete(path: Path) -> None:
    """Deletes a photo, and its folder with the last one: a class without photos would be none."""
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds others
        path.parent.rmdir()


def _is_text(label: str) -> bool:
    try:
        label.encode()
    except UnicodeEncodeError:
        return False
    return True


def made_heads(folder: Path) -> list[Path]:
    """The folders of the classifiers that were made on the page."""
    heads = files.own_folder(folder, HEADS)
    try:
        return sorted(entry for entry in heads.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot list {heads}: {error.strerror}; allow reading it") from None
