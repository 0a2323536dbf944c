"""Files from elsewhere: an error of the cache's own type, or the right content; never anything else."""

import os
import resource
import shutil
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cache
from cache import columns, shard, store, verify
from cache.strings import Strings
from tests.test_cache import DIMENSION, MODULE, REPO
from tests.test_rot import everything_in, make

ATTRIBUTES = {**MODULE.attributes(), "precision": "float32", "engine": "tensorflow"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile") / "tiny-0123456789abcdef"
    make(directory, [5, 3])
    return directory


@pytest.fixture
def copied(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / sound.name)


def files_of(directory):
    shards = [directory / "shards" / name for name in store.shard_names(directory)]
    return [*shards, directory / store.INDEX, directory / store.REJECTED]


def assert_refused_or_right(directory, path, before):
    """What is opened is either refused in one line that names the file, or nothing that verify calls sound is wrong."""
    found = verify.find(directory)
    try:
        content = everything_in(directory)
    except cache.CacheError as error:
        assert "\n" not in str(error)
        # A reader sees other files disagree with the one that is wrong.
        assert str(directory) in str(error)
        assert found, error
        return
    assert content == before or path in {damage.path for damage in found}


def mutated(content, other):
    """A strategy for what became of the bytes: some changed, cut off, more at the end, another file's in the middle."""
    places = st.integers(0, len(content) - 1)
    # Structures lie at the start and arrays are few: most of a file is empty.
    interesting = st.sampled_from([i for i, byte in enumerate(content) if byte])
    changes = st.lists(st.tuples(places | interesting, st.integers(0, 255)), min_size=1, max_size=8)

    def change(pairs):
        new = bytearray(content)
        for place, byte in pairs:
            new[place] = byte
        return bytes(new)

    def splice(ends):
        begin, end = sorted(ends)
        return content[:begin] + other[begin:end] + content[end:]

    return st.one_of(
        changes.map(change),
        places.map(lambda end: content[:end]),
        st.binary(max_size=5000).map(lambda more: content + more),
        st.tuples(places, places).map(splice),
        st.binary(max_size=300).map(lambda start: start + content[len(start) :]),
    )


@pytest.mark.parametrize("which", [0, 2, 3])  # a shard, the index, the list of rejected images
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(sound, which, data):
    path = files_of(sound)[which]
    content, other = path.read_bytes(), files_of(sound)[(which + 1) % 3].read_bytes()
    before = everything_in(sound)
    try:
        path.write_bytes(data.draw(mutated(content, other)))
        if path.name == store.REJECTED:
            try:
                store.read_rejected(sound)
            except cache.CacheError as error:
                assert str(path) in str(error)
        else:
            assert_refused_or_right(sound, path, before)
    finally:
        path.write_bytes(content)


def rewrite(path, kind, change, attributes=ATTRIBUTES):
    """Writes the file's tables anew, with true checksums, after `change` did something to the columns."""
    _, tables = columns.read(path, kind)
    parts = {name: dict(table.columns) for name, table in tables.items()}
    change(parts)
    parts = {
        name: [{n: np.array(c) if not isinstance(c, Strings) else c for n, c in part.items()}]
        for name, part in parts.items()
    }
    attributes = {**attributes, "image_dir": "/photos"} if kind == "index" else attributes
    columns.write(path, kind, attributes, parts)


def with_column(table, name, value):
    def change(parts):
        parts[table][name] = value

    return change


def craft(path, array, make_dataset):
    """Replaces an array by what `make_dataset` puts in its place; the structures are HDF5's own, and sound."""
    with h5py.File(path, "r+") as file:
        covers = dict(file[array].attrs)
        del file[array]
        make_dataset(file, array)
        for name, value in covers.items():
            file[array].attrs[name] = value


def low_level(shape, kind=np.float16, prepare=lambda options: None):
    def make_dataset(file, name):
        options = h5p.create(h5p.DATASET_CREATE)
        prepare(options)
        h5d.create(file.id, name.encode(), h5t.py_create(np.dtype(kind)), h5s.create_simple(shape), options)

    return make_dataset


def in_another_file(options):
    options.set_external(b"/etc/passwd", 0, h5py.h5f.UNLIMITED if hasattr(h5py.h5f, "UNLIMITED") else 60)


def virtual(file, name):
    layout = h5py.VirtualLayout((5, DIMENSION), np.float16)
    layout[:] = h5py.VirtualSource("/tmp/elsewhere.h5", name, (5, DIMENSION))
    file.create_virtual_dataset(name, layout)


def link(target):
    def make_dataset(file, name):
        file[name] = target

    return make_dataset


VECTORS = np.zeros((5, DIMENSION), np.float16)
CRAFTED = {
    "an external link": link(h5py.ExternalLink("/etc/elsewhere.h5", "/x")),
    "a soft link": link(h5py.SoftLink("/rows_checksums")),
    "a dangling link": link(h5py.SoftLink("/nothing")),
    "a group": lambda file, name: file.create_group(name),
    "a type": lambda file, name: file.__setitem__(name, np.dtype(np.float16)),
    "a virtual data set": virtual,
    "external storage": low_level((5, DIMENSION), prepare=in_another_file),
    "chunks": lambda file, name: file.create_dataset(name, data=VECTORS, chunks=True),
    "compression": lambda file, name: file.create_dataset(name, data=VECTORS, compression="gzip"),
    "compact storage": low_level((5, DIMENSION), prepare=lambda options: options.set_layout(h5d.COMPACT)),
    "strings": lambda file, name: file.create_dataset(name, data=["text"] * 5),
    "pickles": lambda file, name: file.create_dataset(name, (5,), h5py.vlen_dtype(np.uint8)),
    "references": lambda file, name: file.create_dataset(name, (5,), h5py.ref_dtype),
    "records": lambda file, name: file.create_dataset(name, (5,), np.dtype([("a", "f2"), ("b", "f2")])),
    "no values": lambda file, name: file.create_dataset(name, data=h5py.Empty("f2")),
    "one value": lambda file, name: file.create_dataset(name, data=np.float16(1)),
    "big-endian values": lambda file, name: file.create_dataset(name, data=VECTORS.astype(">f2")),
    "double values": lambda file, name: file.create_dataset(name, data=VECTORS.astype("f8")),
    "complex values": lambda file, name: file.create_dataset(name, data=VECTORS.astype("c8")),
    "whole values": lambda file, name: file.create_dataset(name, data=VECTORS.astype("i2")),
    "too few rows": lambda file, name: file.create_dataset(name, data=VECTORS[:4]),
    "too many rows": lambda file, name: file.create_dataset(name, data=np.zeros((6, DIMENSION), np.float16)),
    "shorter vectors": lambda file, name: file.create_dataset(name, data=VECTORS[:, :5]),
    "more dimensions": lambda file, name: file.create_dataset(name, data=VECTORS[:, None]),
    "fewer dimensions": lambda file, name: file.create_dataset(name, data=VECTORS[:, 0]),
    "a terabyte": low_level((5, 1 << 37)),
    "more than there can be": low_level((1 << 31, 1 << 31)),
    "a shape that overflows": low_level((1 << 40, 0)),
}


@pytest.mark.parametrize("crafted", CRAFTED)
def test_a_crafted_array_is_refused(copied, crafted):
    path = files_of(copied)[0]
    craft(path, "bottlenecks", CRAFTED[crafted])
    with pytest.raises(cache.CacheError) as error:
        cache.open(copied)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path in {damage.path for damage in verify.find(copied)}


def test_numbers_of_an_odd_layout_are_refused(copied):
    """bfloat16 is as long as float16, and h5py takes it for something else."""
    path = files_of(copied)[0]

    def bfloat16(file, name):
        kind = h5t.IEEE_F32LE.copy()
        kind.set_fields(15, 7, 8, 0, 7)
        kind.set_size(2)
        kind.set_ebias(127)
        h5d.create(file.id, name.encode(), kind, h5s.create_simple((5, DIMENSION)))
        file[name][:] = 1

    craft(path, "bottlenecks", bfloat16)
    with pytest.raises(cache.CacheError, match="not a contiguous array"):
        cache.open(copied)


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("images", "label_ids", np.full(8, 2, np.int32)),
        ("images", "label_ids", np.full(8, -1, np.int32)),
        ("images", "label_ids", np.zeros(8, np.int64)),
        ("images", "label_ids", np.zeros((8, 1), np.int32)),
        ("images", "label_ids", Strings.of(["0"] * 8)),
        ("images", "shard_ids", np.full(8, 2, np.int32)),
        ("images", "shard_rows", np.full(8, -1, np.int32)),
        ("images", "shard_rows", np.full(8, 2**31 - 1, np.int32)),
        ("images", "sizes", Strings.of(["0"] * 8)),
        ("images", "paths", np.zeros(8, np.int64)),
        ("images", "more", np.zeros(8, np.int64)),
        ("labels", "labels", np.zeros(2, np.int64)),
        ("labels", "labels", Strings.of(["class 0"] * 2)),
        ("labels", "labels", Strings.of([])),
        ("shards", "shards", np.zeros(2, np.int64)),
        ("shards", "shards", Strings.of([])),
        *(
            ("shards", "shards", Strings.of_encoded([b"a.h5", name]))
            for name in (b"../x.h5", b"/etc/x.h5", b"..", b".", b"", b"x\0.h5", b".x.h5", b"x", b"\xff" * 999 + b".h5")
        ),
    ],
)
def test_an_index_that_lies_with_true_checksums_is_refused(copied, table, column, value):
    path = copied / store.INDEX
    rewrite(path, "index", with_column(table, column, value))
    with pytest.raises(cache.CacheError) as error:
        cache.open(copied)
    assert str(copied) in str(error.value)
    assert "\n" not in str(error.value)
    assert path in {damage.path for damage in verify.find(copied)}


@pytest.mark.parametrize("column", [*shard.COLUMNS])
def test_a_shard_with_a_column_of_another_kind_is_refused(copied, column):
    path = files_of(copied)[0]
    value = np.zeros(5, np.int16) if column == "paths" else Strings.of(["x"] * 5)
    rewrite(path, "shard", with_column("rows", column, value))
    with pytest.raises(cache.CacheError, match=f"{column} has another type"):
        cache.open(copied)


@pytest.mark.parametrize(
    "offsets",
    [
        [0, -1, 2, 3, 4, 5],
        [0, 2**62, 2, 3, 4, 5],
        [-(2**63), 2**63 - 1, 2, 3, 4, 5],
        [5, 4, 3, 2, 1, 0],
        [0, 1, 2, 3, 4, 4],
        [0, 1, 2, 3, 4, 6],
    ],
)
def test_offsets_that_lead_elsewhere_are_refused(copied, offsets):
    path = files_of(copied)[0]
    paths = Strings(np.frombuffer(b"abcde", np.uint8), np.array(offsets))
    # Written with the checksums of what the offsets lead to, as far as that is anything.
    rewrite(path, "shard", with_column("rows", "paths", paths))
    with pytest.raises(cache.CacheError, match=f"{path.name} is damaged"):
        cache.open(copied)
    assert path in {damage.path for damage in verify.find(copied)}
    verify.repair(copied)
    assert verify.find(copied) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in (*MODULE.attributes(), "format", "version", "kind")),
        ("dimension", np.arange(3)),
        ("dimension", -6),
        ("dimension", 6.0),
        ("dimension", "6"),
        ("dimension", 2**62),
        ("image_height", 0),
        ("fingerprint", 7),
        ("fingerprint", "another"),
        ("fingerprint", np.void(b"another")),
        ("module", ["a", "b"]),
        ("module", h5py.Empty("S9")),
        ("kind", "index\nof\nmany lines"),
        ("format", "another"),
        ("version", "2"),
        ("version", float("nan")),
        ("version", 1),
        ("version", -1),
    ],
)
@pytest.mark.parametrize("which", [0, 2])
def test_attributes_that_are_missing_or_of_another_type_are_refused(copied, which, name, value):
    path = files_of(copied)[which]
    with h5py.File(path, "r+") as file:
        del file.attrs[name]
        if isinstance(value, str):
            file.attrs[name] = np.bytes_(value)
        elif value is not None:
            file.attrs[name] = value
    with pytest.raises(cache.CacheError) as error:
        cache.open(copied)
    if name != "fingerprint":  # where two files say different things, either may be named
        assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path in {damage.path for damage in verify.find(copied)}
    verify.repair(copied)
    assert verify.find(copied) == []
    assert len(store.shard_names(copied)) == (2 if path.name == store.INDEX else 1)


def test_a_long_attribute_that_is_not_ours_is_not_read(copied):
    path = files_of(copied)[0]
    before = everything_in(copied)
    with h5py.File(path, "r+") as file:
        file.attrs["more"] = np.bytes_(b"x" * (1 << 20))
        file.attrs["many"] = np.zeros(1 << 15)
        file.attrs["text of no fixed length"] = "x"
    assert everything_in(copied) == before


def test_a_newer_format_is_refused_by_its_name(copied):
    with h5py.File(copied / store.INDEX, "r+") as file:
        file.attrs["version"] = 3
    with pytest.raises(
        cache.CacheError, match=r"index.h5 has cache format 3, newer than format 2 .*update this program"
    ):
        cache.open(copied)


@pytest.mark.parametrize("libver", ["earliest", "v108"])
def test_a_file_whose_structures_have_no_checksums_is_refused(copied, libver):
    path = files_of(copied)[0]
    with h5py.File(path) as old, h5py.File(copied / "new", "w", libver=(libver, "v110")) as new:
        for name in old:
            old.copy(name, new)
        new.attrs.update({name: np.bytes_(v) if isinstance(v, bytes) else v for name, v in old.attrs.items()})
    os.replace(copied / "new", path)
    if libver == "earliest":
        with pytest.raises(cache.CacheError, match="format 1, from before"):
            cache.open(copied)
    else:
        cache.open(copied)


@pytest.mark.parametrize("which", [0, 2, 3])
def test_a_link_out_of_the_cache_and_a_pipe_are_refused(copied, tmp_path, which):
    path = files_of(copied)[which]
    read = store.read_rejected if path.name == store.REJECTED else cache.open
    shutil.move(path, tmp_path / "elsewhere")
    for put_there in (lambda: path.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(path)):
        put_there()
        with pytest.raises(cache.CacheError, match=f"{path} is a link or no regular file"):
            read(copied)
        assert path in {damage.path for damage in verify.find(copied)}
        path.unlink()
    path.mkdir()
    with pytest.raises(cache.CacheError, match=f"{path} is a link or no regular file"):
        read(copied)


def test_a_link_that_was_refused_is_dropped_and_what_it_led_to_stays(copied, tmp_path):
    path = files_of(copied)[0]
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    verify.repair(copied)
    assert verify.find(copied) == []
    assert len(cache.open(copied)) == 3
    assert len(shard.read(tmp_path / "elsewhere")) == 5


def test_what_a_header_asks_for_is_not_allocated(copied):
    """With the memory of a small machine: opening, verifying and repairing files that claim to hold terabytes."""
    path = files_of(copied)[0]
    craft(path, "bottlenecks", low_level((5, 1 << 37)))
    with h5py.File(copied / store.INDEX, "r+") as file:
        for name in ("paths_offsets", "sizes"):
            del file[name]
            low_level((1 << 40,), np.int64)(file, name)
    script = f"""
        import resource, sys
        from pathlib import Path
        import cache
        from cache import reader, store, verify
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
        directory = Path({str(copied)!r})
        for read in (cache.open, store.module_of):
            try:
                read(directory)
            except cache.CacheError as error:
                print(error)
        print(*verify.repair(directory), sep="\\n")
        print(verify.find(directory))"""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=REPO, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    *told, last = done.stdout.splitlines()
    assert len(told) == 4
    assert all("index.h5 is damaged" in line or str(path) in line for line in told)
    assert last == "[]"


def test_a_cut_file_that_claims_a_terabyte_fills_no_disk(copied):
    path = files_of(copied)[0]
    craft(path, "bottlenecks", low_level((5, 1 << 37), prepare=lambda o: o.set_alloc_time(h5d.ALLOC_TIME_EARLY)))
    assert path.stat().st_size > 1 << 39  # mostly a hole
    os.truncate(path, 20000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 31, limits[1]))
    try:
        assert path in {damage.path for damage in verify.find(copied)}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_names_of_many_lines_are_told_in_one(copied):
    labels = Strings.of(["class\n0\x1b[2J", "class\udcff 1"])
    rewrite(copied / store.INDEX, "index", with_column("labels", "labels", labels), {**ATTRIBUTES, "module": "a\nb"})
    assert cache.open(copied).labels == list(labels)
    with pytest.raises(cache.CacheError) as error:
        cache.open(copied, "another")
    assert "\n" not in str(error.value)
    told = subprocess.run([sys.executable, "-m", "cache", "info", copied], cwd=REPO, capture_output=True)
    assert (told.returncode, told.stderr) == (0, b"")


def test_a_cache_without_images_is_empty(copied):
    def no_images(parts):
        parts["images"] = {
            name: Strings.of([]) if name == "paths" else np.array(column[:0])
            for name, column in parts["images"].items()
        }
        parts["shards"]["shards"] = Strings.of([])

    rewrite(copied / store.INDEX, "index", no_images)
    opened = cache.open(copied)
    assert len(opened) == 0
    assert list(opened.mapped()) == []
    assert opened.bottlenecks(np.zeros(0, int)).shape == (0, DIMENSION)
