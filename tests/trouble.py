"""What can go wrong with the place of a cache while a command works on it. The functions run in forked processes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

from tests.interrupted import Child


def fill_up(disk: Path) -> None:
    """Fills a small file system to the last block."""
    with contextlib.suppress(OSError), open(disk / "ballast", "ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def make_room(disk: Path) -> None:
    """Undoes `fill_up`."""
    (disk / "ballast").unlink()


def remount(disk: Path, how: str) -> None:
    """Makes a file system read-only ("ro") or writable again ("rw")."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def limit_files(size: int) -> None:
    """No file may grow beyond `size` bytes: this stands in for a full disk where none can be mounted."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def obey_permissions() -> None:
    """Gives up the right of root to ignore permissions, and every other right."""
    version, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version, nothing) == 0


def chmod(cache_dir: Path, mode: int) -> None:
    """Sets the permissions of a cache's folders."""
    cache_dir.chmod(0o700)
    for folder in [*cache_dir.glob("*/shards"), *cache_dir.glob("*"), cache_dir]:
        folder.chmod(mode)


def lose_shards(cache_dir: Path) -> None:
    """Deletes the folders of shards."""
    for folder in cache_dir.glob("*/shards"):
        shutil.rmtree(folder)


def break_down() -> None:
    """Fails as a disk with a defect does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def error_line(child: Child) -> str:
    """The one line of an error that a command ended with."""
    status, errors = child.wait()
    assert status == 2, errors
    assert "Traceback" not in errors
    *bars, line = errors.splitlines()
    assert line.startswith("error: "), errors
    assert all(not bar or bar.startswith(("extract:", "compact:", "verify:")) for bar in bars), errors
    return line
