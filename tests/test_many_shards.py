"""A cache of more shards than the system lets a process open at first."""

import resource
import shutil

import numpy as np

import cache
from cache import layout, verify
from cache.writer import Writer
from extract.run import extract
from extract.settings import Settings
from tests import processes
from tests.pictures import make_folder
from tests.random_cache import vectors_by_path


def scatter(directory):
    """Moves each row into a shard of its own, and deletes the index: so a long run that was killed leaves a cache."""
    opened = cache.open(directory)
    rows = [shard.rows for shard in opened.shards]
    for shard_id, row in zip(opened.index.shard_ids, opened.index.shard_rows, strict=True):
        with Writer(directory, opened.backbone.attributes()) as writer:
            writer.append(rows[shard_id].take(np.array([row])))
    (directory / layout.INDEX).unlink()
    for shard in opened.shards:
        shard.path.unlink()


def extract_and_compact(flags, cache_dir, hard_limit):
    """Two commands in a process that may open 40 files, and raise that up to `hard_limit`."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard_limit))
    return processes.command("extract", flags) or processes.command("cache", ["compact", cache_dir])


def test_more_shards_than_the_system_lets_a_process_open_at_first(tmp_path, module, loaded, loaded_once):
    photos = make_folder(tmp_path / "photos", {"a": 30, "b": 30})
    shutil.copytree(loaded[1], tmp_path / "cache")
    directory = extract(Settings(str(photos), str(tmp_path / "cache"), module, engine="tensorflow")).directory
    vectors = vectors_by_path(directory)
    scatter(directory)
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module]
    few = processes.run(extract_and_compact, flags, tmp_path / "cache", 50)
    assert few.returncode == 2
    assert "Too many open files; fix that" in few.stderr
    assert "Traceback" not in few.stderr
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = processes.run(extract_and_compact, flags, tmp_path / "cache", hard_limit)
    assert enough.returncode == 0, enough.stderr
    assert "0 computed, 60 reused" in enough.stdout
    assert "60 shards became 1" in enough.stdout
    assert vectors_by_path(directory) == vectors
    assert verify.find(directory) == []
