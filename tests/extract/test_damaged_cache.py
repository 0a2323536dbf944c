"""An extraction into a damaged cache makes nothing worse, and hides nothing."""

from dataclasses import replace

import numpy as np
import pytest

import cache
from cache import index as indexes
from cache import layout, shard, verify
from cache.repair import repair
from extract import backbones
from tests.damage import flip, place_of
from tests.pictures import write_picture
from tests.random_cache import shard_paths, vectors_by_path


@pytest.mark.parametrize("grown", [False, True])
def test_a_damaged_row_of_the_index_gets_no_new_checksum(tmp_path, extracted, run, grown):
    before = vectors_by_path(extracted)
    path, shard_rows = extracted / layout.INDEX, indexes.read(extracted)[1].shard_rows.tolist()
    flip(path, place_of(path, "shard_rows", 0))
    assert shard_rows[0] ^ 1 in shard_rows  # the bottleneck of the first photo is now that of another
    if grown:
        write_picture(tmp_path / "photos" / "a" / "new.png", 50)
    with pytest.raises(cache.CacheError, match=r"index.h5 is damaged .* verify --repair"):
        run()
    [damage] = repair(extracted)
    assert damage.rows.tolist() == [0]
    assert run().computed == grown
    after = vectors_by_path(extracted)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + grown


@pytest.mark.parametrize(
    ("column", "value"), [("shard_rows", 6), ("shard_rows", -1), ("shard_ids", 1), ("shard_ids", -1)]
)
def test_an_index_that_points_nowhere_is_reported(tmp_path, extracted, run, column, value):
    info, index = indexes.read(extracted)
    numbers = np.array(getattr(index, column))
    numbers[0] = value
    indexes.write(extracted, info, replace(index, **{column: numbers}))
    write_picture(tmp_path / "photos" / "a" / "new.png", 50)
    with pytest.raises(cache.CacheError, match=r"index.h5 is damaged .* verify --repair"):
        run()


def test_a_shard_that_nobody_can_read_does_not_get_into_the_index(extracted, run):
    (extracted / layout.SHARDS / "20000101T000000-broken.h5").write_bytes(b"no HDF5")
    with pytest.raises(cache.CacheError, match=r"broken.h5 is damaged"):
        run()
    assert len(cache.open(extracted)) == 6
    repair(extracted)
    assert run().computed == 0
    assert verify.find(extracted) == []


@pytest.mark.parametrize("indexed", [False, True])
def test_bottlenecks_of_another_backbone_do_not_get_into_the_index(extracted, run, indexed):
    before = vectors_by_path(extracted)
    [ours] = shard_paths(extracted)
    opened = shard.read(ours)
    foreign = shard.write(ours.parent, {**opened.attributes, "fingerprint": "fedcba9876543210"}, [opened.rows])
    if not indexed:
        (extracted / layout.INDEX).unlink()
    with pytest.raises(cache.CacheError, match=r"\.h5 is damaged \(made by another backbone\)"):
        run()
    if indexed:
        [damage] = repair(extracted)
        assert damage.path == extracted / layout.SHARDS / foreign
    else:  # nothing says which of them are the wrong ones
        with pytest.raises(cache.UserError, match=r"nothing was dropped: .* are of different backbones; move those"):
            repair(extracted)
        (extracted / layout.SHARDS / foreign).unlink()
    assert run().computed == 0
    assert vectors_by_path(extracted) == before
    assert verify.find(extracted) == []


def test_what_another_extraction_computes_while_the_backbone_is_loaded_is_not_computed_again(
    extracted, run, monkeypatch
):
    for path in shard_paths(extracted):
        path.unlink()
    load, loads = backbones.load, []

    def load_while_another_runs(*arguments):
        loads.append(arguments)
        if len(loads) == 1:
            assert run().computed == 6
        return load(*arguments)

    monkeypatch.setattr(backbones, "load", load_while_another_runs)
    assert run().computed == 0
    assert len(loads) == 2
    assert len(cache.open(extracted)) == 6
