"""The disk fills up, the permission goes, the folder disappears: one line, and nothing committed is lost."""

import os
import re
import shutil
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

import cache
from cache import layout, shard, verify
from extract.run import extract
from extract.settings import Settings
from tests.interrupted import Child, Step, die
from tests.pictures import make_folder
from tests.trouble import chmod, error_line, fill_up, limit_files, lose_shards, make_room, obey_permissions, remount

pytestmark = pytest.mark.usefixtures("loaded_once")  # in this process; children load it themselves
PHOTOS = 12  # readable ones
CHOICES = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "batch_size": 2}


@dataclass(frozen=True)
class Moment:
    """When something happens to an extraction."""

    step: Step
    committed: int  # bottlenecks that are committed then
    start: str = "backbone"  # what the cache holds when the extraction starts, see `Extractions`


@dataclass(frozen=True)
class Extractions:
    """Extractions of one folder of photos, and caches that they start with.

    "nothing": none; "backbone": the backbone alone; "bottlenecks": all of them, but neither the list of rejected
    photos nor the index. From there an extraction needs no TensorFlow.
    """

    photos: Path
    module: str
    starts: dict[str, Path | None]

    def start(self, cache_dir, moment, then, *, first=bool):
        """Starts one that something happens to."""
        if self.starts[moment.start]:
            shutil.copytree(self.starts[moment.start], cache_dir)
        return self.start_in(cache_dir, moment.step, then, first=first)

    def start_in(self, cache_dir, step, then, *, first=bool):
        choices = {"image_dir": self.photos, "cache_dir": cache_dir, "module": self.module} | CHOICES
        return Child("extract", [f"--{name}={value}" for name, value in choices.items()], step, then, first=first)

    def finish(self, cache_dir, committed):
        """Checks what one left in a cache_dir, and that the next goes on from there."""
        for directory in cache_dir.iterdir():
            assert verify.find(directory) == []
        assert not list(cache_dir.rglob("*.tmp"))
        shards = [path for path in cache_dir.glob("*/shards/*") if layout.is_committed_name(path.name)]
        assert sum(len(shard.read(path)) for path in shards) == committed
        result = extract(Settings(str(self.photos), str(cache_dir), self.module, **CHOICES))
        assert (result.computed, result.reused) == (PHOTOS - committed, committed)
        assert len(cache.open(cache_dir)) == PHOTOS
        assert verify.find(result.directory) == []


@pytest.fixture(scope="module")
def extractions(tmp_path_factory, module, loaded):
    folder = tmp_path_factory.mktemp("disk")
    photos = make_folder(folder / "photos", {"a": PHOTOS - 5, "b": 5})
    os.mkfifo(photos / "a" / "broken.jpg")  # no file: it is rejected without TensorFlow
    starts = {"nothing": None, "backbone": loaded[1], "bottlenecks": folder / "bottlenecks"}
    extractions = Extractions(photos, module, starts)
    shutil.copytree(loaded[1], folder / "bottlenecks")
    killed = extractions.start_in(folder / "bottlenecks", Step("before", "open", "rejected"), die)
    assert killed.wait()[0] == -signal.SIGKILL
    for left in (folder / "bottlenecks").rglob("*.tmp"):
        left.unlink()
    return extractions


AT_THE_INDEX = Moment(Step("before", "open", "index"), PHOTOS, "bottlenecks")
MOMENTS = {
    "a new shard": Moment(Step("before", "open", "shard", 3), 4),
    "the writing of a shard": Moment(Step("before", "write", "shard", 3), 4),
    "the list of rejected photos": Moment(Step("before", "open", "rejected"), PHOTOS, "bottlenecks"),
    "the index": AT_THE_INDEX,
    "the index of a whole extraction": replace(AT_THE_INDEX, start="nothing"),
    "the writing of the index": Moment(Step("before", "write", "index"), PHOTOS, "bottlenecks"),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_an_extraction_whose_disk_fills_up(disk, extractions, moment):
    line = error_line(extractions.start(disk / "cache", moment, partial(fill_up, disk)))
    assert "No space left on device" in line
    assert "free some space" in line
    make_room(disk)
    extractions.finish(disk / "cache", moment.committed)


def test_an_extraction_that_begins_on_a_full_disk(disk, extractions):
    moment = Moment(Step("before", "open", "shard"), 0, "nothing")  # which it does not reach
    line = error_line(extractions.start(disk / "cache", moment, bool, first=partial(fill_up, disk)))
    assert "cannot write" in line
    make_room(disk)
    extractions.finish(disk / "cache", moment.committed)


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_an_extraction_whose_files_may_not_grow(tmp_path, extractions, moment):
    line = error_line(extractions.start(tmp_path / "cache", moment, partial(limit_files, 16)))
    assert "File too large" in line
    extractions.finish(tmp_path / "cache", moment.committed)


def test_an_extraction_whose_disk_becomes_read_only(disk, extractions):
    moment = MOMENTS["a new shard"]  # later a lock is open, and a disk with open files is not remounted
    line = error_line(extractions.start(disk / "cache", moment, partial(remount, disk, "ro")))
    assert "Read-only file system" in line
    remount(disk, "rw")
    extractions.finish(disk / "cache", moment.committed)


RENAMING_A_SHARD = Moment(Step("before", "replace", "shard", 3), 4)
BETWEEN = Moment(Step("after", "fsync", "folder of shards", PHOTOS // 2), PHOTOS)
MOMENTS_OF_NAMES = {
    "the backbone": Moment(Step("before", "rename", "backbone"), 0, "nothing"),
    "a new shard": MOMENTS["a new shard"],
    "the list of rejected photos": MOMENTS["the list of rejected photos"],
    "the index": AT_THE_INDEX,
    "the renaming of a shard": RENAMING_A_SHARD,
    "between the last shard and the index": BETWEEN,
    "the renaming of the index": Moment(Step("before", "replace", "index"), PHOTOS, "bottlenecks"),
}


@pytest.mark.parametrize("mode", [0o500, 0], ids=oct)
@pytest.mark.parametrize("moment", MOMENTS_OF_NAMES.values(), ids=MOMENTS_OF_NAMES)
def test_an_extraction_whose_permission_goes(tmp_path, extractions, moment, mode):
    cache_dir = tmp_path / "cache"
    line = error_line(extractions.start(cache_dir, moment, partial(chmod, cache_dir, mode), first=obey_permissions))
    assert "Permission denied" in line
    assert str(cache_dir) in line
    chmod(cache_dir, 0o700)
    for left in cache_dir.rglob("*.tmp"):  # it had no permission to delete them
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    extractions.finish(cache_dir, moment.committed)


@pytest.mark.parametrize("moment", MOMENTS_OF_NAMES.values(), ids=MOMENTS_OF_NAMES)
def test_an_extraction_whose_folder_disappears(tmp_path, extractions, moment):
    cache_dir = tmp_path / "cache"
    line = error_line(extractions.start(cache_dir, moment, partial(shutil.rmtree, cache_dir)))
    assert re.search(r"No such file or directory|are gone", line)
    assert str(cache_dir) in line
    assert not cache_dir.exists()  # so that the next extraction is a first one


@pytest.mark.parametrize("moment", [RENAMING_A_SHARD, BETWEEN], ids=["the renaming of a shard", "after the last shard"])
def test_an_extraction_whose_shards_disappear(tmp_path, extractions, moment):
    line = error_line(extractions.start(tmp_path / "cache", moment, partial(lose_shards, tmp_path / "cache")))
    assert re.search(r"No such file or directory|are gone", line)
    extractions.finish(tmp_path / "cache", committed=0)
