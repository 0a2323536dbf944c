"""Whatever kills an extraction, a compaction or a repair, what was committed is there and the next run goes on.

Processes are killed with SIGKILL: at each step of a commit, which the process finds for itself, and at random moments.
A hundred of them; hundreds with LONG=1 in the environment, as `make test LONG=1` puts it there.
"""

import itertools
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

import cache
from cache import layout, rejected, shard, verify
from cache.compact import compact
from cache.rejected import Rejected
from cache.repair import repair
from extract.run import Result, extract
from extract.settings import Settings
from tests import processes
from tests.damage import cut_in_last_row, flip, place_of
from tests.interrupted import Child, Step
from tests.pictures import make_folder, write_picture
from tests.random_cache import shard_paths

LONG = bool(os.environ.get("LONG"))
pytestmark = pytest.mark.usefixtures("loaded_once")  # in this process; children load it themselves
CHOICES = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "batch_size": 3}


@dataclass(frozen=True)
class View:
    """All that a cache says of an image_dir."""

    labels: list[str]
    paths: list[str]
    label_ids: list[int]
    vectors: bytes


@dataclass(frozen=True)
class Scene:
    """A folder of photos, a cache from which extractions of it start, and what they end with if nothing kills them."""

    photos: Path
    module: str
    start: Path  # a cache_dir
    view_before: View | None
    view_after: View
    rejected_before: list[Rejected]
    rejected_after: list[Rejected]
    rows: dict[tuple[str, int], bytes]  # by path and mtime, all rows there may ever be
    seconds: float  # that an extraction takes

    def extract(self, cache_dir: Path) -> Result:
        return extract(Settings(str(self.photos), str(cache_dir), self.module, **CHOICES))

    def start_extraction(self, cache_dir: Path, at: Step | None = None) -> Child:
        return start_extraction(self.photos, cache_dir, self.module, at)


def view(cache_dir: Path) -> View | None:
    """What the cache says; None if it says, as it should, that there is nothing yet."""
    try:
        opened = cache.open(cache_dir)
    except cache.CacheError as error:
        assert re.search(r"no cache at|holds no bottlenecks|has not ended; run it again", str(error)), error
        return None
    vectors = opened.bottlenecks(np.arange(len(opened)))
    return View(opened.labels, list(opened.paths), opened.label_ids.tolist(), vectors.tobytes())


def rejected_photos(cache_dir: Path) -> list[Rejected]:
    return [row for directory in layout.directories(cache_dir) for row in rejected.read(directory)]


def rows_of(cache_dir: Path) -> dict[tuple[str, int], bytes]:
    """Every committed row, whether an index uses it or not, with all that belongs to it."""
    contents: dict[tuple[str, int], bytes] = {}
    for directory in layout.directories(cache_dir):
        for path in shard_paths(directory):
            rows = shard.read(path).rows
            for i, name in enumerate(rows.paths):
                columns = [getattr(rows, field.name)[i : i + 1] for field in fields(rows) if field.name != "paths"]
                content = b"".join(column.tobytes() for column in columns)
                assert contents.setdefault((name, int(rows.mtimes[i])), content) == content
    return contents


def start_extraction(photos: Path, cache_dir: Path, module: str, at: Step | None = None) -> Child:
    choices = {"image_dir": photos, "cache_dir": cache_dir, "module": module} | CHOICES
    flags = [f"--{name}={value}" for name, value in choices.items()]
    return Child("extract", flags, at)


def undisturbed(photos: Path, module: str, start: Path) -> Scene:
    """The scene of extractions that start with a copy of `start`."""
    cache_dir = shutil.copytree(start, start.with_name("undisturbed"))
    begin = time.monotonic()
    status, errors = start_extraction(photos, cache_dir, module).wait()
    seconds = time.monotonic() - begin
    assert status == 0, errors
    views = view(start), view(cache_dir)
    lists = rejected_photos(start), rejected_photos(cache_dir)
    return Scene(photos, module, start, *views, *lists, rows_of(cache_dir), seconds)


def do_nothing() -> None:
    """The first process of all waits for the server to import TensorFlow, which is no time of the process's own."""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, module, loaded):
    """Scenes by what their extractions start with.

    "nothing"; "backbone": it alone; "grown": photos came, went, changed and moved since a first extraction; "smaller":
    of two photos one went and one is no file any more, so that an extraction publishes without running TensorFlow.
    """
    processes.run(do_nothing)
    folder = tmp_path_factory.mktemp("new")
    photos = make_folder(folder / "photos", {"daisy": 5, "roses": 6})
    (photos / "daisy" / "broken.jpg").write_text("no image")
    (folder / "nothing").mkdir()
    backbone = undisturbed(photos, module, Path(shutil.copytree(loaded[1], folder / "backbone")))

    smaller_photos = Path(shutil.copytree(photos, folder / "smaller photos"))
    (smaller_photos / "roses" / "001.png").unlink()
    (smaller_photos / "roses" / "002.png").unlink()
    os.mkfifo(smaller_photos / "roses" / "002.png")
    start = folder / "smaller" / "start"
    smaller = undisturbed(smaller_photos, module, Path(shutil.copytree(folder / "undisturbed", start)))

    folder = tmp_path_factory.mktemp("grown")
    photos = Path(shutil.copytree(photos, folder / "photos"))
    shutil.copytree(loaded[1], folder / "start")
    status, errors = start_extraction(photos, folder / "start", module).wait()
    assert status == 0, errors
    make_folder(photos, {"daisy": 2, "tulips": 3}, first_seed=50)  # two of these replace others
    write_picture(photos / "daisy" / "broken.jpg", 60)
    (photos / "roses" / "broken.jpg").write_text("no image either")
    (photos / "roses" / "001.png").unlink()
    (photos / "roses" / "002.png").rename(photos / "daisy" / "moved.png")
    return {
        "nothing": replace(backbone, start=backbone.start.with_name("nothing")),
        "backbone": backbone,
        "smaller": smaller,
        "grown": undisturbed(photos, module, folder / "start"),
    }


WRITING = [  # the steps of writing a file
    *(("before", "open"), ("after", "open")),
    *(("before", "write"), ("amid", "write"), ("after", "write")),
    *(("before", "fsync"), ("after", "fsync")),
    *(("before", "replace"), ("after", "replace")),
]


def commit(kind: str, which: int = 1, flush: int | None = None) -> list[Step]:
    """Every step of writing the `which`th file of a kind; its folder is then flushed for the `flush`th time."""
    folder = "folder of shards" if kind == "shard" else "folder above"
    return [Step(*step, kind, which) for step in WRITING] + around("fsync", folder, flush or which)


def around(call: str, kind: str, *which: int) -> list[Step]:
    return [Step(moment, call, kind, number) for number in which for moment in ("before", "after")]


# The folder above is flushed when the backbone has got its name, and after each list and index.
STEPS = {
    "nothing": around("rename", "backbone", 1),
    "backbone": [
        *commit("shard", 2),
        *(commit("shard", 1) + commit("rejected") + commit("index", flush=2) if LONG else ()),
    ],
    "grown": [
        *around("replace", "rejected", 1),
        *around("replace", "index", 1),
        *(commit("rejected") + commit("index", flush=2) + commit("shard", 2) if LONG else ()),
    ],
    "smaller": [*commit("rejected"), *commit("index", flush=2)],
}


def check_and_finish(scene: Scene, cache_dir: Path) -> None:
    """What has to be true after a kill, and of the run after it."""
    for directory in cache_dir.iterdir():
        assert verify.find(directory) == []
    assert view(cache_dir) in (scene.view_before, scene.view_after)
    assert rejected_photos(cache_dir) in (scene.rejected_before, scene.rejected_after)
    committed = rows_of(cache_dir)
    assert committed.items() <= scene.rows.items()
    result = scene.extract(cache_dir)
    assert result.computed == len(scene.rows) - len(committed)
    assert view(cache_dir) == scene.view_after
    assert rejected_photos(cache_dir) == scene.rejected_after
    assert rows_of(cache_dir) == scene.rows
    assert scene.extract(cache_dir).computed == 0


@pytest.mark.parametrize(("name", "step"), [(name, step) for name in STEPS for step in STEPS[name]], ids=str)
def test_an_extraction_killed_at_a_step_goes_on(tmp_path, scenes, name, step):
    scene = scenes[name]
    cache_dir = Path(shutil.copytree(scene.start, tmp_path / "cache"))
    status, errors = scene.start_extraction(cache_dir, at=step).wait()
    assert status == -signal.SIGKILL, errors
    check_and_finish(scene, cache_dir)


@pytest.mark.parametrize("seed", range(200 if LONG else 10))
def test_an_extraction_killed_at_a_random_moment_goes_on(tmp_path, scenes, seed):
    scene = scenes[("grown", "backbone")[seed % 2]]

    def start(number):
        cache_dir = Path(shutil.copytree(scene.start, tmp_path / f"cache {number}"))
        return scene.start_extraction(cache_dir), cache_dir

    check_and_finish(scene, killed_at_random(start, scene.seconds, seed))


def killed_at_random(start, seconds: float, seed: int):
    """Kills a process that takes about `seconds`.

    `start`, called with a number that is new each time, starts it, and returns it with what this function returns.
    """
    moment = random.Random(seed).random() * seconds
    for number in itertools.count():
        child, subject = start(number)
        time.sleep(moment)
        child.kill()
        if child.wait()[0] == -signal.SIGKILL:
            print(f"seed {seed}: killed {moment:.4f} s after its start")  # shown if the test fails
            return subject
        moment /= 2  # it ended before: it was faster than the one that was timed


@pytest.fixture(scope="module")
def wasteful(scenes, tmp_path_factory):
    """What the grown folder's extraction leaves: small shards, and rows of photos that are gone; and its scene."""
    cache_dir = tmp_path_factory.mktemp("wasteful") / "cache"
    shutil.copytree(scenes["grown"].start, cache_dir)
    scenes["grown"].start_extraction(cache_dir).wait()
    [directory] = layout.directories(cache_dir)
    assert len(layout.shard_names(directory)) > 5
    return directory, scenes["grown"]


def start_on_copy(directory: Path, folder: Path, *arguments: str, at: Step | None = None) -> tuple[Child, Path]:
    """Starts `python -m cache` with these arguments on a copy of `directory` in `folder`. Returns both."""
    copy = Path(shutil.copytree(directory, folder / directory.name))
    return Child("cache", [*arguments, copy], at), copy


def check_and_compact(scene: Scene, directory: Path) -> None:
    """What has to be true after a compaction was killed, and of the one after it."""
    for again in (False, True):
        if again:
            compact(directory)
        assert verify.find(directory) == []
        assert view(directory) == scene.view_after
        assert rows_of(directory).items() <= scene.rows.items()
    opened = cache.open(directory)
    assert layout.shard_names(directory) == [shard.path.name for shard in opened.shards]
    assert len(opened.shards) == 1
    assert len(opened.shards[0]) == len(opened)


# The folder above is flushed for the list of old and new files, and then for the index.
COMPACTING = [
    *commit("shard"),
    *commit("index", flush=2),
    *around("unlink", "shard", 1, 2),
    *around("fsync", "folder of shards", 2),
]


@pytest.mark.parametrize("step", COMPACTING, ids=str)
def test_a_compaction_killed_at_a_step_loses_nothing(tmp_path, wasteful, step):
    directory, scene = wasteful
    child, copy = start_on_copy(directory, tmp_path, "compact", at=step)
    status, errors = child.wait()
    assert status == -signal.SIGKILL, errors
    check_and_compact(scene, copy)


def seconds_of(start) -> float:
    begin = time.monotonic()
    status, errors = start()[0].wait()
    assert status == 0, errors
    return time.monotonic() - begin


@pytest.mark.parametrize("seed", range(100 if LONG else 5))
def test_a_compaction_killed_at_a_random_moment_loses_nothing(tmp_path, wasteful, seed):
    directory, scene = wasteful

    def start(name):
        return start_on_copy(directory, tmp_path / str(name), "compact")

    seconds = seconds_of(lambda: start("undisturbed"))
    check_and_compact(scene, killed_at_random(start, seconds, seed))


@pytest.fixture(scope="module")
def damaged(wasteful, tmp_path_factory):
    """The same with damage of every kind, a repaired copy of that, the rows that are lost, and the scene."""
    directory, scene = wasteful
    copy = Path(shutil.copytree(directory, tmp_path_factory.mktemp("damaged") / directory.name))
    opened = cache.open(copy)
    ids, rows = opened.index.shard_ids.tolist(), opened.index.shard_rows.tolist()
    flipped = next(photo for photo, number in enumerate(ids) if len(opened.shards[number]) == 2)
    last = (photo for photo, number in enumerate(ids) if rows[photo] == len(opened.shards[number]) - 1 > 0)
    cut = next(photo for photo in last if ids[photo] != ids[flipped])
    unlisted = next(photo for photo, number in enumerate(ids) if number not in (ids[flipped], ids[cut]))
    path = opened.shards[ids[flipped]].path
    flip(path, place_of(path, "bottlenecks", rows[flipped]))
    flip(copy / layout.INDEX, place_of(copy / layout.INDEX, "mtimes", unlisted))
    cut_in_last_row(opened.shards[ids[cut]].path)
    (copy / layout.REJECTED).write_text("no table\nat all\n")
    (copy / layout.BACKBONE / "saved_model.pb").write_text("no network")
    damages = verify.find(copy)
    assert [None if damage.rows is None else len(damage.rows) for damage in damages] == [1, 1, 1, None, None]
    lost = {(opened.paths[photo], int(opened.index.mtimes[photo])) for photo in (flipped, cut)}
    assert lost <= scene.rows.keys()
    repaired = Path(shutil.copytree(copy, copy.with_name("repaired")))
    repair(repaired)
    return copy, repaired, lost, scene


def test_an_extraction_after_a_repair_computes_what_was_lost(tmp_path, damaged):
    _, repaired, lost, scene = damaged
    assert rows_of(repaired) == {row: content for row, content in scene.rows.items() if row not in lost}
    assert len(cache.open(repaired)) == len(scene.view_after.paths) - 3
    assert not (repaired / layout.BACKBONE).exists()
    assert not (repaired / layout.REJECTED).exists()
    directory = Path(shutil.copytree(repaired, tmp_path / repaired.name))
    assert scene.extract(directory).computed == len(lost)
    assert rows_of(directory) == scene.rows
    assert view(directory) == scene.view_after
    assert rejected_photos(directory) == scene.rejected_after


def check_and_repair(directory: Path, repaired: Path) -> None:
    """What has to be true of the repair after one that was killed: it ends as if nothing had happened."""
    repair(directory)
    assert verify.find(directory) == []
    assert rows_of(directory) == rows_of(repaired)
    assert view(directory) == view(repaired)
    assert not (directory / layout.BACKBONE).exists()
    assert not (directory / layout.REJECTED).exists()


REPAIRING = [
    *commit("shard", 2),
    *(commit("shard", 1) if LONG else ()),
    *commit("index", flush=2),
    *around("unlink", "shard", 1, 2),
    *around("rename", "backbone", 1),
    *around("unlink", "backbone", 1, 2),
    *around("unlink", "rejected", 1),
]


@pytest.mark.parametrize("step", REPAIRING, ids=str)
def test_a_repair_killed_at_a_step_loses_no_sound_row(tmp_path, damaged, step):
    directory, repaired, _, _ = damaged
    child, copy = start_on_copy(directory, tmp_path, "verify", "--repair", at=step)
    status, errors = child.wait()
    assert status == -signal.SIGKILL, errors
    check_and_repair(copy, repaired)


@pytest.mark.parametrize("seed", range(100 if LONG else 5))
def test_a_repair_killed_at_a_random_moment_loses_no_sound_row(tmp_path, damaged, seed):
    directory, repaired, _, _ = damaged

    def start(name):
        return start_on_copy(directory, tmp_path / str(name), "verify", "--repair")

    seconds = seconds_of(lambda: start("undisturbed"))
    check_and_repair(killed_at_random(start, seconds, seed), repaired)
