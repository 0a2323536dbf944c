"""Files and folders that appear whole or not at all, the lock of a folder, and what killed writers leave behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from cache.errors import REPAIR, CacheError, UserError, first_line

TEMPORARY = ".tmp"
LOCK = ".lock"
ABANDONED = 3600.0  # seconds without a write, after which a temporary file has no writer any more
# How file systems without symbolic links refuse one.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
# How file systems say that they cannot flush a folder: shared folders of VirtualBox, WSL and old CIFS, some FUSE ones.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS)
# TensorFlow's errors for a full disk, one that may not be written, a folder that is gone, a limit on a file's size.
_TENSORFLOW_REFUSALS = ("ResourceExhaustedError", "PermissionDeniedError", "NotFoundError", "OutOfRangeError")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the refusal to write `path`, by the system or TensorFlow, into a UserError."""
    try:
        yield
    except Exception as error:
        tensorflow = sys.modules.get("tensorflow")
        refusals = [getattr(tensorflow.errors, name) for name in _TENSORFLOW_REFUSALS] if tensorflow else []
        if not isinstance(error, (OSError, *refusals)):
            raise
        is_gone = isinstance(error, FileNotFoundError)
        remedy = "its folder was moved or deleted" if is_gone else "free some space or choose another folder"
        raise UserError(f"cannot write {path}: {first_line(error)}; {remedy}, and run again") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` at the end: written beside it, flushed to disk, renamed over it.

    Raises UserError when that fails. What was at `path` before is then untouched, and nothing new is left.
    """
    temporary = _beside(path)
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                with contextlib.suppress(OSError):  # a file system without locks; `sweep` looks at the lock
                    fcntl.flock(file, fcntl.LOCK_EX)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the folder itself may be gone
                temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextlib.contextmanager
def replacing_folder(folder: Path, keep: str | None = None) -> Iterator[Path]:
    """An empty folder to write into that becomes `folder` at the end, its files flushed to disk.

    If by then `folder` holds a file named `keep`, somebody else was faster: that folder stays, and the new one is
    deleted. Any other folder that is there is replaced. Raises UserError when that fails; then the old one stays.
    """
    folder = folder.absolute()
    temporary, old = _beside(folder), _beside(folder)
    with writing(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            if not _is_kept(folder, keep):
                try:
                    _swap(temporary, folder, old)
                except OSError:
                    if not _is_kept(folder, keep):  # otherwise somebody was faster at this very moment
                        raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_kept(folder: Path, keep: str | None) -> bool:
    return keep is not None and (folder / keep).exists()


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Renames `new` to `folder`; what was there goes by way of `old`. Raises OSError."""
    if folder.exists():  # a folder with files in it cannot be replaced by a rename
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except BaseException:
        if old.exists():
            os.rename(old, folder)
        raise
    sync(folder.parent)
    delete(old)


def write(path: Path, content: bytes) -> None:
    """Replaces `path`, which afterwards holds all of `content` or what it held before. Makes its folder if missing.

    Raises UserError when it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content)


def replace_link(path: Path, target: Path) -> None:
    """Makes `path` a link to `target`, whatever link or file it was before. Does nothing where there are no links.

    Raises OSError.
    """
    temporary = _beside(path)
    try:
        os.symlink(target, temporary)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return
        raise
    os.replace(temporary, path)
    sync(path.parent)


def delete(path: Path) -> None:
    """Deletes a file, a link or a whole folder. A folder disappears at once, even if the deletion is killed."""
    if path.is_dir() and not path.is_symlink():
        hidden = _beside(path)
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)  # or a later `sweep` does
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes the content of a file, or the renames and deletions in a folder, survive a power cut. Raises OSError.

    Where the file system cannot flush a folder at all, nothing more can be done, and the work goes on.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC or not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise
    finally:
        os.close(descriptor)


def make_writable(folder: Path, flag: str) -> None:
    """Makes `folder`, which `flag` named, if it is missing.

    Raises UserError where it cannot be written: better now than after hours of work.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write {folder}: {first_line(error)}; choose another {flag}") from None


def check_regular(path: Path, remedy: str = REPAIR) -> None:
    """Raises CacheError for a link, which may lead anywhere, and for a pipe, which never ends.

    Raises FileNotFoundError if there is nothing at `path`.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise CacheError(f"{path} is a link or no regular file; put the file itself there, or {remedy}")


def own_folder(directory: Path, name: str) -> Path:
    """The folder `name` in the folder of a cache.

    Raises CacheError for a link: whoever repairs the cache would delete files somewhere else.
    """
    folder = directory / name
    if folder.is_symlink():
        raise CacheError(f"{folder} is a link; put the folder itself there")
    return folder


@contextlib.contextmanager
def locked(directory: Path, shared: bool = False, required: bool = False) -> Iterator[bool]:
    """Keeps others from replacing shards that the index names. With `shared`, several may hold the lock at once.

    Readers never wait. If the file system has no locks or the folder cannot be written, the block runs without the
    lock, unless it is `required`: then it raises UserError. It also does where this user may write the folder, but not
    the lock that another one made. The block gets to know whether it has the lock.
    """
    with contextlib.ExitStack() as stack:
        has_lock = True
        try:
            file = stack.enter_context(open(directory / LOCK, "r+b", buffering=0, opener=_open_for_lock))
            _share(file, directory)
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError as error:
            if isinstance(error, PermissionError) and (directory / LOCK).exists() and os.access(directory, os.W_OK):
                remedy = f"its owner can share it with `chmod a+rw {directory / LOCK}`"
                raise UserError(f"cannot lock {directory}: {first_line(error)}; {remedy}") from None
            if required:
                remedy = "do it where the folder can be written and files can be locked"
                raise UserError(f"cannot lock {directory}: {first_line(error)}; {remedy}") from None
            has_lock = False
        yield has_lock


def sweep(folders: Iterable[Path], names: str = "*", age: float = ABANDONED) -> None:
    """Deletes the temporary files and folders that killed writers left in `folders` `age` seconds ago or earlier.

    Only those that `names` matches, a pattern without the dot and the ending. Files are locked by their writers. So
    whoever knows that nobody writes a folder may choose the age 0.
    """
    for folder in folders:
        for path in folder.glob(f".{names}{TEMPORARY}"):
            with contextlib.suppress(OSError):  # another sweep was faster, or this user may not: it can wait
                if time.time() - path.lstat().st_mtime < age:
                    continue
                if path.is_symlink():
                    path.unlink()
                    continue
                if path.is_dir():  # a SavedModel, which takes seconds to write
                    shutil.rmtree(path)
                    continue
                with open(path, "r+b", buffering=0, opener=_open_for_lock) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a writer at work holds the lock
                    path.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def _share(lock: IO[bytes], directory: Path) -> None:
    """Lets everybody who may write the folder lock it, whatever this user's umask says."""
    folder, status = os.stat(directory), os.fstat(lock.fileno())
    if status.st_uid != os.geteuid():
        return
    with contextlib.suppress(OSError):  # a file system without permissions, or a group that is not this user's
        if status.st_gid != folder.st_gid:
            os.fchown(lock.fileno(), -1, folder.st_gid)
    wanted = 0o600
    for write, both in ((stat.S_IWGRP, 0o060), (stat.S_IWOTH, 0o006)):
        wanted |= both if folder.st_mode & write else 0
    if stat.S_IMODE(status.st_mode) != wanted:
        with contextlib.suppress(OSError):
            os.fchmod(lock.fileno(), wanted)


def _open_for_lock(path: str, _: int) -> int:
    """Opens the file itself, not what a link leads to, and does not wait for the other end of a pipe.

    For reading and writing: NFS grants shared locks only on files open for reading, exclusive ones only for writing.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
