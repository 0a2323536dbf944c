"""Nothing rots unseen: every byte of a cache, one at a time."""

import contextlib
import functools
import subprocess
import sys

import numpy as np
import pytest

import cache
from cache import columns, reader, shard, store, sums, verify
from cache.store import Rejected
from tests.test_cache import REPO, fill, rows

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


@contextlib.contextmanager
def flipped(path, masks):
    """Meanwhile the bytes at some places of a file differ, each in the bits of its mask."""
    content = path.read_bytes()
    damaged = bytearray(content)
    for place, mask in masks.items():
        damaged[place] ^= mask
    # In place: a new file for each would take longer than reading it.
    with path.open("r+b") as file:
        file.write(damaged)
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.write(content)


def one_bit(place):
    """Each of the eight in turn."""
    return 1 << place % 8


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

    def is_found(masks):
        with flipped(path, masks):
            found = verify.find(small)
            assert is_named(path, found) or (found == [] and everything_in(small) == before), masks
        return bool(found)

    def invert(places):
        """All at once, and where that is found, fewer, down to one by one."""
        if is_found(dict.fromkeys(places, 255)) and len(places) > 1:
            invert(places[: len(places) // 2])
            invert(places[len(places) // 2 :])

    size = path.stat().st_size
    heard = [is_found({place: one_bit(place)}) for place in range(size)]
    # Harmless is what no array and no structure covers, such as the ends of pages.
    assert sum(heard) > 0.4 * size
    for place in np.flatnonzero(heard).tolist():
        is_found({place: 255})
    if not all(heard):
        invert(np.flatnonzero(~np.array(heard)).tolist())
    assert verify.find(small) == []


def test_a_flip_in_the_list_of_rejected_images_is_found_or_costs_another_try_at_most(small):
    path = small / store.REJECTED
    before = everything_in(small)
    for place in range(path.stat().st_size):
        for mask in (one_bit(place), 255):
            with flipped(path, {place: mask}):
                if is_named(path, verify.find(small)):
                    with pytest.raises(cache.CacheError, match=store.REJECTED):
                        store.read_rejected(small)
                    continue
                without = [value for value in everything_in(small) if value != store.read_rejected(small)]
                assert without == [value for value in before if value != REJECTED], (place, mask)


@pytest.mark.parametrize("stray", [".DS_Store", "variables/._data", "variables/.nfs0001", ".AppleDouble/data"])
def test_hidden_files_that_a_file_manager_left_are_no_damage(made, stray):
    directory, *_ = made
    path = directory / store.BACKBONE / stray
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a view")
    assert not verify.find(directory)
    (directory / store.BACKBONE / "stray").write_bytes(b"")
    assert verify.find(directory)


def test_a_flip_in_a_file_on_pages_of_full_size_is_found_or_harmless(made):
    directory, _, _ = made
    before = everything_in(directory)
    path = directory / "shards" / store.shard_names(directory)[0]
    for place in range(0, path.stat().st_size, 191):  # a sample; every byte of small pages is tried above
        for mask in (one_bit(place), 255):
            with flipped(path, {place: mask}):
                found = verify.find(directory)
                assert is_named(path, found) or (found == [] and everything_in(directory) == before), (place, mask)


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
