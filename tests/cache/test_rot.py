"""No damage goes unnoticed: bytes of a cache are flipped, one at a time, and each is found or harmless.

With LONG=1 in the environment every byte of every file is, in one bit and then in all; otherwise a sample. The empty
rest of HDF5's pages, zeros among zeros, is flipped 16 bytes at a time.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cache import files, layout, thumbnails, verify
from tests.damage import FOOTER
from tests.processes import REPO
from tests.random_cache import BACKBONE, NAME, fill, fill_with_everything, rows

LONG = bool(os.environ.get("LONG"))
ALL_BITS = 255
PARTS = 16 if LONG else 1  # that can be tried at the same time
THOROUGH = 16  # after one of so many flips, the cache is used for everything and repaired


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A cache with a file of every kind, and few rows: most flips are in what describes them."""
    directory = tmp_path_factory.mktemp("rot") / NAME
    index, _ = fill_with_everything(directory, [3])
    # Only as much of a JPEG as is looked at.
    jpegs = [b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x01\x00\x01" + name for name in (b"1st", b"2nd", b"3rd")]
    thumbnails.write(directory, [thumbnails.of(index, np.arange(3), jpegs)])
    changed = BACKBONE.augmented("flip (1), seed 0, version 1")
    fill(layout.augmentation_dir(directory, 1, changed), [rows(3, 0)], changed)
    return directory


@pytest.fixture(scope="module")
def without_footers(whole, tmp_path_factory):
    """The same as an earlier version wrote it."""
    directory = shutil.copytree(whole, tmp_path_factory.mktemp("earlier") / NAME)
    for path in directory.rglob("*.h5"):
        os.truncate(path, path.stat().st_size - FOOTER)
    return directory


def tries_on(directory, pattern="*"):
    """Flips in the files that match, as `tests.flips` takes them, the same at each call."""
    chance, tries = random.Random(0), []
    for path in sorted(path for path in directory.rglob(pattern) if path.is_file() and path.name != files.LOCK):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        is_empty = np.convolve(content != 0, np.ones(17))[8:-8] == 0
        near, far = np.flatnonzero(~is_empty)[:, None].tolist(), chunks(np.flatnonzero(is_empty).tolist(), 16)
        if not LONG:
            near, far = spread(near, 8 + len(near) // 150, chance), spread(far, 2, chance)
        for places in near + far:
            masks = [1 << places[0] % 8, ALL_BITS]
            for mask in masks if LONG else [chance.choice(masks)]:
                tries.append((str(path.relative_to(directory)), places, mask, len(tries) % THOROUGH == 0))
    return tries


def chunks(items, length):
    return [items[start : start + length] for start in range(0, len(items), length)]


def spread(items, count, chance):
    """One at random from each of `count` equal stretches; all of them if they are fewer."""
    edges = [len(items) * i // count for i in range(count + 1)]
    return [chance.choice(items[start:stop]) for start, stop in itertools.pairwise(edges) if start < stop]


@pytest.mark.parametrize("part", range(PARTS))
def test_a_flipped_byte_is_found_or_harmless_in_a_process_that_read_nothing_before(whole, part):
    try_all(whole, tries_on(whole)[part::PARTS])


@pytest.mark.parametrize("part", range(PARTS))
def test_a_flipped_byte_of_an_index_without_a_footer_is_found_or_harmless(without_footers, part):
    try_all(without_footers, tries_on(without_footers, layout.INDEX)[part::PARTS])


def try_all(whole, tries):
    assert verify.find(whole) == []
    done = subprocess.run(
        [sys.executable, "-m", "tests.flips", whole],
        input=json.dumps(tries),
        stdout=subprocess.PIPE,
        cwd=REPO,
        text=True,
        check=True,
    )
    broken = json.loads(done.stdout)
    assert not broken, "\n".join(broken)
    assert verify.find(whole) == []


@pytest.mark.parametrize("stray", [".DS_Store", "variables/._data", "variables/.nfs0001", ".AppleDouble/data"])
def test_hidden_files_that_a_file_manager_left_are_no_damage(tmp_path, stray):
    made = tmp_path / NAME
    fill_with_everything(made)
    path = made / layout.BACKBONE / stray
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a view")
    assert not verify.find(made)
    (made / layout.BACKBONE / "stray").write_bytes(b"")
    assert verify.find(made)


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
