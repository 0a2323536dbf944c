"""Whatever kills an extraction, a compaction or a repair, what was committed is there and the next run goes on.

Real runs, killed with SIGKILL: at each step of a commit, which the child finds for itself, and at random moments. A few
dozen of them; hundreds with LONG=1 in the environment, as `make test LONG=1` puts it there.
"""

import itertools
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np
import pytest

import cache
from cache import shard, store, verify
from cache.compact import compact
from extract.run import Result, extract
from extract.settings import Settings
from tests.interrupted import Child, Step
from tests.pictures import make_folder, write_picture

LONG = bool(os.environ.get("LONG"))
CHOICES = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "batch_size": 2}


@dataclass(frozen=True)
class View:
    """All that a cache says of an image_dir."""

    labels: list[str]
    paths: list[str]
    label_ids: list[int]
    vectors: bytes


@dataclass(frozen=True)
class Scene:
    """A folder of photos, a cache from which extractions of it start, and what they come to if nothing disturbs."""

    photos: Path
    module: str
    start: Path  # a cache_dir
    before: View | None
    after: View
    rejected_before: list[store.Rejected]
    rejected_after: list[store.Rejected]
    rows: dict[tuple[str, int], bytes]  # by path and mtime, all there may ever be
    seconds: float  # that an extraction takes

    def extract(self, cache_dir: Path) -> Result:
        return extract(Settings(str(self.photos), str(cache_dir), self.module, **CHOICES))

    def start_extraction(self, cache_dir: Path, at: Step | None = None) -> Child:
        return Child("extract", flags(self.photos, cache_dir, self.module), at)


def view(cache_dir: Path) -> View | None:
    """What the cache says; None where it cleanly says that there is nothing yet."""
    try:
        opened = cache.open(cache_dir)
    except cache.CacheError as error:
        assert re.search(r"no cache at|holds no bottlenecks|has not ended; run it again", str(error)), error
        return None
    vectors = opened.bottlenecks(np.arange(len(opened)))
    return View(opened.labels, list(opened.paths), opened.label_ids.tolist(), vectors.tobytes())


def rejected(cache_dir: Path) -> list[store.Rejected]:
    return [row for directory in store.directories(cache_dir) for row in store.read_rejected(directory)]


def rows_of(cache_dir: Path) -> dict[tuple[str, int], bytes]:
    """Every committed row, whether a view uses it or not, with all that belongs to it."""
    found = {}
    for directory in store.directories(cache_dir):
        for name in store.shard_names(directory):
            rows = shard.read(directory / store.SHARDS / name).rows
            for i, path in enumerate(rows.paths):
                columns = [getattr(rows, field.name)[i : i + 1] for field in fields(rows) if field.name != "paths"]
                content = b"".join(column.tobytes() for column in columns)
                assert found.setdefault((path, int(rows.mtimes[i])), content) == content
    return found


def flags(photos: Path, cache_dir: Path, module: str) -> list[str]:
    choices = {"image_dir": photos, "cache_dir": cache_dir, "module": module} | CHOICES
    return [f"--{name}={value}" for name, value in choices.items()]


def undisturbed(photos: Path, module: str, start: Path) -> Scene:
    """The scene of extractions that start with a copy of `start`."""
    for number in (1, 2):  # the first child of all waits for the server to import TensorFlow
        cache_dir = shutil.copytree(start, start.with_name(f"undisturbed {number}"))
        begin = time.monotonic()
        status, errors = Child("extract", flags(photos, cache_dir, module)).wait()
        seconds = time.monotonic() - begin
        assert status == 0, errors
    before, after = (view(start), view(cache_dir)), (rejected(start), rejected(cache_dir))
    return Scene(photos, module, start, *before, *after, rows_of(cache_dir), seconds)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, module):
    """ "new": nothing is there yet; "grown": photos came, went, changed and moved since a first extraction."""
    folder = tmp_path_factory.mktemp("new")
    photos = make_folder(folder / "photos", {"daisy": 5, "roses": 6})
    (photos / "daisy" / "broken.jpg").write_text("no image")
    (folder / "nothing").mkdir()
    new = undisturbed(photos, module, folder / "nothing")

    folder = tmp_path_factory.mktemp("grown")
    photos = Path(shutil.copytree(photos, folder / "photos"))
    status, errors = Child("extract", flags(photos, folder / "start", module)).wait()
    assert status == 0, errors
    make_folder(photos, {"daisy": 2, "tulips": 3}, first_seed=50)  # two of them in the place of others
    write_picture(photos / "daisy" / "broken.jpg", 60)
    (photos / "roses" / "broken.jpg").write_text("no image either")
    (photos / "roses" / "001.png").unlink()
    (photos / "roses" / "002.png").rename(photos / "daisy" / "moved.png")
    return {"new": new, "grown": undisturbed(photos, module, folder / "start")}


COMMIT = [
    *(Step(moment, "open", "{}") for moment in ("before", "after")),
    *(Step(moment, "write", "{}") for moment in ("before", "amid", "after")),
    *(Step(moment, call, "{}") for call in ("fsync", "replace") for moment in ("before", "after")),
]


def commit(kind: str, which: int = 1, flush: int | None = None) -> list[Step]:
    """Every step of writing the `which`th file of a kind; its folder is then flushed for the `flush`th time."""
    folder = "folder of shards" if kind == "shard" else "folder above"
    flushed = [Step(moment, "fsync", folder, flush or which) for moment in ("before", "after")]
    return [Step(step.moment, step.call, kind, which) for step in COMMIT] + flushed


def around(call: str, kind: str, *which: int) -> list[Step]:
    return [Step(moment, call, kind, number) for number in which for moment in ("before", "after")]


STEPS = {
    "new": [
        *around("replace", "backbone", 1),
        *commit("shard", 2),
        *(commit("shard", 1) + commit("rejected") + commit("index", flush=2) if LONG else ()),
    ],
    "grown": [*commit("rejected"), *commit("index", flush=2), *(commit("shard", 3) if LONG else ())],
}


def check_and_finish(scene: Scene, cache_dir: Path) -> None:
    """What has to be true after a kill, and of the run after it."""
    for directory in cache_dir.iterdir():
        assert verify.find(directory) == []
    assert view(cache_dir) in (scene.before, scene.after)
    assert rejected(cache_dir) in (scene.rejected_before, scene.rejected_after)
    committed = rows_of(cache_dir)
    assert committed.items() <= scene.rows.items()
    result = scene.extract(cache_dir)
    assert result.computed == len(scene.rows) - len(committed)
    assert view(cache_dir) == scene.after
    assert rejected(cache_dir) == scene.rejected_after
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
    scene = scenes["new" if seed % 3 else "grown"]

    def start(number):
        cache_dir = Path(shutil.copytree(scene.start, tmp_path / f"cache {number}"))
        return scene.start_extraction(cache_dir), cache_dir

    check_and_finish(scene, killed_at_random(start, scene.seconds, seed))


def killed_at_random(start, seconds: float, seed: int):
    """Kills a child that takes about as long; what `start`, given a number that it did not have yet, says of it."""
    moment = random.Random(seed).random() * seconds
    for number in itertools.count():
        child, about = start(number)
        time.sleep(moment)
        child.kill()
        if child.wait()[0] == -signal.SIGKILL:
            print(f"seed {seed}: killed {moment:.4f} s after its start")  # a test that fails shows it
            return about
        moment /= 2  # it was faster than the one that the duration is of


@pytest.fixture(scope="module")
def wasteful(scenes, tmp_path_factory):
    """What the grown folder's extraction leaves: small shards, and rows of photos that are gone; and its scene."""
    cache_dir = tmp_path_factory.mktemp("wasteful") / "cache"
    shutil.copytree(scenes["grown"].start, cache_dir)
    scenes["grown"].start_extraction(cache_dir).wait()
    [directory] = store.directories(cache_dir)
    assert len(store.shard_names(directory)) > 5
    return directory, scenes["grown"]


def start_on_copy(directory: Path, folder: Path, *arguments: str, at: Step | None = None) -> tuple[Child, Path]:
    """`python -m cache` with these arguments, at work on a copy in `folder`."""
    copy = Path(shutil.copytree(directory, folder / directory.name))
    return Child("cache", [*arguments, str(copy)], at), copy


def check_and_compact(scene: Scene, directory: Path) -> None:
    """What has to be true after a compaction was killed, and of the one after it."""
    for again in (False, True):
        if again:
            compact(directory)
        assert verify.find(directory) == []
        assert view(directory) == scene.after
        assert rows_of(directory).items() <= scene.rows.items()
    # What was killed may have left shards that no index names. An extraction lists them, and then they are unused.
    assert scene.extract(directory).computed == 0
    compact(directory)
    opened = cache.open(directory)
    assert store.shard_names(directory) == [shard.path.name for shard in opened.shards]
    assert len(opened.shards) == 1
    assert len(opened.shards[0]) == len(opened)
    assert view(directory) == scene.after
    assert verify.find(directory) == []


COMPACTING = [
    *commit("shard"),
    *commit("index"),
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


def flip(path: Path, column: str, row: int) -> None:
    with h5py.File(path) as file:
        place = file[column].id.get_offset() + row * file[column].nbytes // len(file[column])
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def damaged(wasteful, tmp_path_factory):
    """The same with damage of every kind, which rows are lost by it, and the scene."""
    directory, scene = wasteful
    copy = Path(shutil.copytree(directory, tmp_path_factory.mktemp("damaged") / directory.name))
    opened = cache.open(copy)
    ids, rows = opened.index.shard_ids.tolist(), opened.index.shard_rows.tolist()
    flipped = next(image for image, number in enumerate(ids) if len(opened.shards[number]) == 2)
    last = (image for image, number in enumerate(ids) if rows[image] == len(opened.shards[number]) - 1 > 0)
    cut = next(image for image in last if ids[image] != ids[flipped])
    unlisted = next(image for image, number in enumerate(ids) if number not in (ids[flipped], ids[cut]))
    flip(opened.shards[ids[flipped]].path, "bottlenecks", rows[flipped])
    flip(copy / store.INDEX, "mtimes", unlisted)
    path = opened.shards[ids[cut]].path
    with h5py.File(path) as file:
        vectors = file["bottlenecks"]
        os.truncate(path, vectors.id.get_offset() + vectors.nbytes - 1)
    (copy / store.REJECTED).write_text("no table\nat all\n")
    (copy / store.BACKBONE / "saved_model.pb").write_text("no network")
    found = verify.find(copy)
    assert [None if damage.rows is None else len(damage.rows) for damage in found] == [1, 1, 1, None, None]
    lost = {(opened.paths[image], int(opened.index.mtimes[image])) for image in (flipped, cut)}
    assert lost <= scene.rows.keys()
    return copy, lost, scene


def check_and_repair(scene: Scene, directory: Path, lost: set[tuple[str, int]]) -> None:
    """What has to be true of the repair after one that was killed, and of the extraction after it."""
    verify.repair(directory)
    assert verify.find(directory) == []
    assert rows_of(directory) == {row: content for row, content in scene.rows.items() if row not in lost}
    assert len(cache.open(directory)) == len(scene.after.paths) - 3
    assert scene.extract(directory).computed == len(lost)
    assert rows_of(directory) == scene.rows
    assert view(directory) == scene.after
    assert rejected(directory) == scene.rejected_after


REPAIRING = [
    *commit("shard", 2),
    *(commit("shard", 1) if LONG else ()),
    *commit("index"),
    *around("unlink", "shard", 1, 2),
    *around("unlink", "backbone", 1, 2),
    *around("unlink", "rejected", 1),
]


@pytest.mark.parametrize("step", REPAIRING, ids=str)
def test_a_repair_killed_at_a_step_loses_no_sound_row(tmp_path, damaged, step):
    directory, lost, scene = damaged
    child, copy = start_on_copy(directory, tmp_path, "verify", "--repair", at=step)
    status, errors = child.wait()
    assert status == -signal.SIGKILL, errors
    check_and_repair(scene, copy, lost)


@pytest.mark.parametrize("seed", range(100 if LONG else 5))
def test_a_repair_killed_at_a_random_moment_loses_no_sound_row(tmp_path, damaged, seed):
    directory, lost, scene = damaged

    def start(name):
        return start_on_copy(directory, tmp_path / str(name), "verify", "--repair")

    seconds = seconds_of(lambda: start("undisturbed"))
    check_and_repair(scene, killed_at_random(start, seconds, seed), lost)
