"""Reading, writing and opening a cache: ours beside a mapped array, HDF5 read by h5py, TFRecord, and text files.

The first turn, which is not counted, leaves all files in the system's page cache. So what is read comes from memory,
and the figures do not depend on the disk.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
import tensorflow as tf

import cache as bottlenecks
from benchmarks import measure, synthetic
from benchmarks.measure import Contender, Options, Result
from cache import layout
from cache.reader import Cache
from cache.writer import Writer
from train.data import batches
from train.data.batches import Images

SUITE = "cache"
ROWS = 400_000  # 1 GB at float16
BATCH = 100
OPEN_MB = 1000  # target of the memory of a process that opens ten million photos

Key = TypeVar("Key")


def reading(options: Options) -> Iterator[Result]:
    """Bottlenecks in order and in random batches, beside the same vectors in other formats."""
    folder = options.scratch / "reading"
    count = options.scaled(ROWS, least=500)
    cache = bottlenecks.open(synthetic.write(folder / "cache", count))
    array = _npy(folder / "vectors.npy", cache)
    hdf5 = _hdf5(folder / "vectors.h5", array)
    subset = array[: max(BATCH, count // 20)]  # for the slow formats: rates compare whatever the amount
    records = _tfrecord(folder / "vectors.tfrecord", subset)
    texts = _texts(folder / "texts", subset[: options.scaled(500, least=BATCH)])
    gigabytes = array.nbytes / 1e9
    step = batches.BLOCK_BYTES // Images(cache, np.arange(0)).row_bytes
    figures = measure.turns(
        {
            "ours": measure.rate(gigabytes, lambda: _read_each(cache.bottlenecks, _blocks(count, step))),
            "memmap": measure.rate(gigabytes, lambda: _in_order(array, step)),
            "h5py": measure.rate(gigabytes, lambda: _in_order(hdf5, step)),
            "TFRecord": measure.rate(subset.nbytes / 1e9, lambda: _read_tfrecord(records)),
        },
        options.repeats,
    )
    for name, target in (("memmap", 0.95), ("h5py", None), ("TFRecord", None)):
        yield Result(SUITE, "read in order", "GB/s", figures["ours"], name, figures[name], target=target)

    batch_count = options.scaled(1000, least=4)
    random = np.random.default_rng(0).integers(count, size=(batch_count, BATCH))
    few = random[: max(2, batch_count // 50)]
    figures = measure.turns(
        {
            "ours": measure.rate(random.size, lambda: _read_each(cache.bottlenecks, random)),
            "memmap": measure.rate(random.size, lambda: _read_each(array.__getitem__, random)),
            # h5py takes only rows in ascending order, each once.
            "h5py": measure.rate(few.size, lambda: _read_each(hdf5.__getitem__, map(np.unique, few))),
            "text": measure.rate(2 * BATCH, lambda: _read_each(_read_texts, [texts[:BATCH], texts[-BATCH:]])),
        },
        options.repeats,
    )
    for name, reference, target in (
        ("memmap", "memmap", 0.9),
        ("h5py", "h5py", None),
        ("text", "a text file each, as the tutorial's", 100.0),
    ):
        yield Result(SUITE, "random batches", "vectors/s", figures["ours"], reference, figures[name], target=target)
    hdf5.file.close()
    shutil.rmtree(folder)


def writing(options: Options) -> Iterator[Result]:
    """Shards with columns and checksums, flushed to the disk, beside numpy.save and a flush."""
    folder = options.scratch / "writing"
    folder.mkdir()
    vectors, _ = synthetic.vectors(options.scaled(ROWS // 4, least=500))
    blocks = [synthetic.rows(vectors[start : start + 4096], start) for start in range(0, len(vectors), 4096)]
    gigabytes = vectors.nbytes / 1e9

    def ours() -> None:
        with Writer(folder / "cache", synthetic.BACKBONE.attributes()) as writer:
            for rows in blocks:
                writer.append(rows)

    def numpy_save() -> None:
        with open(folder / "vectors.npy", "wb") as file:
            np.save(file, vectors)
            file.flush()
            os.fsync(file.fileno())

    def into_empty_folder(contender: Contender) -> float:
        figure = contender()
        shutil.rmtree(folder)
        folder.mkdir()
        return figure

    figures = measure.turns(
        {
            "ours": lambda: into_empty_folder(measure.rate(gigabytes, ours)),
            "numpy": lambda: into_empty_folder(measure.rate(gigabytes, numpy_save)),
        },
        options.repeats,
    )
    yield Result(SUITE, "write", "GB/s", figures["ours"], "numpy.save and fsync", figures["numpy"], target=0.7)
    shutil.rmtree(folder)


def opening(options: Options) -> Iterator[Result]:
    """A cache of ten million photos, beside reading the bytes of its index."""
    folder = synthetic.write(options.scratch / "opening", 1000)
    count = options.scaled(10_000_000, least=1000)
    synthetic.write_index(folder, np.arange(count, dtype=np.int32) % synthetic.CLASSES)
    figures = measure.turns(
        {
            "ours": measure.seconds(lambda: bottlenecks.open(folder)),
            "bytes": measure.seconds((folder / layout.INDEX).read_bytes),
        },
        options.repeats,
    )
    case = f"open {count:,} images"
    yield Result(SUITE, case, "s", figures["ours"], "read the index's bytes", figures["bytes"])
    program = [sys.executable, "-c", f"import cache; cache.open({str(folder)!r})"]
    megabytes = [measure.command(program)[1] for _ in range(options.repeats)]
    yield Result(SUITE, f"{case}, memory of the process", "MB", megabytes, target=OPEN_MB)
    shutil.rmtree(folder)


CASES = (reading, writing, opening)


def _npy(path: Path, cache: Cache) -> np.ndarray:
    """All bottlenecks in one .npy file, mapped."""
    array = np.lib.format.open_memmap(path, "w+", cache.dtype, (len(cache), cache.backbone.dimension))
    done = 0
    for vectors, _ in batches.sequential(Images(cache, np.arange(len(cache)))):
        array[done : done + len(vectors)] = vectors
        done += len(vectors)
    array.flush()
    return np.load(path, mmap_mode="r")


def _hdf5(path: Path, array: np.ndarray) -> h5py.Dataset:
    """The array as a contiguous HDF5 dataset, open for reading."""
    with h5py.File(path, "w") as file:
        file.create_dataset("vectors", data=array)
    return h5py.File(path, "r")["vectors"]


def _tfrecord(path: Path, vectors: np.ndarray) -> Path:
    """The vectors as a TFRecord file, with one tf.train.Example of raw bytes for each."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for vector in vectors:
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[vector.tobytes()]))
            example = tf.train.Example(features=tf.train.Features(feature={"vector": feature}))
            writer.write(example.SerializeToString())
    return path


def _texts(folder: Path, vectors: np.ndarray) -> list[Path]:
    """The vectors as the tutorial's script writes its bottlenecks: a file for each, with commas between the numbers."""
    folder.mkdir()
    files = [folder / f"{number:06}.txt" for number in range(len(vectors))]
    for file, vector in zip(files, vectors.astype(np.float32), strict=True):
        file.write_text(",".join(str(value) for value in vector))
    return files


def _in_order(array: np.ndarray | h5py.Dataset, step: int) -> None:
    """Reads all rows, `step` at a time."""
    for start in range(0, len(array), step):
        block = array[start : start + step]
        if isinstance(block, np.memmap):  # a slice of a map reads nothing until it is copied
            np.array(block)


def _read_tfrecord(path: Path) -> None:
    features = {"vector": tf.io.FixedLenFeature([], tf.string)}

    def parse(records: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_raw(tf.io.parse_example(records, features)["vector"], tf.half)

    dataset = tf.data.TFRecordDataset(str(path)).batch(1024).map(parse, num_parallel_calls=2).prefetch(2)
    for _ in dataset:
        pass


def _read_texts(files: list[Path]) -> np.ndarray:
    return np.array([[float(value) for value in file.read_text().split(",")] for file in files], np.float32)


def _blocks(count: int, step: int) -> Iterator[np.ndarray]:
    """The rows 0 to `count`, `step` at a time."""
    return (np.arange(start, min(start + step, count)) for start in range(0, count, step))


def _read_each(read: Callable[[Key], np.ndarray], keys: Iterable[Key]) -> None:
    for key in keys:
        read(key)
