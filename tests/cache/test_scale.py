"""What must stay bounded when a cache is large: open files, hashed and copied paths, photos that are read twice."""

import resource
import subprocess
import sys

import numpy as np
import pytest

import cache
from cache import hdf5, layout, strings, table
from cache.store import Store, read_info
from cache.strings import Lookup, Strings
from cache.writer import Writer
from extract import batches
from extract.run import extract
from extract.settings import Settings
from extract.sources.folder import list_photos
from tests.extract.test_extract import assert_is_view_of
from tests.pictures import make_folder, write_picture
from tests.processes import REPO


@pytest.fixture
def choices(tmp_path, module):
    make_folder(tmp_path / "photos", {"a": 30, "b": 30})
    flags = {"precision": "float32", "dtype": "float32", "engine": "tensorflow", "batch_size": 10}
    return Settings(str(tmp_path / "photos"), str(tmp_path / "cache"), module, **flags)


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


def test_more_shards_than_the_system_lets_a_process_open_at_first(tmp_path, choices):
    directory = extract(choices).directory
    scatter(directory)
    script = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv.pop())))
from cache import console
from cache.__main__ import main as cache_main
from extract.__main__ import main as extract_main
status = console.run(extract_main, sys.argv[2:]) or console.run(cache_main, ["compact", sys.argv[1]])
sys.exit(status)
"""
    flags = ["--image_dir", choices.image_dir, "--cache_dir", choices.cache_dir, "--module", choices.module]
    arguments = [sys.executable, "-c", script, choices.cache_dir, *flags]
    few = subprocess.run([*arguments, "50"], cwd=REPO, capture_output=True, text=True)
    assert few.returncode == 2
    assert "Too many open files; fix that" in few.stderr
    assert "Traceback" not in few.stderr
    enough = str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    done = subprocess.run([*arguments, enough], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 computed, 60 reused" in done.stdout
    assert "60 shards became 1" in done.stdout
    assert_is_view_of(cache.open(directory), tmp_path / "photos")


def test_going_on_hashes_each_path_a_few_times_whatever_the_number_of_shards(choices, monkeypatch):
    directory = extract(choices).directory
    scatter(directory)
    hashed = []
    hashes = strings._hashes
    monkeypatch.setattr(strings, "_hashes", lambda some: hashed.append(len(some)) or hashes(some))
    photos = list_photos(choices.image_dir)
    work = Store(directory, read_info(directory)).missing(photos, None)
    assert len(work.match.shards) == len(photos) == 60
    assert not len(work)
    assert sum(hashed) <= 4 * len(photos)


def test_going_on_reads_no_photo_to_compare_it_with_those_that_are_done(tmp_path, choices, monkeypatch):
    extract(choices)
    read, fingerprints = [], batches.fingerprints

    def recorded(photos, positions, threads):
        read.extend(photos.paths.take(positions))
        return fingerprints(photos, positions, threads)

    monkeypatch.setattr(batches, "fingerprints", recorded)
    photos = tmp_path / "photos"
    size = (photos / "a" / "000.png").stat().st_size
    for seed in range(100, 104):  # as long as a photo that is done, as many of thousands of photos are
        new = write_picture(photos / "b" / f"{seed}.png", seed)
        new.write_bytes(new.read_bytes().ljust(size, b"\0")[:size])
    assert extract(choices).computed == 4
    assert not read
    (photos / "a" / "000.png").rename(photos / "b" / "moved.png")
    assert extract(choices).computed == 0
    assert read == ["b/moved.png"]


def test_strings_are_taken_and_found_block_by_block(monkeypatch):
    monkeypatch.setattr(strings, "_BLOCK", 3)
    texts = [f"{number}" * (number % 5) + f"/{number}" for number in range(20)]
    picked = np.random.default_rng(0).permutation(20)[:17]
    taken = Strings.of(texts).take(picked)
    assert list(taken) == [texts[i] for i in picked]
    assert Lookup(Strings.of(texts)).find(taken).tolist() == picked.tolist()
    assert Lookup(taken).find(Strings.of(["none", texts[picked[5]]])).tolist() == [-1, 5]


def test_what_is_larger_than_the_system_takes_at_once_is_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "_LARGEST", 1000)
    schemas = {"rows": {"numbers": table.INT64}}
    numbers = np.arange(5000)
    parts = [{"numbers": numbers[:9]}, {"numbers": numbers[9:]}]
    table.write(tmp_path / "file.h5", "shard", {}, schemas, {"rows": parts})
    _, tables = table.read(tmp_path / "file.h5", "shard", schemas)
    assert np.array_equal(tables["rows"].columns["numbers"], numbers)
    assert not len(tables["rows"].damaged())
