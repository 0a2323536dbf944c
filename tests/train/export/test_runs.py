"""The classifier that a training writes is one thing: the former or the new one, whole, whatever happens."""

import errno
import fcntl
import itertools
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from cache import console, files
from cache.errors import UserError
from tests import small_cache
from tests.interrupted import Child, Step, watched
from tests.nursery import nursing
from tests.processes import command, run
from tests.train.runs import publish_files, quick
from train import predict
from train import run as training
from train.export import runs

LONG = bool(os.environ.get("LONG"))
NAMES = ["labels.txt", "head.h5", "metrics.json", "report.html", "saved_model"]


def flags_of(cache_dir, out):
    """A training that takes a moment."""
    return ["--cache_dir", cache_dir, "--output_dir", out, "--solver", "sgd", "--how_many_training_steps", 5]


def tree(folder):
    """The files below a folder, and what each holds."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def classifier(out):
    """The classifier that whoever looks into an output_dir finds, file by file. None if there is none."""
    folder = runs.newest(out) or out
    names = [name for name in NAMES if (folder / name).exists()]
    return {path: content for path, content in tree(folder).items() if path.parts[0] in names} if names else None


def publish(out, text):
    with runs.publishing(out) as folder:
        (folder / "saved_model").mkdir()
        (folder / "saved_model" / "file").write_text(text)


def published(out):
    return (runs.newest(out) / "saved_model" / "file").read_text()


def left_in(out):
    """What lies in an output_dir beside the logs, and what in `runs` beside the lock."""
    names = {path.name for path in out.iterdir()} - {"logs"}
    return names, {path.name for path in (out / "runs").iterdir()} - {".lock"}


def assert_tidy(out, *more):
    """There is one run, the link leads to it, and beside it there are only the names of `more`."""
    names, inside = left_in(out)
    assert names == {"latest", "runs", *more}
    assert inside == {(out / "latest").resolve().name}


# --- killed ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starts(cache_dir, tmp_path_factory):
    """What an output_dir may hold when a training starts: nothing, a classifier, or one of an earlier version."""
    root = tmp_path_factory.mktemp("starts")
    (root / "nothing").mkdir()
    training.train(quick(cache_dir, root / "a classifier"))
    shutil.rmtree(root / "a classifier" / "logs")
    earlier = Path(shutil.copytree(root / "a classifier" / "latest", root / "one of an earlier version"))
    (earlier / "classifier_int8.tflite").write_text("of an earlier version")
    (earlier / ".saved_model.0123abcd.tmp").mkdir()
    (earlier / "notes.txt").write_text("of the user")
    (earlier / "runs" / "exp1").mkdir(parents=True)
    return root


def train_and_copy(cache_dir, out, copies):
    """Trains, and copies the output_dir at each step: what is on the disk then is there if the step kills it."""
    last, copying = None, False

    def copy(*_):
        nonlocal last, copying
        if copying or not out.exists():
            return
        copying = True
        found = sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in out.rglob("*"))
        if found != last:
            number = len(list(copies.iterdir()))
            shutil.copytree(out, copies / f"{number:04}", symlinks=True, ignore=shutil.ignore_patterns("logs"))
        last, copying = found, False

    with watched(copy):
        return command("train", flags_of(cache_dir, out))


@pytest.mark.parametrize("start", ["nothing", "a classifier", "one of an earlier version"])
def test_at_every_step_there_is_the_former_classifier_or_the_new_one_whole(cache_dir, starts, tmp_path, start):
    out = Path(shutil.copytree(starts / start, tmp_path / "out", symlinks=True))
    (tmp_path / "copies").mkdir()
    former = classifier(out)
    done = run(train_and_copy, cache_dir, out, tmp_path / "copies")
    assert done.returncode == 0, done.stderr
    new = classifier(out)
    assert {path.parts[0] for path in new} == set(NAMES)
    assert new != former
    users = {"notes.txt"} if start == "one of an earlier version" else set()
    found = []
    for copy in sorted((tmp_path / "copies").iterdir()):
        state = classifier(copy)
        assert state in (former, new), copy
        found.append(state == new)
        assert all((copy / name).exists() for name in users)
        publish(copy, "the next training")
        assert published(copy) == "the next training"
        if users:
            (copy / "runs" / "exp1").rmdir()
        assert_tidy(copy, *users)
    assert found == sorted(found), "there is no way back from the new one"
    assert found.count(False) > 10
    assert found.count(True) >= 2


def around(call, kind, which=1):
    return [Step(moment, call, kind, which) for moment in ("before", "after")]


# Steps at which a kill leaves the former classifier, and those at which it leaves the new one. The second run that is
# renamed is the former one, which is then deleted, file by file.
FORMER = [*around("rename", "run"), *around("symlink", "link"), Step("before", "replace", "link")]
NEW = [Step("after", "replace", "link"), *around("rename", "run", 2)]
NEW += [Step("after", "unlink", "other", which) for which in range(1, 9)]
KILLS = FORMER + NEW if LONG else [FORMER[1], NEW[0], NEW[2]]


@pytest.mark.parametrize("step", KILLS, ids=str)
def test_the_training_after_a_killed_one_sweeps_up(cache_dir, starts, tmp_path, step):
    out = Path(shutil.copytree(starts / "a classifier", tmp_path / "out", symlinks=True))
    former = classifier(out)
    status, errors = Child("train", flags_of(cache_dir, out), step).wait()
    assert status == -signal.SIGKILL, errors
    killed = classifier(out)
    assert (killed == former) == (step in FORMER)
    assert len(killed) == len(former)
    status, errors = Child("train", flags_of(cache_dir, out)).wait()
    assert status == 0, errors
    assert_tidy(out)
    assert classifier(out) not in (former, killed)  # metrics.json has the seconds
    assert len(classifier(out)) == len(former)


def test_whenever_a_classifier_is_published_a_kill_leaves_the_former_or_the_new_one(tmp_path):
    """Every moment of it, not of what TensorFlow writes into the folder before."""
    publish_files(start := tmp_path / "start")
    for path in start.rglob("*"):
        if path.is_file():
            path.write_text("former")
    former = classifier(start)
    found = []
    with nursing() as nursery:
        publish_files(whole := Path(shutil.copytree(start, tmp_path / "whole", symlinks=True)))
        new = classifier(whole)
        moments = nursery.moments(publish_files, Path(shutil.copytree(start, tmp_path / "count", symlinks=True)))
        assert moments > 30
        for moment in range(1, moments + 1, 1 if LONG else 4):
            out = Path(shutil.copytree(start, tmp_path / str(moment), symlinks=True))
            assert nursery.is_killed(moment, publish_files, out)
            assert classifier(out) in (former, new)
            found.append(classifier(out) == new)
            publish_files(out)
            assert classifier(out) == new
            assert_tidy(out)
    assert found == sorted(found), "there is no way back from the new one"
    assert found.count(True) >= 2


@pytest.mark.skipif(not LONG, reason="takes minutes")
@pytest.mark.parametrize("part", range(16))
def test_the_training_after_one_that_was_killed_at_any_moment_sweeps_up(cache_dir, starts, tmp_path, part):
    for moment in itertools.count(1 + part, 16):
        out = Path(shutil.copytree(starts / "a classifier", tmp_path / str(moment), symlinks=True))
        former = classifier(out)
        status, errors = Child("train", flags_of(cache_dir, out), moment).wait()
        assert status in (0, -signal.SIGKILL), errors
        killed = classifier(out)
        assert killed.keys() == former.keys()
        if status == 0:
            break
        status, errors = Child("train", flags_of(cache_dir, out)).wait()
        assert status == 0, errors
        assert_tidy(out)
        assert classifier(out) not in (former, killed)  # metrics.json has the seconds
        assert len(classifier(out)) == len(former)


def wait_for(path):
    ends = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < ends, f"{path} does not come"
        time.sleep(0.01)


def say_and_wait(said, awaited):
    said.touch()
    wait_for(awaited)


def test_of_two_trainings_at_once_one_waits_and_wins(cache_dir, starts, tmp_path):
    out = Path(shutil.copytree(starts / "a classifier", tmp_path / "out", symlinks=True))
    former, ready, go, arrived = classifier(out), *(tmp_path / name for name in ("ready", "go", "arrived"))
    first = Child("train", flags_of(cache_dir, out), Step("before", "rename", "run"), partial(say_and_wait, ready, go))
    wait_for(ready)
    at_the_lock = Step("after", "fsync", "folder above")
    second = Child("train", flags_of(cache_dir, out), at_the_lock, arrived.touch)
    wait_for(arrived)
    assert classifier(out) == former
    go.touch()
    for child in (first, second):
        status, errors = child.wait()
        assert status == 0, errors
    assert_tidy(out)
    assert len(classifier(out)) == len(former)


# --- file systems without links or locks ------------------------------------------------------------------------


def refuse(number):
    def call(*_):
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_where_there_are_no_links_the_last_run_is_the_newest(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "symlink", refuse(number))
    for text in ("first", "second"):
        publish(tmp_path, text)
        assert published(tmp_path) == text
        names, inside = left_in(tmp_path)
        assert names == {"runs"}
        assert inside == {runs.newest(tmp_path).name}


def test_a_training_without_links_says_where_its_classifier_is(cache_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "symlink", refuse(errno.EPERM))
    assert command("train", flags_of(cache_dir, tmp_path / "out")) == 0
    [place] = (tmp_path / "out" / "runs").glob("2*")
    assert f"; in {place}: saved_model/, labels.txt, head.h5, metrics.json, report.html\n" in capsys.readouterr().out
    photo = next((cache_dir.parent / "photos").rglob("*.png"))
    assert console.run(predict.main, ["--model", str(tmp_path / "out"), str(photo)]) == 0
    assert small_cache.LABELS[0] in capsys.readouterr().out


def test_a_link_that_cannot_be_made_for_another_reason_is_an_error(tmp_path, monkeypatch):
    publish(tmp_path, "former")
    monkeypatch.setattr(os, "symlink", refuse(errno.ENOSPC))
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/latest: No space left"):
        publish(tmp_path, "new")
    assert published(tmp_path) == "former"


def test_without_locks_nothing_that_another_training_writes_is_deleted(tmp_path, monkeypatch):
    publish(tmp_path, "former")
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with runs.publishing(tmp_path) as mine:
        (mine / "saved_model").mkdir()
        publish(tmp_path, "of another training, which began later and ended sooner")
        assert mine.exists()
        (mine / "saved_model" / "file").write_text("mine")
    assert published(tmp_path) == "mine"
    publish(tmp_path, "the next")
    assert_tidy(tmp_path)


# --- what lies in the folder ------------------------------------------------------------------------------------


def test_a_training_that_fails_leaves_the_former_classifier(tmp_path):
    publish(tmp_path, "former")
    with pytest.raises(KeyboardInterrupt), runs.publishing(tmp_path) as folder:
        (folder / "saved_model").mkdir()
        raise KeyboardInterrupt
    assert published(tmp_path) == "former"
    assert_tidy(tmp_path)


def test_all_of_a_run_is_on_disk_before_it_is_the_latest(cache_dir, tmp_path, monkeypatch):
    flushed, fsync, replace = set(), os.fsync, os.replace

    def watched_replace(source, target):
        if Path(target).name == "latest":
            [run] = (tmp_path / "runs").glob("2*")
            expected = [run, run.parent, *run.rglob("*"), tmp_path]
            assert {path.stat().st_ino for path in expected} <= flushed
            flushed.clear()
        replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda file: flushed.add(os.fstat(file).st_ino) or fsync(file))
    monkeypatch.setattr(os, "replace", watched_replace)
    training.train(quick(cache_dir, tmp_path, how_many_training_steps=5, frozen_graph=True))
    assert tmp_path.stat().st_ino in flushed, "the link itself is on disk as well"


def test_what_killed_trainings_left_is_swept_and_what_is_the_users_is_not(tmp_path):
    left = [".latest", ".saved_model", ".labels.txt", ".metrics.json", ".report.html", ".frozen_graph.pb"]
    left += [".classifier_int8.tflite", "runs/.2026-11-29T03-05-12.123456Z"]
    for name in left:
        files.write(tmp_path / f"{name}.0123abcd.tmp" / "file", b"half")
    users = [".thesis.0123abcd.tmp", "runs/.exp.0123abcd.tmp", "runs/exp1/weights", "metrics.json", "labels.txt"]
    users += ["runs/2026-11-29"]
    for name in users:
        files.write(tmp_path / name, b"of the user")
    publish(tmp_path, "new")
    assert not [path for name in left for path in tmp_path.glob(f"{name}.*.tmp")]
    assert all((tmp_path / name).read_bytes() == b"of the user" for name in users)


def test_what_an_interrupted_training_is_saving_is_not_swept(cache_dir, tmp_path):
    dead = tmp_path / ".interrupted.npz.0123abcd.tmp"
    dead.write_text("half")
    with files.replacing(tmp_path / "interrupted.npz") as file:
        training.train(quick(cache_dir, tmp_path, how_many_training_steps=5))
        assert Path(file.name).exists()
    assert not dead.exists()
    assert (tmp_path / "interrupted.npz").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_has_the_name_of_the_link_and_is_the_users_stays(tmp_path, kind):
    latest = tmp_path / "latest"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        latest.symlink_to("elsewhere")
    else:
        files.write(latest / "file" if kind == "folder" else latest, b"of the user")
    before = os.lstat(latest)
    publish(tmp_path, "new")
    assert os.lstat(latest).st_ino == before.st_ino
    assert kind == "link" or "of the user" in {path.read_text() for path in (latest, latest / "file") if path.is_file()}
    assert published(tmp_path) == "new"


def test_a_copy_of_the_latest_run_makes_room_for_the_link(starts, tmp_path):
    out = Path(shutil.copytree(starts / "a classifier", tmp_path / "out"))
    assert not (out / "latest").is_symlink()
    publish(out, "new")
    assert published(out) == "new"
    assert_tidy(out)


def test_a_saved_model_of_the_users_stays(starts, tmp_path):
    out = Path(shutil.copytree(starts / "a classifier" / "latest", tmp_path / "out"))
    (out / "saved_model" / "thesis.txt").write_text("ten years of work")
    publish(out, "new")
    assert (out / "saved_model" / "thesis.txt").exists()
    assert published(out) == "new"


def test_a_clock_that_was_set_back_does_not_bring_the_former_run_back(tmp_path):
    publish(tmp_path, "former")
    [former] = (tmp_path / "runs").glob("2*")
    former.rename(former.with_name("2999-01-01T00-00-00.000000Z"))
    publish(tmp_path, "new")
    assert published(tmp_path) == "new"
    assert_tidy(tmp_path)
