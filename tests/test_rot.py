"""Nothing rots unseen: every byte of a cache, one at a time; and a repair takes exactly what is damaged."""

import functools
import json
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest

import cache
from cache import columns, command, reader, shard, store, sums, verify
from cache.__main__ import main
from cache.store import Rejected
from tests.test_cache import COUNT, REPO, fill, rows

REJECTED = [Rejected('a/quote " and,\nline.jpg', 12, 34, "broken"), Rejected("b/ü.jpg", 0, -1, "gone")]


def make(directory, counts=(5, 1, 7)):
    """A store with everything that one may hold; its backbone is a stub, which nobody loads."""
    index, vectors = fill(directory, [rows(count, seed) for seed, count in enumerate(counts)])
    store.write_rejected(directory, REJECTED)
    (directory / store.BACKBONE / "variables").mkdir(parents=True)
    (directory / store.BACKBONE / "saved_model.pb").write_bytes(b"the network")
    (directory / store.BACKBONE / "variables" / "data").write_bytes(b"its weights")
    sums.write(directory / store.BACKBONE)
    return index, vectors


@pytest.fixture
def made(tmp_path):
    directory = tmp_path / "tiny-0123456789abcdef"
    return directory, *make(directory)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One shard, on small pages: most of a real file's are empty, and there are as many flips as bytes."""
    directory = tmp_path_factory.mktemp("rot") / "tiny-0123456789abcdef"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_PAGE", 512)
        make(directory, [2])
    return directory


def everything_in(directory):
    """All that the public functions tell of a store, as values that can be compared."""
    opened = cache.open(directory)
    told = [
        opened.module,
        opened.labels,
        opened.label_ids.tolist(),
        list(opened.paths),
        opened.bottlenecks(np.arange(len(opened))).tobytes(),
        [(where, vectors.tobytes()) for where, vectors in opened.mapped()],
        opened.index.image_dir,
        *(getattr(opened.index, name).tolist() for name in store.NUMBERS),
        store.read_rejected(directory),
    ]
    for one in opened.shards:
        told += [one.path, dict(one.attributes), list(one.rows.paths)]
        told += [getattr(one.rows, name).tobytes() for name in shard.NUMBERS]
    return told


def flips(path):
    """Each byte of a file in turn differs: by one bit, each of the eight in turn, or in all of them."""
    content = path.read_bytes()
    for place in range(len(content)):
        mask = (1, 2, 4, 8, 16, 32, 64, 128, 255)[place % 9]
        # In place: a new file for each would take longer than reading it.
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ mask]))
        yield place
        with path.open("r+b") as file:
            file.seek(place)
            file.write(content[place : place + 1])


def is_named(path, found):
    return any(path == damage.path or path.is_relative_to(damage.path) for damage in found)


@pytest.mark.parametrize("name", ["index.h5", "shard", "saved_model.pb", "data", "SHA256SUMS"])
def test_every_flipped_byte_is_found_or_harmless(small, name, monkeypatch):
    path = small / "shards" / store.shard_names(small)[0] if name == "shard" else next(small.rglob(name))
    before = everything_in(small)
    # Reading what stays as it is anew for each flip would take most of the time.
    if name != "shard":
        monkeypatch.setattr(shard, "read", functools.cache(shard.read))
    if name != "index.h5":
        remembered = functools.cache(store.read_index_table)
        monkeypatch.setattr(store, "read_index_table", remembered)
        monkeypatch.setattr(reader, "read_index_table", remembered)
    count = 0
    for place in flips(path):
        found = verify.find(small)
        assert is_named(path, found) or (found == [] and everything_in(small) == before), place
        count += bool(found)
    # Harmless is what no array and no structure covers, such as the ends of pages.
    assert count > 0.4 * path.stat().st_size
    assert verify.find(small) == []


def test_a_flip_in_the_list_of_rejected_images_is_found_or_costs_another_try_at_most(small):
    path = small / store.REJECTED
    before = everything_in(small)
    for place in flips(path):
        if is_named(path, verify.find(small)):
            with pytest.raises(cache.CacheError, match=store.REJECTED):
                store.read_rejected(small)
            continue
        without = [value for value in everything_in(small) if value != store.read_rejected(small)]
        assert without == [value for value in before if value != REJECTED], place


def test_a_flip_in_a_file_on_pages_of_full_size_is_found_or_harmless(made):
    directory, _, _ = made
    before = everything_in(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    for place in flips(path):
        if place % 191 == 0:  # a sample; every byte of small pages is tried above
            found = verify.find(directory)
            assert is_named(path, found) or (found == [] and everything_in(directory) == before), place


def place_of(path, array, row):
    """Where in a file the row of an array begins."""
    with h5py.File(path) as file:
        dataset = file[array]
        return dataset.id.get_offset() + row * dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=int))


def flip(path, place, mask=1):
    content = bytearray(path.read_bytes())
    content[place] ^= mask
    path.write_bytes(content)


def view(directory):
    """path -> (label, size, mtime, vector) of every image."""
    opened = cache.open(directory)
    vectors = opened.bottlenecks(np.arange(len(opened)))
    index = opened.index
    return {
        path: (opened.labels[index.label_ids[i]], int(index.sizes[i]), int(index.mtimes[i]), vectors[i].tobytes())
        for i, path in enumerate(opened.paths)
    }


def assert_only_lost(directory, before, lost):
    """After a repair nothing but the images `lost` is missing, and a second one finds nothing."""
    assert verify.find(directory) == []
    assert verify.repair(directory) == []
    assert view(directory) == {path: row for path, row in before.items() if path not in lost}


@pytest.mark.parametrize("array", ["bottlenecks", "sizes", "mtimes", "fingerprints", "rows_checksums"])
@pytest.mark.parametrize("row", [0, 3, 4])
def test_repair_drops_the_damaged_row_of_a_shard_alone(made, array, row):
    directory, _, _ = made
    before = view(directory)
    name = store.shard_names(directory)[0]
    path = directory / "shards" / name
    lost = shard.read(path).rows.paths[row]
    flip(path, place_of(path, array, row))
    [found] = verify.repair(directory)
    assert (found.path, found.rows.tolist()) == (path, [row])
    assert not path.exists()
    assert_only_lost(directory, before, {lost})
    assert sum(len(one) for one in cache.open(directory).shards) == 13 - 1


def test_repair_drops_the_row_whose_path_is_damaged(made):
    directory, _, _ = made
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    paths = shard.read(path).rows.paths
    lost = paths[3]
    flip(path, place_of(path, "paths", int(paths.offsets[3])))
    verify.repair(directory)
    assert_only_lost(directory, before, {lost})


@pytest.mark.parametrize("mask", [1, 0x80])
def test_repair_drops_both_rows_of_a_damaged_offset(made, mask):
    directory, _, _ = made
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    paths = list(shard.read(path).rows.paths)
    flip(path, place_of(path, "paths_offsets", 2), mask)
    verify.repair(directory)
    assert_only_lost(directory, before, set(paths[1:3]))


@pytest.mark.parametrize("array", ["sizes", "mtimes", "label_ids", "shard_ids", "shard_rows", "images_checksums"])
def test_repair_drops_the_damaged_row_of_an_index_alone(made, array):
    directory, index, _ = made
    before = view(directory)
    shards = store.shard_names(directory)
    path = directory / store.INDEX
    flip(path, place_of(path, array, 6))
    [found] = verify.repair(directory)
    assert (found.path, found.rows.tolist()) == (path, [6])
    assert_only_lost(directory, before, {index.paths[6]})
    assert store.shard_names(directory) == shards


def test_repair_drops_rows_that_point_nowhere(made):
    directory, index, _ = made
    before = view(directory)
    shard_rows, shard_ids = np.array(index.shard_rows), np.array(index.shard_ids)
    shard_rows[2], shard_ids[9], shard_rows[4] = 7, 3, -1
    module, _ = store.read_index(directory)
    store.write_index(directory, module, replace(index, shard_rows=shard_rows, shard_ids=shard_ids))
    [found] = verify.find(directory)
    assert "3 of 13 images point nowhere" in str(found)
    verify.repair(directory)
    assert_only_lost(directory, before, {index.paths[i] for i in (2, 4, 9)})


@pytest.mark.parametrize("lost", [1, 50, COUNT - 1])
def test_the_rows_before_a_cut_survive(tmp_path, lost):
    directory = tmp_path / "tiny"
    fill(directory, [rows(COUNT, 0), rows(3, 1)])
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    paths = list(shard.read(path).rows.paths)
    content = path.read_bytes()
    path.write_bytes(content[: place_of(path, "bottlenecks", COUNT - lost) + 1])
    [found] = verify.repair(directory)
    assert (found.path, found.rows.tolist()) == (path, list(range(COUNT - lost, COUNT)))
    assert_only_lost(directory, before, set(paths[COUNT - lost :]))


def test_a_shard_cut_before_its_rows_is_dropped_whole(made):
    directory, _, _ = made
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[2]
    lost = set(shard.read(path).rows.paths)
    path.write_bytes(path.read_bytes()[:200])
    verify.repair(directory)
    assert_only_lost(directory, before, lost)


def test_images_of_a_missing_shard_are_dropped(made):
    directory, _, _ = made
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    lost = set(shard.read(path).rows.paths)
    path.unlink()
    [found] = verify.find(directory)
    assert found.path == directory / store.INDEX
    assert f"shards/{path.name} is missing" in str(found)
    verify.repair(directory)
    assert_only_lost(directory, before, lost)
    assert path.name not in cache.open(directory).index.shards


def test_a_shard_with_a_damaged_header_is_dropped_whole(made):
    directory, _, _ = made
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    lost = set(shard.read(path).rows.paths)
    flip(path, 9)
    verify.repair(directory)
    assert_only_lost(directory, before, lost)


def test_an_index_with_a_damaged_header_is_dropped_and_the_shards_stay(made):
    directory, _, _ = made
    shards = store.shard_names(directory)
    flip(directory / store.INDEX, 9)
    verify.repair(directory)
    assert not (directory / store.INDEX).exists()
    assert store.shard_names(directory) == shards
    assert verify.find(directory) == []


@pytest.mark.parametrize("damage", ["flip", "lose", "add", "link"])
def test_a_damaged_backbone_is_named_and_dropped_alone(made, damage):
    directory, _, _ = made
    before = view(directory)
    backbone = directory / store.BACKBONE
    if damage == "flip":
        flip(backbone / "saved_model.pb", 3)
    elif damage == "lose":
        (backbone / "variables" / "data").unlink()
    elif damage == "add":
        (backbone / "assets").write_text("more")
    else:
        (backbone / "assets").symlink_to(REPO)
    [found] = verify.repair(directory)
    assert found.path == backbone
    assert not backbone.exists()
    assert (REPO / "cache").exists()
    assert_only_lost(directory, before, set())


def test_a_damaged_list_of_rejected_images_is_dropped_alone(made):
    directory, _, _ = made
    before = view(directory)
    (directory / store.REJECTED).write_text("no,table")
    verify.repair(directory)
    assert store.read_rejected(directory) == []
    assert_only_lost(directory, before, set())


def cache_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cache", *map(str, arguments)], cwd=REPO, capture_output=True, text=True
    )


def test_the_command_finds_repairs_and_then_finds_nothing(made):
    directory, _, _ = made
    before = view(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    lost = shard.read(path).rows.paths[1]
    flip(path, place_of(path, "bottlenecks", 1))
    found = cache_command("verify", directory.parent)
    assert found.returncode == 2
    assert f"{path}: 1 of 5 rows differ from their checksums: 1 ({lost})" in found.stdout
    [line] = found.stderr.splitlines()
    assert line.startswith(f"error: {directory} is damaged; `python -m cache verify --repair")
    repaired = cache_command("verify", "--repair", directory.parent)
    assert (repaired.returncode, repaired.stderr) == (0, "")
    assert "repaired" in repaired.stdout
    assert cache_command("verify", directory.parent).stdout == f"{directory}: sound\n"
    assert_only_lost(directory, before, {lost})


def test_the_command_tells_it_to_programs_too(made, capsys):
    directory, _, _ = made
    path = directory / "shards" / store.shard_names(directory)[2]
    flip(path, place_of(path, "bottlenecks", 6))
    for arguments, status, sound, repaired in [
        (["verify", "--json"], 2, False, False),
        (["verify", "--json", "--repair"], 0, False, True),
        (["verify", "--json"], 0, True, False),
    ]:
        assert command.run(main, [*arguments, str(directory)]) == status
        [told] = json.loads(capsys.readouterr().out)
        assert (told["directory"], told["sound"], told["repaired"]) == (str(directory), sound, repaired)
        assert [(one["path"], one["rows"]) for one in told["damage"]] == ([] if sound else [(str(path), [6])])


def test_training_checks_the_rows_that_it_uses(made):
    directory, index, _ = made
    opened = cache.open(directory)
    verify.check(opened)
    path = opened.shards[0].path
    flip(path, place_of(path, "bottlenecks", 2))
    with pytest.raises(cache.CacheError, match=r"1 of 5 rows differ .* run `python -m cache verify --repair`"):
        verify.check(cache.open(directory))
    # The row of an image that left the view does no harm.
    keep = np.flatnonzero((index.shard_ids != 0) | (index.shard_rows != 2))
    numbers = {name: getattr(index, name)[keep] for name in store.NUMBERS}
    store.write_index(directory, opened.module, replace(index, paths=index.paths.take(keep), **numbers))
    verify.check(cache.open(directory))


ENDLESS = """
import numpy as np
from cache.columns import Table
from cache.strings import Strings
count, long = 1 << 17, np.zeros(1 << 26, np.uint8)
offsets = np.tile(np.array([0, len(long)]), count // 2 + 1)[: count + 1]
table = Table({"paths": Strings(long, offsets)}, np.zeros(count, np.uint32))
assert table.damaged().tolist() == list(range(count))
"""


def test_strings_that_share_their_bytes_are_not_read_for_ever():
    # Four terabytes, if each were read: a process of its own, for nothing interrupts zlib's loop.
    subprocess.run([sys.executable, "-c", ENDLESS], cwd=REPO, check=True, timeout=60)
