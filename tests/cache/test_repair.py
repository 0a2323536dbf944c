"""A repair takes exactly what is damaged."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

import cache
from cache import console, layout, rejected, shard, verify
from cache import index as indexes
from cache.__main__ import main
from cache.repair import repair
from cache.writer import COMMIT_BYTES
from tests.damage import FOOTER, flip, place_of
from tests.processes import REPO
from tests.random_cache import BACKBONE, COUNT, NAME, fill, fill_with_everything, rows, shard_paths, take


@pytest.fixture
def made(tmp_path):
    """A folder of three shards with all else that one may hold, and its index."""
    directory = tmp_path / NAME
    return directory, fill_with_everything(directory)[0]


def view(directory):
    """The label, size, mtime and vector of every photo, by its path."""
    opened = cache.open(directory)
    vectors = opened.bottlenecks(np.arange(len(opened)))
    index = opened.index
    return {
        path: (opened.labels[index.label_ids[i]], int(index.sizes[i]), int(index.mtimes[i]), vectors[i].tobytes())
        for i, path in enumerate(opened.paths)
    }


def assert_only_lost(directory, before, lost):
    """After a repair only the photos `lost` are missing, and a second repair finds nothing."""
    assert verify.find(directory) == []
    assert repair(directory) == []
    assert view(directory) == {path: row for path, row in before.items() if path not in lost}


@pytest.mark.parametrize("array", ["bottlenecks", "sizes", "mtimes", "fingerprints", "rows_checksums"])
@pytest.mark.parametrize("row", [0, 3, 4])
def test_repair_drops_the_damaged_row_of_a_shard_alone(made, array, row):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[0]
    lost = shard.read(path).rows.paths[row]
    flip(path, place_of(path, array, row))
    [damage] = repair(directory)
    assert (damage.path, damage.rows.tolist()) == (path, [row])
    assert not path.exists()
    assert_only_lost(directory, before, {lost})
    assert sum(len(one) for one in cache.open(directory).shards) == 13 - 1


def test_repair_drops_the_row_whose_path_is_damaged(made):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[0]
    paths = shard.read(path).rows.paths
    lost = paths[3]
    flip(path, place_of(path, "paths", int(paths.offsets[3])))
    repair(directory)
    assert_only_lost(directory, before, {lost})


@pytest.mark.parametrize("mask", [1, 0x80])
def test_repair_drops_both_rows_of_a_damaged_offset(made, mask):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[0]
    paths = list(shard.read(path).rows.paths)
    flip(path, place_of(path, "paths_offsets", 2), mask)
    repair(directory)
    assert_only_lost(directory, before, set(paths[1:3]))


@pytest.mark.parametrize("array", ["sizes", "mtimes", "label_ids", "shard_ids", "shard_rows", "images_checksums"])
def test_repair_drops_the_damaged_row_of_an_index_alone(made, array):
    directory, index = made
    before = view(directory)
    shards = layout.shard_names(directory)
    path = directory / layout.INDEX
    flip(path, place_of(path, array, 6))
    [damage] = repair(directory)
    assert (damage.path, damage.rows.tolist()) == (path, [6])
    assert_only_lost(directory, before, {index.paths[6]})
    assert layout.shard_names(directory) == shards


def test_repair_drops_rows_that_point_nowhere(made):
    directory, index = made
    before = view(directory)
    shard_rows, shard_ids = np.array(index.shard_rows), np.array(index.shard_ids)
    shard_rows[2], shard_ids[9], shard_rows[4] = 7, 3, -1
    indexes.write(directory, BACKBONE, replace(index, shard_rows=shard_rows, shard_ids=shard_ids))
    [damage] = verify.find(directory)
    assert "3 of 13 photos point nowhere" in str(damage)
    repair(directory)
    assert_only_lost(directory, before, {index.paths[i] for i in (2, 4, 9)})


@pytest.mark.parametrize("lost", [1, 50, COUNT - 1])
def test_the_rows_before_a_cut_survive(tmp_path, lost):
    directory = tmp_path / "tiny"
    fill(directory, [rows(COUNT, 0), rows(3, 1)])
    before = view(directory)
    path = shard_paths(directory)[0]
    paths = list(shard.read(path).rows.paths)
    content = path.read_bytes()
    path.write_bytes(content[: place_of(path, "bottlenecks", COUNT - lost) + 1])
    [damage] = repair(directory)
    assert (damage.path, damage.rows.tolist()) == (path, list(range(COUNT - lost, COUNT)))
    assert_only_lost(directory, before, set(paths[COUNT - lost :]))


def kept_before(path, end):
    """The paths of the rows all of whose bytes, the checksum's too, lie before the place `end` in the file."""
    paths = shard.read(path).rows.paths
    after = np.arange(1, len(paths) + 1)
    with h5py.File(path) as file:
        places = {name: array.id.get_offset() for name, array in file.items()}
        widths = {name: file[name].nbytes // len(paths) for name in ("rows_checksums", *shard.NUMBERS)}
    ends = [places[name] + after * width for name, width in widths.items()]
    ends += [places["paths"] + paths.offsets[1:], places["paths_offsets"] + (after + 1) * 8]
    return {paths[row] for row in np.flatnonzero(np.max(ends, axis=0) <= end)}


@pytest.mark.parametrize("share", [0.3, 0.6, 0.8, 0.9, 0.95, 0.99, 1])
def test_wherever_a_file_is_cut_off_the_rows_before_survive(made, share):
    """`share` is of what lies behind the structures; at 1 the file is cut behind all arrays."""
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[2]
    with h5py.File(path) as file:
        places = [(one.id.get_offset(), one.id.get_offset() + one.nbytes) for one in file.values()]
    start, end = min(places)[0], max(places, key=lambda place: place[1])[1]
    cut = int(start + share * (end - start))
    others = before.keys() - set(shard.read(path).rows.paths)
    expected = others | kept_before(path, cut)
    assert (expected == before.keys()) == (share == 1)
    os.truncate(path, cut)
    assert {damage.path for damage in repair(directory)} >= {path}
    assert verify.find(directory) == []
    after = view(directory)
    assert expected <= after.keys()
    assert after.items() <= before.items()


def test_a_file_cut_off_behind_its_rows_is_named_and_every_row_kept(made):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[0]
    os.truncate(path, path.stat().st_size - FOOTER - 1)
    with pytest.raises(cache.CacheError, match=path.name):
        cache.open(directory)
    [damage] = verify.find(directory)
    assert (damage.path, damage.rows.tolist()) == (path, [])
    repair(directory)
    assert_only_lost(directory, before, set())


def test_the_rows_of_a_large_shard_that_was_cut_off_survive(tmp_path):
    """A shard as large as a writer makes them, and a batch larger."""
    dimension = 1 << 22
    count = COMMIT_BYTES // (2 * dimension) + 2
    backbone = replace(BACKBONE, dimension=dimension)
    vectors = np.zeros((count, dimension), np.float16)
    vectors[:, 0], vectors[:, -1] = np.arange(count), 1  # what is cut off is filled up with zeros
    (tmp_path / "shards").mkdir()
    shard.write(tmp_path / "shards", backbone.attributes(), [replace(rows(count, 0), bottlenecks=vectors)])
    [path] = shard_paths(tmp_path)
    os.truncate(path, place_of(path, "bottlenecks", count - 1) + 1)
    [damage] = repair(tmp_path)
    assert damage.path == path
    [repaired] = shard_paths(tmp_path)
    assert shard.read(repaired).rows.bottlenecks[:, 0].tolist() == list(range(count - 1))


@pytest.mark.parametrize("spoil", [lambda path: os.truncate(path, 200), lambda path: flip(path, 9)])
def test_a_shard_cut_before_its_rows_or_with_a_damaged_header_is_dropped_whole(made, spoil):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[2]
    lost = set(shard.read(path).rows.paths)
    spoil(path)
    repair(directory)
    assert_only_lost(directory, before, lost)


def test_photos_of_a_missing_shard_are_dropped(made):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[0]
    lost = set(shard.read(path).rows.paths)
    path.unlink()
    [damage] = verify.find(directory)
    assert damage.path == directory / layout.INDEX
    assert f"shards/{path.name} is missing" in str(damage)
    repair(directory)
    assert_only_lost(directory, before, lost)
    assert path.name not in cache.open(directory).index.shards


def test_one_repair_drops_damaged_rows_and_what_another_backbone_made(made):
    directory, index = made
    before = view(directory)
    path = shard_paths(directory)[2]
    lost = set(shard.read(path).rows.paths)
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprint"] = np.bytes_("fedcba9876543210")
    row = next(i for i, other in enumerate(index.paths) if other not in lost)
    flip(directory / layout.INDEX, place_of(directory / layout.INDEX, "sizes", row))
    assert [damage.path for damage in repair(directory)] == [directory / layout.INDEX, path]
    assert_only_lost(directory, before, lost | {index.paths[row]})


def test_an_index_with_a_damaged_header_is_dropped_and_the_shards_stay(made):
    directory, _ = made
    shards = layout.shard_names(directory)
    flip(directory / layout.INDEX, 9)
    repair(directory)
    assert not (directory / layout.INDEX).exists()
    assert layout.shard_names(directory) == shards
    assert verify.find(directory) == []


@pytest.mark.parametrize("change", ["flip", "lose", "add", "link", "replace by a link"])
def test_a_damaged_backbone_is_named_and_dropped_alone(made, tmp_path, change):
    directory, _ = made
    before = view(directory)
    backbone = directory / layout.BACKBONE
    if change == "flip":
        flip(backbone / "saved_model.pb", 3)
    elif change == "lose":
        (backbone / "variables" / "data").unlink()
    elif change == "add":
        (backbone / "assets").write_text("more")
    elif change == "link":
        (backbone / "assets").symlink_to(REPO)
    else:  # to the very same bytes, today
        shutil.move(backbone / "saved_model.pb", tmp_path / "elsewhere")
        (backbone / "saved_model.pb").symlink_to(tmp_path / "elsewhere")
    [damage] = repair(directory)
    assert damage.path == backbone
    assert not backbone.exists()
    assert (REPO / "cache").exists()
    assert_only_lost(directory, before, set())


def test_a_damaged_list_of_rejected_photos_is_dropped_alone(made):
    directory, _ = made
    before = view(directory)
    (directory / layout.REJECTED).write_text("no,table")
    repair(directory)
    assert rejected.read(directory) == []
    assert_only_lost(directory, before, set())


def cache_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cache", *map(str, arguments)], cwd=REPO, capture_output=True, text=True
    )


def test_the_command_finds_repairs_and_then_finds_nothing(made):
    directory, _ = made
    before = view(directory)
    path = shard_paths(directory)[0]
    lost = shard.read(path).rows.paths[1]
    flip(path, place_of(path, "bottlenecks", 1))
    found = cache_command("verify", directory.parent)
    assert found.returncode == 2
    assert f"{path}: 1 of 5 rows differ from their checksums or are not finite: 1 ({lost})" in found.stdout
    [line] = found.stderr.splitlines()
    assert line.startswith(f"error: {directory} is damaged; `python -m cache verify --repair")
    repaired = cache_command("verify", "--repair", directory.parent)
    assert (repaired.returncode, repaired.stderr) == (0, "")
    assert "repaired" in repaired.stdout
    assert cache_command("verify", directory.parent).stdout == f"{directory}: sound\n"
    assert_only_lost(directory, before, {lost})


def test_the_command_prints_it_for_programs_too(made, capsys):
    directory, _ = made
    path = shard_paths(directory)[2]
    flip(path, place_of(path, "bottlenecks", 6))
    for arguments, status, sound, repaired in [
        (["verify", "--json"], 2, False, False),
        (["verify", "--json", "--repair"], 0, False, True),
        (["verify", "--json"], 0, True, False),
    ]:
        assert console.run(main, [*arguments, str(directory)]) == status
        [content] = json.loads(capsys.readouterr().out)
        assert (content["directory"], content["sound"], content["repaired"]) == (str(directory), sound, repaired)
        assert [(one["path"], one["rows"]) for one in content["damage"]] == ([] if sound else [(str(path), [6])])


def test_training_checks_the_rows_that_it_uses(made):
    directory, index = made
    opened = cache.open(directory)
    verify.check(opened)
    path = opened.shards[0].path
    flip(path, place_of(path, "bottlenecks", 2))
    with pytest.raises(cache.CacheError, match=r"1 of 5 rows differ .* run `python -m cache verify --repair`"):
        verify.check(cache.open(directory))
    # A row whose photo is no longer in the index does no harm.
    keep = np.flatnonzero((index.shard_ids != 0) | (index.shard_rows != 2))
    indexes.write(directory, BACKBONE, take(index, keep))
    verify.check(cache.open(directory))
