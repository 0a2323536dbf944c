"""Files and folders that appear whole or not at all, locks, and what killed writers leave behind."""

import errno
import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache import files
from cache.errors import CacheError, UserError
from tests.processes import REPO


def tree(folder):
    """The files below a folder, hidden ones too, and what each holds."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def synced(monkeypatch):
    """A list that fills with the paths that were flushed to disk."""
    paths, fsync = [], os.fsync

    def watched(descriptor):
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return paths


# --- replacing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "before"])
def test_a_file_appears_at_the_end_of_the_block(tmp_path, before):
    path = tmp_path / "file"
    if before:
        path.write_text(before)
    with files.replacing(path) as file:
        file.write(b"after")
        file.flush()
        assert (path.read_text() if path.exists() else None) == before
    assert tree(tmp_path) == {"file": "after"}


def test_a_file_is_on_disk_before_it_has_its_name_and_its_folder_after_that(tmp_path, synced, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: synced.append(paths[1]) or replace(*paths))
    with files.replacing(tmp_path / "file") as file:
        file.write(b"content")
    temporary, renamed, folder = synced
    assert temporary.name.endswith(files.TEMPORARY)
    assert (renamed, folder) == (tmp_path / "file", tmp_path)


def refuse_sync(monkeypatch, of_kind, number):
    """Makes fsync of every folder or every file fail with the error `number`."""
    fsync = os.fsync

    def refusing(descriptor):
        if of_kind(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS])
def test_a_file_system_that_cannot_flush_folders_is_written_to(tmp_path, monkeypatch, number):
    refuse_sync(monkeypatch, stat.S_ISDIR, number)
    files.write(tmp_path / "folder" / "file", b"content")
    for content in ("first", "second"):
        with files.replacing_folder(tmp_path / "whole") as folder:
            (folder / "below").mkdir()
            (folder / "below" / "file").write_text(content)
    assert tree(tmp_path) == {"folder/file": "content", "whole/below/file": "second"}


@pytest.mark.parametrize(("of_kind", "number"), [(stat.S_ISDIR, errno.EIO), (stat.S_ISREG, errno.EINVAL)])
def test_a_disk_that_fails_to_flush_is_an_error(tmp_path, monkeypatch, of_kind, number):
    refuse_sync(monkeypatch, of_kind, number)
    with pytest.raises(UserError, match=os.strerror(number)):
        files.write(tmp_path / "file", b"content")
    with pytest.raises(UserError, match=os.strerror(number)), files.replacing_folder(tmp_path / "whole") as folder:
        (folder / "file").write_text("content")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_block_that_fails_leaves_the_former_file(tmp_path, error):
    (tmp_path / "file").write_text("before")
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), files.replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    assert tree(tmp_path) == {"file": "before"}


def test_a_file_cannot_replace_a_folder(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*file: Is a directory"), files.replacing(tmp_path / "file"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_in_a_folder_that_vanishes_is_not_written(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    expected = f"cannot write {folder / 'file'}: No such file or directory; its folder was moved or deleted, and run"
    with pytest.raises(UserError, match=re.escape(expected)), files.replacing(folder / "file"):
        shutil.rmtree(folder)
    assert list(tmp_path.iterdir()) == []


def test_write_makes_the_folder_and_writes_all(tmp_path):
    files.write(tmp_path / "a" / "b" / "file", b"content")
    assert tree(tmp_path) == {"a/b/file": "content"}


def test_write_names_the_file_that_stands_where_its_folder_should(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*a/file: "):
        files.write(tmp_path / "a" / "file", b"content")
    assert tree(tmp_path) == {"a": "a file"}


# --- replacing_folder ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [None, "b"])
@pytest.mark.parametrize("before", [None, {}, {"a": "before", "c/d": "before"}])
def test_a_folder_appears_at_the_end_of_the_block(tmp_path, before, keep):
    folder = tmp_path / "new" / "folder"
    for name, content in (before or {}).items():
        files.write(folder / name, content.encode())
    if before == {}:
        folder.mkdir(parents=True)
    with files.replacing_folder(folder, keep) as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "a").write_text("after")
        files.write(temporary / "b" / "e", b"after")
        assert folder.exists() == (before is not None)
        assert not folder.exists() or tree(folder) == before
    assert tree(tmp_path) == {"new/folder/a": "after", "new/folder/b/e": "after"}
    assert list((tmp_path / "new").iterdir()) == [folder]


def test_a_folder_that_another_process_has_made_meanwhile_stays(tmp_path):
    folder = tmp_path / "folder"
    with files.replacing_folder(folder, keep="model") as temporary:
        (temporary / "model").write_text("ours")
        files.write(folder / "model", b"theirs")
    assert tree(tmp_path) == {"folder/model": "theirs"}
    assert list(tmp_path.iterdir()) == [folder]


def test_all_of_a_folder_is_on_disk_before_it_has_its_name(tmp_path, synced, monkeypatch):
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda *paths: synced.append("rename") or rename(*paths))
    with files.replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "a").mkdir()
        (temporary / "a" / "b").write_text("content")
    place = synced.index("rename")
    assert {temporary, temporary / "a", temporary / "a" / "b"} <= set(synced[:place])
    assert synced[place + 1 :] == [tmp_path]


def test_a_relative_folder_is_the_one_that_it_was_at_the_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with files.replacing_folder(Path("folder")) as temporary:
        monkeypatch.chdir(tmp_path / "elsewhere")
        (temporary / "a").write_text("content")
    assert tree(tmp_path) == {"folder/a": "content"}


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_block_that_fails_leaves_the_former_folder(tmp_path, error):
    files.write(tmp_path / "folder" / "a", b"before")
    expected = UserError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), files.replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "a").write_text("half")
        raise error
    assert tree(tmp_path) == {"folder/a": "before"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_folder_that_cannot_get_its_name_leaves_the_former_one(tmp_path, monkeypatch):
    files.write(tmp_path / "folder" / "a", b"before")
    rename, calls = os.rename, []

    def second_fails(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(*paths)

    monkeypatch.setattr(os, "rename", second_fails)
    with (
        pytest.raises(UserError, match=r"cannot write .*folder: Input/output error"),
        files.replacing_folder(tmp_path / "folder") as temporary,
    ):
        (temporary / "a").write_text("after")
    assert tree(tmp_path) == {"folder/a": "before"}
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


# --- writing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; free some space or choose another folder, and run again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/some/path"),
            "Permission denied; free some space or choose another folder, and run again",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory"),
            "No such file or directory; its folder was moved or deleted, and run again",
        ),
        (OSError(), "OSError; free some space or choose another folder, and run again"),
    ],
)
def test_a_refusal_of_the_system_is_reported_in_one_line(error, message):
    with pytest.raises(UserError) as caught, files.writing(Path("/place")):
        raise error
    assert str(caught.value) == f"cannot write /place: {message}"


@pytest.mark.parametrize(
    ("name", "is_refusal"),
    [
        ("ResourceExhaustedError", True),  # a full disk
        ("PermissionDeniedError", True),
        ("NotFoundError", True),  # its folder is gone
        ("OutOfRangeError", True),  # a limit on the size of files
        ("InvalidArgumentError", False),
    ],
)
def test_tensorflows_words_for_a_refusal_are_understood(name, is_refusal):
    tf = pytest.importorskip("tensorflow")
    error = getattr(tf.errors, name)(None, None, "Graph execution error:\n\nthe reason\nmore of it")
    with pytest.raises(UserError if is_refusal else type(error)) as caught, files.writing(Path("/place")):
        raise error
    if is_refusal:
        assert str(caught.value).startswith("cannot write /place: the reason; ")


@pytest.mark.parametrize("error", [ValueError("a bug"), UserError("already in plain words"), KeyboardInterrupt()])
def test_what_is_no_refusal_passes_unchanged(error):
    with pytest.raises(type(error)) as caught, files.writing(Path("/place")):
        raise error
    assert caught.value is error


# --- delete, make_writable, what is no file of the folder --------------------------------------------------------


@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "link to a folder", "dangling link"])
def test_delete_leaves_nothing_and_follows_no_link(tmp_path, kind):
    path, target = tmp_path / "here" / "it", tmp_path / "target"
    path.parent.mkdir()
    files.write(target / "file", b"content")
    if kind == "file":
        path.write_text("content")
    elif kind == "folder":
        files.write(path / "folder" / "file", b"content")
    elif kind != "nothing":
        path.symlink_to(target if kind == "link to a folder" else tmp_path / "nowhere")
    files.delete(path)
    assert list(path.parent.iterdir()) == []
    assert tree(target) == {"file": "content"}


def test_a_folder_disappears_at_once_when_it_is_deleted(tmp_path, monkeypatch):
    """Killed amid the deletion, it leaves what the next sweep takes away, and never half a cache."""
    files.write(tmp_path / "folder" / "file", b"content")
    monkeypatch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
    files.delete(tmp_path / "folder")
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".")
    monkeypatch.undo()
    os.utime(left, (0, 0))
    files.sweep([tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_make_writable_makes_the_folder_or_names_the_flag(tmp_path):
    files.make_writable(tmp_path / "a" / "b", "--output_dir")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/c: Not a directory; choose another --output_dir"):
        files.make_writable(tmp_path / "file" / "c", "--output_dir")


def test_only_a_regular_file_of_the_folder_itself_is_one(tmp_path):
    (tmp_path / "file").write_text("content")
    files.check_regular(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ""):
        with pytest.raises(CacheError, match="is a link or no regular file"):
            files.check_regular(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.check_regular(tmp_path / "nothing")


# --- locks -----------------------------------------------------------------------------------------------------


def can_lock(folder, how):
    """Whether another process could take the lock of a folder now."""
    script = f"import fcntl; fcntl.flock(open({str(folder / files.LOCK)!r}, 'r+b'), fcntl.{how} | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", script], cwd=REPO, stderr=subprocess.DEVNULL).returncode == 0


def test_a_lock_keeps_others_out_and_a_shared_one_only_those_who_want_it_alone(tmp_path):
    with files.locked(tmp_path):
        assert not can_lock(tmp_path, "LOCK_SH")
    with files.locked(tmp_path, shared=True):
        assert can_lock(tmp_path, "LOCK_SH")
        assert not can_lock(tmp_path, "LOCK_EX")
    assert can_lock(tmp_path, "LOCK_EX")


def test_a_lock_is_open_for_reading_and_writing(tmp_path):
    """NFS gives shared locks only on files open for reading, and exclusive ones only on files open for writing."""
    with files.locked(tmp_path, shared=True):
        [held] = [fd for fd in Path("/proc/self/fd").iterdir() if os.path.realpath(fd) == str(tmp_path / files.LOCK)]
        assert fcntl.fcntl(int(held.name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


@pytest.mark.parametrize("required", [False, True])
def test_a_folder_without_locks_stops_only_those_who_need_one(tmp_path, monkeypatch, required):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    if required:
        with pytest.raises(UserError, match=r"cannot lock .*: No locks"), files.locked(tmp_path, required=True):
            pass
    else:
        ran = False
        with files.locked(tmp_path):
            ran = True
        assert ran


# --- sweep -----------------------------------------------------------------------------------------------------


def test_only_what_an_hour_ago_was_being_written_is_swept(tmp_path):
    old, new, other, folder, locked = (
        tmp_path / name for name in (".old.tmp", ".new.tmp", "file.tmp", ".folder.tmp", ".locked.tmp")
    )
    for path in (old, new, other, locked):
        path.write_text("half")
    files.write(folder / "file", b"half")
    long_ago = time.time() - 2 * 3600
    for path in (old, other, folder, locked):
        os.utime(path, (long_ago, long_ago))
    with locked.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a writer that took long for its last write
        files.sweep([tmp_path])
    assert {path.name for path in tmp_path.iterdir()} == {".new.tmp", "file.tmp", ".locked.tmp"}


def test_a_file_that_is_being_written_is_locked_against_sweeping(tmp_path):
    with files.replacing(tmp_path / "file") as file:
        file.write(b"content")
        file.flush()
        os.utime(file.name, (0, 0))
        files.sweep([tmp_path])
        assert stat.S_ISREG(os.stat(file.name).st_mode)
    assert tree(tmp_path) == {"file": "content"}


def test_a_folder_that_comes_at_the_moment_of_the_rename_is_kept(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", os.rename

    def another_is_faster(source, target):
        if Path(target) == folder and not folder.exists():
            folder.mkdir()
            (folder / "model").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", another_is_faster)
    with files.replacing_folder(folder, keep="model") as temporary:
        (temporary / "model").write_text("ours")
    assert tree(tmp_path) == {"folder/model": "theirs"}
