"""The list of the photos that could not be read at the last extraction."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from cache import files
from cache.errors import UnreadableError, damage, first_line
from cache.layout import REJECTED

RETRY = -1  # an mtime that no file has: the next run reads the photo again even though its file is unchanged


@dataclass(frozen=True)
class Rejected:
    """A photo that could not be read."""

    path: str  # below image_dir
    size: int  # bytes
    mtime: int  # nanoseconds, or RETRY
    reason: str


_HEADER = [field.name for field in fields(Rejected)]


def read(directory: Path) -> list[Rejected]:
    """The list in `directory`; empty where there is none.

    Raises CacheError where it is damaged, UnreadableError where the system does not let it be read.
    """
    path = directory / REJECTED
    try:
        files.check_regular(path)
        text = path.read_bytes().decode("utf-8", "surrogateescape")  # untranslated: a name may hold any line end
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if rows.fieldnames != _HEADER:
            raise ValueError("another header")
        return [Rejected(row["path"], int(row["size"]), int(row["mtime"]), row["reason"]) for row in rows]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {first_line(error)}; fix that, and try again") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise damage(path, "no table of rejected photos") from None


def write(directory: Path, rejected: Sequence[Rejected]) -> None:
    """Replaces the list in `directory` atomically. Raises UserError when it cannot be written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_HEADER)
    writer.writerows(map(astuple, rejected))
    with files.replacing(directory / REJECTED) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))
