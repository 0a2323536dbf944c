"""Several extractions into one cache at once."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cache
from cache import shard, store, verify
from cache.shard import Rows
from cache.writer import Writer
from extract import share
from extract.images import list_images
from tests.pictures import make_folder

REPO = Path(__file__).resolve().parent.parent
MODULE = store.Module("tiny", "tiny at its own size", "0123456789abcdef", 16, 16, "none", 3)
OWN = "-ours.h5"


@pytest.fixture
def images(tmp_path):
    return list_images(make_folder(tmp_path / "photos", {"a": 7, "b": 6}))


def commit(directory, images, positions, **changed):
    """As another extraction does."""
    facts = {"sizes": images.sizes[positions], "mtimes": images.mtimes[positions], **changed}
    prints, vectors = np.zeros(len(positions), np.uint64), np.zeros((len(positions), 3), np.float32)
    with Writer(directory, MODULE.attributes()) as writer:
        writer.append(Rows(images.paths.take(positions), fingerprints=prints, bottlenecks=vectors, **facts))
    return writer.own_end


def taken(work, own=OWN):
    return sorted(np.concatenate(list(work.pieces(own))).tolist())


def test_alone_every_missing_image_is_handed_out_once(tmp_path, images, monkeypatch):
    monkeypatch.setattr(share, "PIECE", 3)
    missing = np.array([0, 1, 3, 4, 5, 8, 9, 12])
    work = share.Work(images, missing, tmp_path / "cache")
    pieces = list(work.pieces(OWN))
    assert max(map(len, pieces)) == 3
    assert sorted(np.concatenate(pieces).tolist()) == missing.tolist()
    assert work.left_out == 0


def test_what_another_has_committed_meanwhile_is_left_out(tmp_path, images):
    work = share.Work(images, np.arange(13), tmp_path / "cache")
    commit(tmp_path / "cache", images, np.array([2, 5, 11]))
    assert taken(work) == [0, 1, 3, 4, 6, 7, 8, 9, 10, 12]
    assert work.left_out == 3


def test_it_is_left_out_from_the_next_piece_on(tmp_path, images, monkeypatch):
    monkeypatch.setattr(share, "PIECE", 1)
    work = share.Work(images, np.arange(13), tmp_path / "cache")
    pieces = work.pieces(OWN)
    first = next(pieces)
    others = np.setdiff1d(np.arange(13), first)[:4]
    commit(tmp_path / "cache", images, others)
    rest = np.concatenate(list(pieces))
    assert sorted([*rest, *others, *first]) == list(range(13))
    assert work.left_out == 4


def test_images_that_have_changed_since_another_made_them_are_not_left_out(tmp_path, images):
    work = share.Work(images, np.arange(13), tmp_path / "cache")
    positions = np.array([2, 5, 11])
    commit(tmp_path / "cache", images, positions, mtimes=images.mtimes[positions] + [0, 1, 0])
    commit(tmp_path / "cache", images, positions[2:] - 1, sizes=images.sizes[positions[2:]] + 1)
    assert sorted(set(range(13)) - set(taken(work))) == [2, 11]


def test_our_own_shards_are_no_news_and_broken_ones_no_hindrance(tmp_path, images):
    work = share.Work(images, np.arange(13), tmp_path / "cache")
    own = commit(tmp_path / "cache", images, np.array([2]))
    (tmp_path / "cache" / "shards" / "20000101T000000-broken.h5").write_bytes(b"no HDF5")
    assert taken(work, own) == list(range(13))


SCRIPT = """
import sys, time
from pathlib import Path
from cache import command, writer
from extract import share
from extract.__main__ import main
command.import_tensorflow()
share.PIECE, writer.COMMIT_SECONDS, append = 4, 0, writer.Writer.append
def slowly(self, rows):
    append(self, rows)
    time.sleep(0.05)
writer.Writer.append = slowly
here, number, *arguments = sys.argv[1:]
Path(here, "ready" + number).touch()
while len(list(Path(here).glob("ready*"))) < 2:
    time.sleep(0.01)
sys.exit(command.run(main, arguments))
"""


def test_two_at_once_share_the_work_and_both_end_with_all_of_it(tmp_path, module):
    count = 160
    photos = make_folder(tmp_path / "photos", {"a": count // 2, "b": count // 2})
    flags = ["--image_dir", photos, "--cache_dir", tmp_path / "cache", "--module", module, "--batch_size", "2"]
    command = [sys.executable, "-c", SCRIPT, tmp_path]
    two = [
        subprocess.Popen(
            [*map(str, command), str(number), *map(str, flags), "--engine", "tensorflow", "--precision", "float32"],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    computed = [int(re.search(r"(\d+) computed", out)[1]) for out, _ in outputs]
    assert min(computed) > 0
    # Each may repeat what the other has in hand: pieces that are being decoded and computed, and are not committed.
    assert count <= sum(computed) < 1.5 * count
    [directory] = store.directories(tmp_path / "cache")
    assert verify.find(directory) == []
    opened = cache.open(tmp_path / "cache")
    assert list(opened.paths) == list(list_images(photos).paths)
    # What both made is the same to the last bit.
    vectors = {}
    for name in store.shard_names(directory):
        rows = shard.read(directory / store.SHARDS / name).rows
        for path, vector in zip(rows.paths, rows.bottlenecks, strict=True):
            assert vectors.setdefault(path, vector.tobytes()) == vector.tobytes()
    assert len(vectors) == count
