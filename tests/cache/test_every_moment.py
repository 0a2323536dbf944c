"""Extractions, compactions and repairs are killed with SIGKILL at every moment at which they change a disk.

With LONG=1 in the environment at every one of them, and then at every one of the next run; otherwise at a sample.
"""

import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cache import files, layout, rejected, shard, thumbnails, verify
from cache import index as indexes
from cache.store import Store
from tests.damage import cut_in_last_row, flip, place_of
from tests.fake_photos import BACKBONE, Folder, expected, published
from tests.nursery import nursing
from tests.processes import command
from tests.random_cache import NAME, shard_paths
from tests.thumbnail_cache import jpeg, thumbnail_files

LONG = bool(os.environ.get("LONG"))
PARTS = 16 if LONG else 1  # that can be tried at the same time

# Contents of photos by their paths. EARLIER ones are gone: no photo uses their bottlenecks and thumbnails any more.
EARLIER = {"a/0.jpg": 10, "b/3.jpg": 23}
BEFORE = {"a/1.jpg": 11, "a/2.jpg": 12, "a/3.jpg": 13, "b/1.jpg": 21, "b/2.jpg": 22, "b/4.jpg": 24}
FIRST = {"a/5.jpg": 15, "a/6.jpg": 16}  # that an extraction has done which is killed then
# Two are gone, one has changed, and two more are new.
NOW = {path: content for path, content in BEFORE.items() if path not in ("a/3.jpg", "b/2.jpg")}
NOW |= {"a/1.jpg": 31, **FIRST, "b/5.jpg": 25, "b/6.jpg": 26}
BROKEN = "b/9.jpg"


def photos(contents):
    return Folder({**contents, BROKEN: 99}, unreadable=[BROKEN])


def set_sizes(set_value):
    """An extraction makes shards of three rows, and a compaction of two."""
    set_value("cache.work.PIECE", 3)
    set_value("cache.compact.COMMIT_BYTES", 2 * BACKBONE.dimension * 4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    set_sizes(monkeypatch.setattr)


def small_in_child(work, *arguments):
    patch = pytest.MonkeyPatch()
    set_sizes(patch.setattr)
    work(*arguments)


def make_thumbnails(directory):
    index = indexes.read(directory)[1]
    rows = thumbnails.missing(directory, index)
    jpegs = [jpeg(int(index.sizes[row])) for row in rows]
    for start in range(0, len(rows), 5):
        part = slice(start, start + 5)
        thumbnails.write(directory, [thumbnails.of(index, rows[part], jpegs[part])])


def extract(contents, directory):
    """What `python -m extract --thumbnails` does, without a network. Returns how many photos it computed."""
    work = photos(contents).extract(Store(directory, BACKBONE))
    make_thumbnails(directory)
    return work.computed


def compact(directory):
    assert command("cache", ["compact", directory]) == 0


def repair(directory):
    assert command("cache", ["verify", "--repair", directory]) == 0


# --- what a cache holds -------------------------------------------------------------------------------------


def rows_of(directory):
    """Every row of every shard, with its photo, how often it is there."""
    found = Counter()
    for path in shard_paths(directory):
        rows = shard.read(path).rows
        found.update(
            (name, *(getattr(rows, column)[i].tobytes() for column in shard.NUMBERS))
            for i, name in enumerate(rows.paths)
        )
    return found


def pictures_of(directory):
    """The same of thumbnails."""
    found = Counter()
    for path in thumbnail_files(directory):
        rows = thumbnails.read(path).rows
        found.update(zip(rows.paths, rows.mtimes.tolist(), rows.thumbnails.encoded(), strict=True))
    return found


@dataclass(frozen=True)
class State:
    """All that a cache holds."""

    view: dict | None  # None: there is no index
    rows: Counter
    pictures: Counter
    rejected: list
    named: set  # shards
    unnamed: set

    @classmethod
    def of(cls, directory):
        view, named = None, set()
        if (directory / layout.INDEX).exists():
            view, named = published(directory), set(indexes.read(directory)[1].shards)
        unnamed = set(layout.shard_names(directory)) - named
        return cls(view, rows_of(directory), pictures_of(directory), rejected.read(directory), named, unnamed)

    def content(self):
        """What is the same whenever shards were made, and whatever their names are."""
        return self.view, self.rows, self.pictures, self.rejected, len(self.unnamed)


def wait_an_hour(directory):
    """Makes temporary files look as if their writer had been killed long ago."""
    for path in directory.rglob(f".*{files.TEMPORARY}"):
        os.utime(path, (0, 0))


def assert_nothing_left(directory):
    assert {path.name for path in directory.rglob(".*")} <= {files.LOCK}


# --- what a command starts with -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_filled(tmp_path_factory):
    """A cache of BEFORE, and of NOW the shard that an extraction committed which was killed then."""
    directory = tmp_path_factory.mktemp("half filled") / NAME
    with pytest.MonkeyPatch.context() as patch:
        set_sizes(patch.setattr)
        extract(BEFORE | EARLIER, directory)
        extract(BEFORE, directory)
        folder, store = photos(BEFORE | FIRST), Store(directory, BACKBONE)
        folder.compute(store, folder.missing(store))
    assert len(State.of(directory).unnamed) == 1
    return directory


@dataclass(frozen=True)
class Scene:
    """A command, what it starts with, and what the cache holds when the command comes to its end."""

    work: object
    start: Path
    before: State | None  # None: the cache is damaged
    after: State

    def copied(self, folder):
        return Path(shutil.copytree(self.start, folder / NAME, symlinks=True))


def damage_some(directory):
    """Damage of every kind that a repair moves sound rows for."""
    named = indexes.read(directory)[1].shards
    *_, first, second = (directory / layout.SHARDS / name for name in named)
    [third] = (path for path in shard_paths(directory) if path.name not in named)
    flip(first, place_of(first, "bottlenecks", 1))
    cut_in_last_row(second)
    flip(third, place_of(third, "bottlenecks", 0))
    picture = thumbnail_files(directory)[0]
    flip(picture, place_of(picture, "thumbnails", 40))
    flip(directory / layout.INDEX, place_of(directory / layout.INDEX, "mtimes", 5))
    (directory / layout.REJECTED).write_text("no table\nat all\n")
    (directory / layout.BACKBONE / "variables").mkdir(parents=True)
    for name in ("saved_model.pb", "SHA256SUMS", "variables/data"):
        (directory / layout.BACKBONE / name).write_text("no network")


def damage_all(directory):
    """The same, and no photo of the index stays."""
    damage_some(directory)
    for row in range(len(indexes.read_table(directory)[1])):
        flip(directory / layout.INDEX, place_of(directory / layout.INDEX, "sizes", row), 2)


def damage_the_index(directory):
    """The same, and the index cannot be read at all."""
    damage_some(directory)
    flip(directory / layout.INDEX, 9)


SCENES = {  # what each does, and what happens to the half-filled cache before
    "a first extraction": (partial(extract, NOW), shutil.rmtree),
    "an extraction": (partial(extract, NOW), None),
    "a compaction": (compact, None),
    "a repair": (repair, damage_some),
    "a repair that drops every photo": (repair, damage_all),
    "a repair without an index": (repair, damage_the_index),
}


@pytest.fixture(scope="module")
def scenes(half_filled, tmp_path_factory):
    made = {}
    for name, (work, happens) in SCENES.items():
        folder = tmp_path_factory.mktemp(name)
        start = Path(shutil.copytree(half_filled, folder / "start"))
        if happens:
            happens(start)
        start.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            set_sizes(patch.setattr)
            work(end := Path(shutil.copytree(start, folder / "end")))
        made[name] = Scene(work, start, None if work is repair else State.of(start), State.of(end))
    return made


@pytest.fixture(scope="module")
def nursery():
    with nursing() as nursery:
        yield nursery


# --- killed -------------------------------------------------------------------------------------------------


def check_after_kill(scene, directory):
    """What has to be true at the moment of a kill. Returns what the cache holds."""
    if scene.before is None:
        return None
    assert verify.find(directory) == []
    now = State.of(directory)
    assert now.view in (scene.before.view, scene.after.view)
    assert now.rejected in (scene.before.rejected, scene.after.rejected)
    assert scene.before.unnamed <= now.named | now.unnamed
    if scene.work is compact:
        assert scene.after.rows.keys() <= now.rows.keys() <= scene.before.rows.keys()
        assert scene.after.pictures.keys() <= now.pictures.keys() <= scene.before.pictures.keys()
    else:
        assert scene.before.rows.keys() <= now.rows.keys() <= scene.after.rows.keys()
        assert scene.before.pictures.keys() <= now.pictures.keys() <= scene.after.pictures.keys()
    return now


def check_after_next(scene, directory, capsys):
    """What has to be true when the same command has come to its end."""
    assert verify.find(directory) == []
    now = State.of(directory)
    assert now.content() == scene.after.content()
    assert_no_list(directory)
    if scene.work is compact:
        assert now.unnamed == scene.before.unnamed
        assert len(now.named) == len(scene.after.named)
        capsys.readouterr()
        compact(directory)
        assert "nothing to compact\n" in capsys.readouterr().out
        assert set(layout.shard_names(directory)) == now.named | now.unnamed


def check_extraction(directory):
    """Whatever happened before, an extraction ends with what is to be published, and a compaction with that alone."""
    extract(NOW, directory)
    compact(directory)
    now = State.of(directory)
    assert now.view == expected(NOW)
    assert now.rows.total() == now.pictures.total() == len(NOW)
    assert now.unnamed == set()
    assert verify.find(directory) == []
    assert_no_list(directory)


def assert_no_list(directory):
    """A list is what a command leaves if it is killed; temporary files stay for an hour."""
    assert {path.name for path in directory.rglob(".*")} <= {files.LOCK}


def chosen(moments, part, scene):
    """The moments to kill at in this part of the tests, and what happens before the command is run again."""
    ways = ["nothing", "a second kill", *(["an extraction"] if scene.work is compact else [])]
    if LONG:
        return [(moment, way) for moment in range(1, moments + 1)[part::PARTS] for way in ways]
    return list(zip(random.Random(moments).sample(range(1, moments + 1), len(ways)), ways, strict=True))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SCENES)
def test_a_command_killed_at_any_moment_is_finished_by_the_next_one(tmp_path, scenes, nursery, name, part, capsys):
    scene = scenes[name]
    moments = nursery.moments(small_in_child, scene.work, scene.copied(tmp_path / "whole"))
    for moment, way in chosen(moments, part, scene):
        print(f"killed at moment {moment} of {moments}, then {way}")  # shown if the test fails
        directory = scene.copied(tmp_path / f"{moment} {way}")
        assert nursery.is_killed(moment, small_in_child, scene.work, directory)
        killed = check_after_kill(scene, directory)
        wait_an_hour(directory)
        if way == "a second kill":
            second = random.Random(moment).randint(1, moments)
            print(f"the second one at moment {second}")
            nursery.is_killed(second, small_in_child, scene.work, directory)  # or it ends sooner
            killed = check_after_kill(scene, directory)
            wait_an_hour(directory)
        if way == "an extraction":
            check_extraction(directory)
            continue
        computed = scene.work(directory)
        if killed and scene.work is not compact:
            assert computed == len(scene.after.rows.keys() - killed.rows.keys())
        check_after_next(scene, directory, capsys)
