"""An extraction into a cache that something is wrong with makes nothing worse, and hides nothing."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

import cache
from cache import index as indexes
from cache import layout, repair, verify
from extract import backbones
from extract.run import extract
from extract.settings import Settings
from tests import modules
from tests.pictures import make_folder, write_picture


@pytest.fixture
def run(tmp_path, module):
    make_folder(tmp_path / "photos", {"a": 3, "b": 3})
    choices = {"precision": "float32", "dtype": "float32", "engine": "tensorflow", "batch_size": 2}

    def extract_photos(module=module, cache_dir=tmp_path / "cache"):
        return extract(Settings(str(tmp_path / "photos"), str(cache_dir), module, **choices))

    return extract_photos


def vectors_of(directory):
    opened = cache.open(directory)
    return dict(zip(opened.paths, opened.bottlenecks(np.arange(len(opened))).tolist(), strict=True))


@pytest.mark.parametrize("grown", [False, True])
def test_a_damaged_row_of_the_index_gets_no_new_checksum(tmp_path, run, grown):
    directory = run().directory
    before = vectors_of(directory)
    with h5py.File(directory / layout.INDEX) as file:
        place, rows = file["shard_rows"].id.get_offset(), file["shard_rows"][:]
    content = bytearray((directory / layout.INDEX).read_bytes())
    content[place] ^= 1  # the first image's bottleneck is now another's, and there is one
    assert rows[0] ^ 1 in rows
    (directory / layout.INDEX).write_bytes(content)
    if grown:
        write_picture(tmp_path / "photos" / "a" / "new.png", 50)
    with pytest.raises(cache.CacheError, match=r"index.h5 is damaged .* verify --repair"):
        run()
    [found] = repair.repair(directory)
    assert found.rows.tolist() == [0]
    assert run().computed == grown
    after = vectors_of(directory)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + grown


@pytest.mark.parametrize(
    ("column", "value"), [("shard_rows", 6), ("shard_rows", -1), ("shard_ids", 1), ("shard_ids", -1)]
)
def test_an_index_that_points_nowhere_is_reported(tmp_path, run, column, value):
    directory = run().directory
    info, index = indexes.read(directory)
    numbers = getattr(index, column).copy()
    numbers[0] = value
    indexes.write(directory, info, replace(index, **{column: numbers}))
    write_picture(tmp_path / "photos" / "a" / "new.png", 50)
    with pytest.raises(cache.CacheError, match=r"index.h5 is damaged .* verify --repair"):
        run()


def test_a_shard_that_nobody_can_read_does_not_get_into_the_index(run):
    directory = run().directory
    (directory / "shards" / "20000101T000000-broken.h5").write_bytes(b"no HDF5")
    with pytest.raises(cache.CacheError, match=r"broken.h5 is damaged"):
        run()
    assert len(cache.open(directory)) == 6
    repair.repair(directory)
    assert run().computed == 0
    assert verify.find(directory) == []


@pytest.mark.parametrize("indexed", [False, True])
def test_bottlenecks_of_another_network_do_not_get_into_the_index(tmp_path, run, indexed):
    directory = run().directory
    before = vectors_of(directory)
    other = run(modules.make_tf2_hub_module(tmp_path / "other", seed=1), tmp_path / "another").directory
    [foreign, *_] = layout.shard_names(other)
    shutil.copy(other / "shards" / foreign, directory / "shards")
    if not indexed:
        (directory / layout.INDEX).unlink()
    with pytest.raises(cache.CacheError, match=r"\.h5 is damaged \(made by another backbone\)"):
        run()
    if indexed:
        [found] = repair.repair(directory)
        assert found.path == directory / "shards" / foreign
    else:  # nothing says which of them are the wrong ones
        with pytest.raises(cache.UserError, match=r"nothing was dropped: .* are of different backbones; move those"):
            repair.repair(directory)
        (directory / "shards" / foreign).unlink()
    assert run().computed == 0
    assert vectors_of(directory) == before
    assert verify.find(directory) == []


def test_what_another_extraction_does_while_the_network_is_loaded_is_not_done_again(run, monkeypatch):
    first = run()
    for name in layout.shard_names(first.directory):
        (first.directory / "shards" / name).unlink()
    load, loads = backbones.load, []

    def load_while_another_runs(*arguments):
        loads.append(None)
        if len(loads) == 1:
            assert run().computed == 6
        return load(*arguments)

    monkeypatch.setattr(backbones, "load", load_while_another_runs)
    assert run().computed == 0
    assert len(loads) == 2
    assert len(cache.open(first.directory)) == 6
