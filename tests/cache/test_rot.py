"""No damage goes unnoticed: every byte of a cache is flipped, one at a time.

With LONG=1 in the environment each byte is flipped in one bit and then in all, otherwise in one of the two ways.
"""

import functools
import os
import subprocess
import sys

import pytest

import cache
from cache import hdf5, layout, manifest, rejected, shard, verify
from cache import index as indexes
from tests.damage import flipped
from tests.processes import REPO
from tests.random_cache import NAME, REJECTED, content, fill_with_everything, shard_paths

LONG = bool(os.environ.get("LONG"))
ALL_BITS = 255


@pytest.fixture
def made(tmp_path):
    fill_with_everything(tmp_path / NAME)
    return tmp_path / NAME


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One shard of two rows, in files with pages of 512 bytes, the fewest that HDF5 allows.

    There are as many flips as bytes, and most of a page of 8,192 bytes would be empty.
    """
    directory = tmp_path_factory.mktemp("rot") / NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5, "_PAGE", 512)
        fill_with_everything(directory, [2])
    return directory


def one_bit(place):
    """A mask of one bit, another for the next place."""
    return 1 << place % 8


def masks_of(place):
    if LONG:
        return [one_bit(place), ALL_BITS]
    return [(1, 2, 4, 8, 16, 32, 64, 128, ALL_BITS)[place % 9]]


def is_named(path, damages):
    return any(path == damage.path or path.is_relative_to(damage.path) for damage in damages)


@pytest.mark.parametrize("name", ["index.h5", "shard", "saved_model.pb", "data", "SHA256SUMS"])
def test_every_flipped_byte_is_found_or_harmless(small, name, monkeypatch):
    path = shard_paths(small)[0] if name == "shard" else next(small.rglob(name))
    before = content(small)
    # The files that stay as they are are read once. To read them for each flip would take most of the time.
    if name != "shard":
        monkeypatch.setattr(shard, "read", functools.cache(shard.read))
    if name != "index.h5":
        monkeypatch.setattr(indexes, "read_table", functools.cache(indexes.read_table))
    if name in ("shard", "index.h5"):
        monkeypatch.setattr(manifest, "damage", functools.cache(manifest.damage))

    def is_found(masks):
        with flipped(path, masks):
            damages = verify.find(small)
            assert is_named(path, damages) or (damages == [] and content(small) == before), list(masks)
        return bool(damages)

    def invert(places):
        """Flips all bits of these bytes at once, and where that is found, of fewer, down to one by one."""
        if places and is_found(dict.fromkeys(places, ALL_BITS)) and len(places) > 1:
            invert(places[: len(places) // 2])
            invert(places[len(places) // 2 :])

    size, harmless, block_length = path.stat().st_size, [], 16
    for start in range(0, size, block_length):
        block = range(start, min(start + block_length, size))
        # The free space at the end of a page is covered by no checksum and read by nobody: one flip shows that a whole
        # block lies there.
        if not is_found({place: one_bit(place) for place in block}):
            harmless += block
        else:
            harmless += [place for place in block if not all(is_found({place: mask}) for mask in masks_of(place))]
    assert len(harmless) < 0.6 * size
    invert(harmless)
    assert verify.find(small) == []


def test_a_flip_in_the_list_of_rejected_photos_is_found_or_costs_another_try_at_most(small):
    path = small / layout.REJECTED
    before = content(small)
    for place in range(path.stat().st_size):
        for mask in (one_bit(place), ALL_BITS):
            with flipped(path, {place: mask}):
                if is_named(path, verify.find(small)):
                    with pytest.raises(cache.CacheError, match=layout.REJECTED):
                        rejected.read(small)
                    continue
                others = [value for value in content(small) if value != rejected.read(small)]
                assert others == [value for value in before if value != REJECTED], (place, mask)


@pytest.mark.parametrize("stray", [".DS_Store", "variables/._data", "variables/.nfs0001", ".AppleDouble/data"])
def test_hidden_files_that_a_file_manager_left_are_no_damage(made, stray):
    path = made / layout.BACKBONE / stray
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a view")
    assert not verify.find(made)
    (made / layout.BACKBONE / "stray").write_bytes(b"")
    assert verify.find(made)


def test_a_flip_in_a_file_on_pages_of_full_size_is_found_or_harmless(made):
    before = content(made)
    path = shard_paths(made)[0]
    for place in range(0, path.stat().st_size, 191):  # a sample: every byte of a file with small pages is tried above
        for mask in (one_bit(place), ALL_BITS):
            with flipped(path, {place: mask}):
                damages = verify.find(made)
                assert is_named(path, damages) or (damages == [] and content(made) == before), (place, mask)


ENDLESS = """
import numpy as np
from cache.table import Table
from cache.strings import Strings
count, long = 1 << 17, np.zeros(1 << 26, np.uint8)
offsets = np.tile(np.array([0, len(long)]), count // 2 + 1)[: count + 1]
table = Table({"paths": Strings(long, offsets)}, np.zeros(count, np.uint32))
assert table.damaged().tolist() == list(range(count))
"""


def test_strings_that_share_their_bytes_are_not_read_for_ever():
    """They would be four terabytes. In a process of its own, since nothing interrupts the loop of zlib."""
    subprocess.run([sys.executable, "-c", ENDLESS], cwd=REPO, check=True, timeout=60)
