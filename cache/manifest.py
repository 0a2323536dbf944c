"""The checksums of the files in a folder, in a file that `sha256sum --check` reads."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from cache.errors import UnreadableError, first_line

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
    """Lists the SHA-256 of every file in `folder` in a file there. Raises OSError."""
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    (folder / NAME).write_text("".join(lines), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What differs from the list that `write` made, in words; None if nothing does.

    Raises UnreadableError where the system does not let the files be read.
    """
    if folder.is_symlink():
        return "a link, which leads out of the cache"
    try:
        if not _is_regular(folder / NAME):
            return f"{NAME} is a link or no regular file"
        lines = (folder / NAME).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        # File managers and network file systems put hidden files and folders anywhere.
        unlisted = present.keys() - listed.keys()
        strays = {name for name in unlisted if any(part.startswith(".") for part in name.split("/"))}
        if listed.keys() != present.keys() - strays:
            return f"{min(listed.keys() ^ present.keys() - strays)} is missing, or not listed in {NAME}"
        wrong = [
            name
            for name, digest in sorted(listed.items())
            if not _is_regular(present[name]) or _sha256(present[name]) != digest
        ]
    except (FileNotFoundError, NotADirectoryError, UnicodeError):
        return f"{NAME} is missing or damaged"
    except OSError as error:
        raise UnreadableError(f"cannot read {folder}: {first_line(error)}; fix that, and try again") from None
    return f"{wrong[0]} differs from its checksum" if wrong else None


def _files(folder: Path) -> list[Path]:
    # A link is listed, but counts as damage: it may lead out of the folder, and its target may change.
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path for path in found if path.relative_to(folder).as_posix() != NAME)


def _is_regular(path: Path) -> bool:
    """Whether this is a file of the folder itself. Reading a pipe would never end."""
    return stat.S_ISREG(path.lstat().st_mode)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
