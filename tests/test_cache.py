"""The cache's files and views, without any network."""

import mmap
import re
import resource
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cache
from cache import columns, command, shard, store, verify
from cache.__main__ import main
from cache.errors import UserError
from cache.strings import Strings
from cache.writer import Writer

REPO = Path(__file__).resolve().parent.parent
DIMENSION = 6
MODULE = store.Module("tiny", "tiny at its own size", "0123456789abcdef", 16, 20, "none", DIMENSION)


def rows(count, seed, dtype="float16"):
    random = np.random.default_rng(seed)
    return shard.Rows(
        Strings.of(f"class {seed % 2}/{seed}-{i}.jpg" for i in range(count)),
        random.integers(1, 10**6, count),
        random.integers(1, 2**62, count),
        random.integers(0, 2**64, count, np.uint64),
        random.normal(size=(count, DIMENSION)).astype(dtype),
    )


def fill(directory, parts):
    """A store of one shard for each of `parts` and an index over all rows, shuffled."""
    with Writer(directory, {**MODULE.attributes(), "precision": "float32", "engine": "tensorflow"}) as writer:
        for part in parts:
            writer.append(part)
            writer.commit()
    whole = shard.Rows(
        Strings.concatenate([part.paths for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in shard.NUMBERS},
    )
    shard_ids = np.repeat(np.arange(len(parts)), [len(part.paths) for part in parts])
    shard_rows = np.concatenate([np.arange(len(part.paths)) for part in parts])
    order = np.random.default_rng(0).permutation(len(shard_ids))
    index = store.Index(
        "/photos",
        ["class 0", "class 1"],
        store.shard_names(directory),
        whole.paths.take(order),
        whole.sizes[order],
        whole.mtimes[order],
        np.array([int(path[6]) for path in whole.paths])[order],
        shard_ids[order],
        shard_rows[order],
    )
    store.write_index(directory, MODULE, index)
    return index, whole.bottlenecks[order]


@pytest.fixture
def made(tmp_path):
    """(directory, index, its vectors in the index's order) of a store of three shards."""
    directory = tmp_path / "tiny-0123456789abcdef"
    return directory, *fill(directory, [rows(5, 0), rows(1, 1), rows(7, 2)])


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@given(st.lists(names, max_size=30), st.data())
def test_strings_are_a_list_of_strings(texts, data):
    strings = Strings.of(texts)
    assert list(strings) == texts == [strings[i] for i in range(len(texts))]
    picked = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=30) if texts else st.just([]))
    assert list(strings.take(np.array(picked, int))) == [texts[i] for i in picked]
    assert list(Strings.concatenate([strings, Strings.of([]), strings])) == texts * 2
    assert strings.equals(Strings.of(texts))


def test_paths_that_are_not_unicode_survive():
    path = b"class/\xff\xfe.jpg".decode("utf-8", "surrogateescape")
    assert list(Strings.of([path])) == [path]


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.lists(names, min_size=1, max_size=8), min_size=1, max_size=3), st.sampled_from(["float16", "float32"])
)
def test_an_index_round_trips(tmp_path_factory, parts, dtype):
    directory = tmp_path_factory.mktemp("store") / "tiny"
    written = []
    for seed, paths in enumerate(parts):
        part = rows(len(paths), seed, dtype)
        written.append(replace(part, paths=Strings.of("0" * 6 + "1" + p for p in paths)))
    index, vectors = fill(directory, written)
    opened = cache.open(directory)
    assert opened.index.same_view(index)
    assert opened.module == MODULE
    assert opened.bottlenecks(np.arange(len(opened))).tobytes() == vectors.tobytes()
    assert verify.find(directory) == []


def test_bottlenecks_are_gathered_in_the_order_asked_for_with_repeats(made):
    directory, _, vectors = made
    opened = cache.open(directory.parent)
    picked = np.random.default_rng(1).integers(0, len(opened), 50)
    np.testing.assert_array_equal(opened.bottlenecks(picked), vectors[picked])
    assert opened.bottlenecks(picked[:0]).shape == (0, DIMENSION)


def test_shards_of_both_dtypes_read_as_the_wider(tmp_path):
    _, vectors = fill(tmp_path / "tiny", [rows(3, 0, "float16"), rows(3, 1, "float32")])
    opened = cache.open(tmp_path / "tiny")
    assert opened.dtype == np.float32
    np.testing.assert_array_equal(opened.bottlenecks(np.arange(6)), vectors)


COUNT = 2000  # rows of more than a page in most columns


def test_arrays_are_page_aligned_maps_of_the_file(tmp_path):
    fill(tmp_path, [rows(COUNT, 2)])
    path = tmp_path / "shards" / store.shard_names(tmp_path)[0]
    opened = shard.read(path)
    base = opened.rows.bottlenecks
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    with h5py.File(path) as file:
        for name, dataset in file.items():
            assert dataset.chunks is None
            assert dataset.nbytes < 8192 or dataset.id.get_offset() % 8192 == 0, name
        place = file["bottlenecks"].id.get_offset()
    mapped = np.memmap(path, np.float16, "r", place, (COUNT, DIMENSION))
    np.testing.assert_array_equal(mapped, rows(COUNT, 2).bottlenecks)
    with pytest.raises(ValueError, match="read-only"):
        opened.rows.bottlenecks[0, 0] = 1


def test_the_reader_printed_in_the_format_reads_a_cache(made, monkeypatch):
    directory, index, vectors = made
    [reader] = re.findall(r"```python\n(.*?)```", (REPO / "cache" / "FORMAT.md").read_text(), re.DOTALL)
    monkeypatch.chdir(directory)
    found = {}
    exec(reader, found)
    np.testing.assert_array_equal(found["vector"], vectors[0])
    assert found["label"] == index.label_ids[0]


def test_a_copied_cache_opens_without_anything_else(made, tmp_path):
    directory, _, vectors = made
    copied = shutil.copytree(directory, tmp_path / "laptop" / "tiny")
    shutil.rmtree(directory)
    np.testing.assert_array_equal(cache.open(copied.parent).bottlenecks(np.arange(13)), vectors)


def flip(path, array_name, byte):
    with h5py.File(path) as file:
        place = file[array_name].id.get_offset() + byte
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "array"), [("shard", "bottlenecks"), ("shard", "mtimes"), ("index", "paths"), ("index", "sizes")]
)
def test_verify_names_a_flipped_bit(made, capsys, file, array):
    directory, _, _ = made
    path = directory / store.INDEX if file == "index" else directory / "shards" / store.shard_names(directory)[0]
    assert command.run(main, ["verify", str(directory)]) == 0
    flip(path, array, 9)
    capsys.readouterr()
    assert command.run(main, ["verify", str(directory)]) == 2
    told = capsys.readouterr()
    count = 12 + 1 if file == "index" else 5
    assert re.search(rf"^{re.escape(str(path))}: 1 of {count} rows differ from their checksums: \d+ \(class ", told.out)
    [line] = told.err.splitlines()
    assert "verify --repair" in line


def truncate(directory):
    path = directory / "shards" / store.shard_names(directory)[0]
    path.write_bytes(path.read_bytes()[:-100])
    return path


def lose(directory):
    path = directory / "shards" / store.shard_names(directory)[1]
    path.unlink()
    return path


def replace_by_text(directory):
    (directory / store.INDEX).write_text("no HDF5")
    return directory / store.INDEX


def replace_by_other_hdf5(directory):
    with h5py.File(directory / store.INDEX, "w") as file:
        file["x"] = 1
    return directory / store.INDEX


def drop_a_column(directory):
    with h5py.File(directory / store.INDEX, "r+") as file:
        del file["label_ids"]
    return directory / store.INDEX


def of_another_backbone(directory):
    path = directory / "shards" / store.shard_names(directory)[0]
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprint"] = "another"
    return path


def newer(directory):
    with h5py.File(directory / store.INDEX, "r+") as file:
        file.attrs["version"] = 99
    return directory / store.INDEX


def outside(directory):
    _, index = store.read_index(directory)
    index.shard_rows.setflags(write=False)
    beyond = store.Index(**{**vars(index), "shard_rows": np.asarray(index.shard_rows) + 7})
    store.write_index(directory, MODULE, beyond)
    return directory / store.INDEX


@pytest.mark.parametrize(
    "damage",
    [truncate, lose, replace_by_text, replace_by_other_hdf5, drop_a_column, of_another_backbone, newer, outside],
)
def test_a_damaged_cache_is_refused_with_the_files_name(made, damage):
    directory, _, _ = made
    path = damage(directory)
    with pytest.raises(cache.CacheError) as error:
        cache.open(directory)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("newer_file", [0, 1])
def test_a_repair_drops_nothing_that_a_newer_version_may_have_written(made, capsys, newer_file):
    directory, _, _ = made
    path = (directory / store.INDEX, directory / "shards" / store.shard_names(directory)[0])[newer_file]
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    flip(directory / "shards" / store.shard_names(directory)[1], "bottlenecks", 2)
    before = {file: file.read_bytes() for file in directory.rglob("*.h5")}
    assert command.run(main, ["verify", "--repair", str(directory)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: nothing was dropped: {path} has cache format 99, newer than")
    assert {file: file.read_bytes() for file in directory.rglob("*.h5")} == before


def test_what_is_no_cache_is_refused(tmp_path):
    with pytest.raises(cache.CacheError, match="no cache at"):
        cache.open(tmp_path / "nowhere")
    with pytest.raises(cache.CacheError, match="holds no bottlenecks"):
        cache.open(tmp_path)


def test_a_cache_of_another_module_is_refused(made):
    directory, _, _ = made
    with pytest.raises(cache.CacheError, match="no bottlenecks of inception_v3, only of tiny"):
        cache.open(directory.parent, "inception_v3")
    assert len(cache.open(directory.parent, "tiny")) == 13


def test_a_failed_write_leaves_what_was_there(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(cache.UserError, match=r"cannot write .*file"), columns.replacing(tmp_path / "file") as file:
        file.write(b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_rejected_images_round_trip(tmp_path):
    listed = [
        store.Rejected('a/quote " and, comma\nnew\r line.jpg', 12, 34, "broken"),
        store.Rejected(b"b/\xff.jpg".decode("utf-8", "surrogateescape"), 0, -1, "gone"),
    ]
    store.write_rejected(tmp_path, listed)
    assert store.read_rejected(tmp_path) == listed
    assert store.read_rejected(tmp_path / "elsewhere") == []


def test_info_tells_what_is_there(made, capsys):
    directory, _, _ = made
    assert command.run(main, ["info", str(directory.parent)]) == 0
    told = capsys.readouterr().out
    for fact in (
        str(directory),
        "tiny",
        "16 x 20 pixels",
        "13 bottlenecks of 6 values",
        "float16 by tensorflow",
        "/photos",
    ):
        assert fact in told
    assert re.search(r"\b12  class 0\n", told)
    assert re.search(r"\b1  class 1\n", told)


def test_info_and_verify_need_no_tensorflow(made):
    directory, _, _ = made
    for name in ("info", "verify"):
        script = f"""
import sys
from cache import command
from cache.__main__ import main
status = command.run(main, [{name!r}, {str(directory)!r}])
sys.exit(99 if "tensorflow" in sys.modules else status)"""
        assert subprocess.run([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.DEVNULL).returncode == 0


def test_rows_are_taken_while_others_are_written(tmp_path, monkeypatch):
    write, taken = shard.write, threading.Event()

    def slow_write(*arguments):
        assert taken.wait(60)
        return write(*arguments)

    monkeypatch.setattr(shard, "write", slow_write)
    monkeypatch.setattr("cache.writer.COMMIT_BYTES", 1)
    with Writer(tmp_path, MODULE.attributes()) as writer:
        writer.append(rows(3, 0))  # would wait for ever if it waited for the disk
        assert writer.committed == 0
        taken.set()
        writer.append(rows(2, 1))
    assert writer.committed == 5
    assert sorted(len(shard.read(tmp_path / "shards" / name)) for name in store.shard_names(tmp_path)) == [2, 3]


def test_a_failed_write_is_told_once_and_loses_nothing_committed(tmp_path, monkeypatch):
    monkeypatch.setattr("cache.writer.COMMIT_BYTES", 1)
    with pytest.raises(UserError, match="File too large"), Writer(tmp_path, MODULE.attributes()) as writer:
        writer.append(rows(3, 0))
        writer.commit()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            writer.append(rows(3, 1))
            writer.append(rows(3, 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer.committed == 3
    [name] = store.shard_names(tmp_path)
    np.testing.assert_array_equal(shard.read(tmp_path / "shards" / name).rows.bottlenecks, rows(3, 0).bottlenecks)
