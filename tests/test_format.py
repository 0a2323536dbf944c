"""A sample of the cache's format as it was committed: every later version has to read it.

`python -m tests.test_format DIR` made it. Nothing of it is ever written anew: a new format gets a sample of its own.
"""

import io
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image, ImageColor

import cache
from cache import store, sums, thumbnails, verify
from cache.shard import Rows
from cache.strings import Strings
from cache.writer import Writer

SAMPLE = Path(__file__).parent / "data" / "cache-2" / "sample-0123456789abcdef"
MODULE = store.Module("sample", "sample at its own size", "0123456789abcdef", 20, 30, "none", 4)
ORDER = [(1, 0), (0, 2), (0, 0), (1, 1)]  # the images: where each has its bottleneck, shard and row


def vectors(shard_id, count):
    """10 times the shard, plus the row, plus a sixteenth for each column: all of them exact in float16."""
    return 10 * shard_id + np.arange(count)[:, None] + np.arange(4) / 16


def write(directory: Path) -> None:
    for shard_id, (count, dtype, precision) in enumerate([(3, "float16", "mixed_bfloat16"), (2, "float32", "float32")]):
        attributes = {**MODULE.attributes(), "precision": precision, "engine": "tensorflow"}
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
    shard_ids, rows = np.array(ORDER, np.int32).T
    paths = Strings.of(["a/10.jpg", "a/ä.jpg", "b/00.jpg", "b/11.jpg"])
    numbers = np.arange(4)
    labels = np.array([0, 0, 1, 1], np.int32)
    names = store.shard_names(directory)
    store.write_index(
        directory,
        MODULE,
        store.Index("/photos", ["a", "b"], names, paths, numbers, numbers + 1, labels, shard_ids, rows),
    )
    store.write_rejected(directory, [store.Rejected("a/broken.jpg", 5, 6, "not an image")])
    backbone = directory / store.BACKBONE
    backbone.mkdir()
    (backbone / "saved_model.pb").write_bytes(b"no network: this sample is about the files around it")
    sums.write(backbone)


def test_the_sample_reads_as_it_was_written():
    opened = cache.open(SAMPLE.parent)
    assert opened.module == MODULE
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
    assert store.read_rejected(SAMPLE) == [store.Rejected("a/broken.jpg", 5, 6, "not an image")]


def test_the_samples_thumbnails_are_there():
    """Added later, by `thumbnails.write`: of the second and the last image."""
    found = thumbnails.find(cache.open(SAMPLE.parent), np.arange(4))
    assert [content is None for content in found] == [True, False, True, False]
    for content, colour in ((found[1], "red"), (found[3], "blue")):
        picture = Image.open(io.BytesIO(content))
        assert (picture.format, picture.size) == ("JPEG", (4, 3))
        # What a JPEG's conversion of colours rounds.
        assert np.abs(np.asarray(picture).astype(int) - ImageColor.getrgb(colour)).max() <= 2


def test_the_samples_checksums_agree():
    assert verify.find(SAMPLE) == []


@pytest.mark.parametrize("row", range(3))
def test_a_checksum_is_that_of_the_rows_bytes_as_the_format_says(row):
    """From FORMAT.md alone: CRC-32, bit by bit, of the columns that `covers` names."""
    with h5py.File(SAMPLE / "shards" / store.shard_names(SAMPLE)[0]) as file:
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
