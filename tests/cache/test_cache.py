"""A cache opened: what was written is read, what is damaged or foreign is refused, and the commands say the same."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cache
from cache import console, layout, rejected, verify
from cache import index as indexes
from cache.__main__ import main
from cache.rejected import Rejected
from cache.strings import Strings
from tests.damage import flip, place_of
from tests.processes import REPO
from tests.random_cache import BACKBONE, DIMENSION, NAME, fill, rows, shard_paths


@pytest.fixture
def made(tmp_path):
    """A folder of three shards, its index, and its bottlenecks in the index's order."""
    directory = tmp_path / NAME
    return directory, *fill(directory, [rows(5, 0), rows(1, 1), rows(7, 2)])


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.lists(names, min_size=1, max_size=8), min_size=1, max_size=3), st.sampled_from(["float16", "float32"])
)
def test_an_index_reads_as_it_was_written(tmp_path_factory, parts, dtype):
    directory = tmp_path_factory.mktemp("cache") / "tiny"
    written = []
    for seed, paths in enumerate(parts):
        part = rows(len(paths), seed, dtype)
        written.append(replace(part, paths=Strings.of("0" * 6 + "1" + path for path in paths)))
    index, vectors = fill(directory, written)
    opened = cache.open(directory)
    assert opened.index.same_view(index)
    assert opened.backbone == BACKBONE
    assert opened.bottlenecks(np.arange(len(opened))).tobytes() == vectors.tobytes()
    assert verify.find(directory) == []


def test_bottlenecks_come_in_any_order_and_repeatedly(made):
    directory, _, vectors = made
    opened = cache.open(directory.parent)
    photos = np.random.default_rng(1).integers(0, len(opened), 50)
    np.testing.assert_array_equal(opened.bottlenecks(photos), vectors[photos])
    assert opened.bottlenecks(photos[:0]).shape == (0, DIMENSION)


def test_shards_of_both_dtypes_read_as_the_wider(tmp_path):
    _, vectors = fill(tmp_path / "tiny", [rows(3, 0, "float16"), rows(3, 1, "float32")])
    opened = cache.open(tmp_path / "tiny")
    assert opened.dtype == np.float32
    np.testing.assert_array_equal(opened.bottlenecks(np.arange(6)), vectors)


def test_the_reader_printed_in_the_format_reads_a_cache(made, monkeypatch):
    directory, index, vectors = made
    [reader] = re.findall(r"```python\n(.*?)```", (REPO / "cache" / "FORMAT.md").read_text(), re.DOTALL)
    monkeypatch.chdir(directory)
    variables = {}
    exec(reader, variables)
    np.testing.assert_array_equal(variables["vector"], vectors[0])
    assert variables["label"] == index.label_ids[0]


def test_a_copied_cache_opens_without_anything_else(made, tmp_path):
    directory, _, vectors = made
    copied = shutil.copytree(directory, tmp_path / "laptop" / "tiny")
    shutil.rmtree(directory)
    np.testing.assert_array_equal(cache.open(copied.parent).bottlenecks(np.arange(13)), vectors)


# --- refused ---------------------------------------------------------------------------------------------------


def truncate(directory):
    path = shard_paths(directory)[0]
    path.write_bytes(path.read_bytes()[:-100])
    return path


def lose(directory):
    path = shard_paths(directory)[1]
    path.unlink()
    return path


def replace_by_text(directory):
    (directory / layout.INDEX).write_text("no HDF5")
    return directory / layout.INDEX


def replace_by_other_hdf5(directory):
    with h5py.File(directory / layout.INDEX, "w") as file:
        file["x"] = 1
    return directory / layout.INDEX


def drop_a_column(directory):
    with h5py.File(directory / layout.INDEX, "r+") as file:
        del file["label_ids"]
    return directory / layout.INDEX


def make_by_another_backbone(directory):
    path = shard_paths(directory)[0]
    with h5py.File(path, "r+") as file:
        file.attrs["fingerprint"] = "another"
    return path


def make_newer(directory):
    with h5py.File(directory / layout.INDEX, "r+") as file:
        file.attrs["version"] = 99
    return directory / layout.INDEX


def point_outside(directory):
    _, index = indexes.read(directory)
    indexes.write(directory, BACKBONE, replace(index, shard_rows=index.shard_rows + 7))
    return directory / layout.INDEX


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lose,
        replace_by_text,
        replace_by_other_hdf5,
        drop_a_column,
        make_by_another_backbone,
        make_newer,
        point_outside,
    ],
)
def test_a_damaged_cache_is_refused_with_the_files_name(made, damage):
    directory, _, _ = made
    path = damage(directory)
    with pytest.raises(cache.CacheError) as error:
        cache.open(directory)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


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


def test_one_of_several_backbones_has_to_be_chosen(made):
    directory, _, _ = made
    other = shutil.copytree(directory, directory.with_name("tiny-of-another-size"))
    with pytest.raises(cache.CacheError, match=f"choose with --module: {directory.name}, {other.name}"):
        cache.open(directory.parent)
    assert cache.open(directory.parent, other.name).directory == other


# --- rejected photos -------------------------------------------------------------------------------------------


def test_rejected_photos_read_as_they_were_written(tmp_path):
    photos = [
        Rejected('a/quote " and, comma\nnew\r line.jpg', 12, 34, "broken"),
        Rejected(b"b/\xff.jpg".decode("utf-8", "surrogateescape"), 0, -1, "gone"),
    ]
    rejected.write(tmp_path, photos)
    assert rejected.read(tmp_path) == photos
    assert rejected.read(tmp_path / "elsewhere") == []


# --- commands --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "array", "place"),
    [("shard", "bottlenecks", 9), ("shard", "mtimes", 9), ("index", "paths", 9), ("index", "sizes", 9)],
)
def test_verify_names_a_flipped_bit(made, capsys, file, array, place):
    directory, _, _ = made
    path = directory / layout.INDEX if file == "index" else shard_paths(directory)[0]
    assert console.run(main, ["verify", str(directory)]) == 0
    flip(path, place_of(path, array, 0) + place)
    capsys.readouterr()
    assert console.run(main, ["verify", str(directory)]) == 2
    printed = capsys.readouterr()
    count = 12 + 1 if file == "index" else 5
    line = rf"^{re.escape(str(path))}: 1 of {count} rows differ from their checksums or are not finite: \d+ \(class "
    assert re.search(line, printed.out)
    [error] = printed.err.splitlines()
    assert "verify --repair" in error


@pytest.mark.parametrize("which", ["index", "shard"])
def test_a_repair_drops_nothing_that_a_newer_version_may_have_written(made, capsys, which):
    directory, _, _ = made
    path = directory / layout.INDEX if which == "index" else shard_paths(directory)[0]
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99
    damaged = shard_paths(directory)[1]
    flip(damaged, place_of(damaged, "bottlenecks", 0) + 2)
    before = {file: file.read_bytes() for file in directory.rglob("*.h5")}
    assert console.run(main, ["verify", "--repair", str(directory)]) == 2
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: nothing was dropped: {path} has cache format 99, newer than")
    assert {file: file.read_bytes() for file in directory.rglob("*.h5")} == before


def test_info_prints_what_is_in_a_cache(made, capsys):
    directory, _, _ = made
    assert console.run(main, ["info", str(directory.parent)]) == 0
    printed = capsys.readouterr().out
    for fact in (
        str(directory),
        "tiny",
        "16 x 20 pixels",
        "13 bottlenecks of 6 values",
        "float16 by tensorflow",
        "/photos",
    ):
        assert fact in printed
    assert re.search(r"\b12  class 0\n", printed)
    assert re.search(r"\b1  class 1\n", printed)


def test_commands_need_no_tensorflow(made):
    directory, _, _ = made
    script = f"""
import sys
from cache import console
from cache.__main__ import main
for command in ("info", "verify", "duplicates"):
    assert console.run(main, [command, {str(directory)!r}]) == 0
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr


def test_help_needs_neither_numpy_nor_h5py():
    script = """
import sys
from cache.__main__ import main
try:
    main(["-h"])
except SystemExit as end:
    assert not end.code
assert not {"numpy", "h5py", "tensorflow"} & set(sys.modules), "imported for nothing"
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
