"""A sample of the cache's format as it was committed: every later version has to read it.

`python -m tests.cache.test_format DIR` wrote it. It is never written again: a new format gets a sample of its own.
"""

import io
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageColor

import cache
from cache import index as indexes
from cache import layout, manifest, rejected, thumbnails, verify
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer
from tests.processes import REPO

SAMPLE = REPO / "tests" / "data" / "cache-2" / "sample-0123456789abcdef"
BACKBONE = layout.BackboneInfo("sample", "sample at its own size", "0123456789abcdef", 20, 30, "none", 4)
PLACES = [(1, 0), (0, 2), (0, 0), (1, 1)]  # the shard and the row of each photo's bottleneck


def vectors(shard_id, count):
    """10 times the shard, plus the row, plus a sixteenth for each column: all of them exact in float16."""
    return 10 * shard_id + np.arange(count)[:, None] + np.arange(4) / 16


def write(directory: Path) -> None:
    for shard_id, (count, dtype, precision) in enumerate([(3, "float16", "mixed_bfloat16"), (2, "float32", "float32")]):
        attributes = {**BACKBONE.attributes(), "precision": precision, "engine": "tensorflow"}
        numbers = np.arange(count)
        paths = Strings.of(f"a/{shard_id}{row}.jpg" for row in numbers)
        with Writer(directory, attributes) as writer:
            writer.append(
                Rows(
                    paths,
                    numbers + 100,
                    numbers + 200,
                    numbers.astype("u8") + 300,
                    vectors(shard_id, count).astype(dtype),
                )
            )
    shard_ids, rows = np.array(PLACES, np.int32).T
    paths = Strings.of(["a/10.jpg", "a/ä.jpg", "b/00.jpg", "b/11.jpg"])
    numbers = np.arange(4)
    labels = np.array([0, 0, 1, 1], np.int32)
    names = layout.shard_names(directory)
    indexes.write(
        directory,
        BACKBONE,
        indexes.Index("/photos", ["a", "b"], names, paths, numbers, numbers + 1, labels, shard_ids, rows),
    )
    rejected.write(directory, [rejected.Rejected("a/broken.jpg", 5, 6, "not an image")])
    backbone = directory / layout.BACKBONE
    backbone.mkdir()
    (backbone / "saved_model.pb").write_bytes(b"no network: this sample is about the files around it")
    manifest.write(backbone)


def test_the_sample_reads_as_it_was_written():
    opened = cache.open(SAMPLE.parent)
    assert opened.backbone == BACKBONE
    assert opened.labels == ["a", "b"]
    assert opened.label_ids.tolist() == [0, 0, 1, 1]
    assert list(opened.paths) == ["a/10.jpg", "a/ä.jpg", "b/00.jpg", "b/11.jpg"]
    assert opened.index.image_dir == "/photos"
    assert opened.index.mtimes.tolist() == [1, 2, 3, 4]
    columns = np.array([0, 0.0625, 0.125, 0.1875])
    assert opened.bottlenecks(np.arange(4)).tolist() == [(first + columns).tolist() for first in (10, 2, 0, 11)]
    assert [s.rows.bottlenecks.dtype for s in opened.shards] == [np.float16, np.float32]
    assert [s.attributes["precision"] for s in opened.shards] == ["mixed_bfloat16", "float32"]
    assert opened.shards[0].rows.fingerprints.tolist() == [300, 301, 302]
    assert rejected.read(SAMPLE) == [rejected.Rejected("a/broken.jpg", 5, 6, "not an image")]


def test_the_thumbnails_of_the_sample_are_found():
    """They are of the second and the last photo. `thumbnails.write` added them later."""
    found = thumbnails.find(cache.open(SAMPLE.parent), np.arange(4))
    assert [content is None for content in found] == [True, False, True, False]
    for content, colour in ((found[1], "red"), (found[3], "blue")):
        picture = Image.open(io.BytesIO(content))
        assert (picture.format, picture.size) == ("JPEG", (4, 3))
        # A JPEG rounds when it converts colours.
        assert np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(colour)).max() <= 2


def test_the_checksums_of_the_sample_agree():
    assert verify.find(SAMPLE) == []


@pytest.mark.parametrize("row", range(3))
def test_a_checksum_is_what_the_format_says(row):
    """Written from FORMAT.md alone: the CRC-32 of the columns that `covers` names, computed bit by bit."""
    with h5py.File(SAMPLE / "shards" / layout.shard_names(SAMPLE)[0]) as file:
        covers = file["rows_checksums"].attrs["covers"]
        covers = (covers.decode() if isinstance(covers, bytes) else covers).split()
        assert covers == ["paths", "sizes", "mtimes", "fingerprints", "bottlenecks"]
        start, end = file["paths_offsets"][row : row + 2]
        content = file["paths"][start:end].tobytes() + b"".join(file[name][row].tobytes() for name in covers[1:])
        stored = int(file["rows_checksums"][row])
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    assert crc ^ 0xFFFFFFFF == stored


if __name__ == "__main__":
    write(Path(sys.argv[1]))
