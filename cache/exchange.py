"""Exchanges shards, and files of thumbnails, for new ones, such that a kill leaves both only until the next exchange.

Shards that no index names may be those of an extraction, which the next extraction takes up, so nobody may delete
them. An exchange therefore lists what is not to stay, in a file that begins with a dot:

    20261123T215531021964-14429853.h5    an old file
    *-5a0c71e9.h5                        all files with this ending, the new ones

What is listed and not named by the index goes, at the end of the exchange or, if it was killed, before the next one.
The first list has the new files, and the old ones that the index names: until the index is replaced the new ones go,
and then the old ones. When all the new ones are there, a list of all the old ones alone replaces it: no index names
thumbnails, nor the shards of an extraction that has not ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cache import files
from cache import index as indexes
from cache.errors import CacheError, UnreadableError, UserError
from cache.layout import SHARDS, THUMBNAILS, committed_names, own_ending

LIST = ".exchange"
_NEW = "*-"  # begins the line of the new files


@contextlib.contextmanager
def exchanging(directory: Path, old: Sequence[Path]) -> Iterator[str]:
    """Yields the ending that the names of the new files are to have. The `old` ones are deleted after the block.

    They are shards and files of thumbnails in `directory`, and the block writes an index that names none of them. If
    it fails before that, the new files are deleted: otherwise each attempt on a full disk would make it fuller. The
    caller has the lock of `directory` to itself, and has called `finish`. Raises UserError when the list cannot be
    written or a file cannot be deleted.
    """
    ending, names = own_ending(), [path.name for path in old]
    if not names:
        yield ending
        return
    named = _named(directory) or set()
    try:
        _list(directory, [f"*{ending}", *(name for name in names if name in named)])
        yield ending
        _list(directory, names)
    except BaseException:
        with contextlib.suppress(OSError, UserError):  # the next exchange does it
            finish(directory)
        raise
    finish(directory)


def finish(directory: Path) -> int:
    """Deletes what the last exchange listed, as far as the index does not name it. Returns the bytes that are freed.

    The caller has the lock of `directory` to itself. Raises UserError when a file cannot be deleted, and
    UnreadableError when the index may be sound but cannot be read.
    """
    path, freed = directory / LIST, 0
    with files.writing(path):
        try:
            files.check_regular(path)
            lines = set(path.read_text(errors="replace").splitlines())
        except FileNotFoundError:
            return 0
        except CacheError:  # a link or a pipe: no exchange left it
            lines = set()
        endings = tuple(line[1:] for line in lines if line.startswith(_NEW))
        named = _named(directory)
        # As long as new files are listed all the old ones are there, and only an index can say that they are replaced.
        if named is None and endings:
            lines = set()
        files.sync(directory)  # the index is there to stay before what it replaced is deleted
        for folder in (SHARDS, THUMBNAILS):
            listed = (name for name in committed_names(directory, folder) if name in lines or name.endswith(endings))
            if left := [directory / folder / name for name in listed if name not in (named or ())]:
                freed += sum(file.lstat().st_size for file in left)
                for file in left:
                    files.delete(file)
                files.sync(directory / folder)
        files.delete(path)
        files.sync(directory)
    return freed


def _list(directory: Path, lines: Iterable[str]) -> None:
    files.write(directory / LIST, "".join(f"{line}\n" for line in lines).encode())


def _named(directory: Path) -> set[str] | None:
    """The shards that the index names; None if it is missing or so damaged that only a repair can drop it."""
    try:
        return set(indexes.read_table(directory)[1].shards)
    except UnreadableError:
        raise
    except CacheError:
        return None
