"""Files with true checksums and sound structures whose contents lie: the cache's own error, or the right content."""

import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from h5py import h5d, h5s, h5t

import cache
from cache import layout, repair, shard, table, verify
from cache.strings import Strings
from tests.crafted import craft, files_of, low_level, rewrite, with_column
from tests.processes import REPO
from tests.random_cache import ATTRIBUTES, BACKBONE, DIMENSION, NAME, content, fill_with_everything


@pytest.fixture
def copied(tmp_path):
    fill_with_everything(tmp_path / NAME, [5, 3])
    return tmp_path / NAME


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
    "values of variable length": lambda file, name: file.create_dataset(name, (5,), h5py.vlen_dtype(np.uint8)),
    "references": lambda file, name: file.create_dataset(name, (5,), h5py.ref_dtype),
    "records": lambda file, name: file.create_dataset(name, (5,), np.dtype([("a", "f2"), ("b", "f2")])),
    "no values": lambda file, name: file.create_dataset(name, data=h5py.Empty("f2")),
    "one value": lambda file, name: file.create_dataset(name, data=np.float16(1)),
    "big-endian values": lambda file, name: file.create_dataset(name, data=VECTORS.astype(">f2")),
    "double values": lambda file, name: file.create_dataset(name, data=VECTORS.astype("f8")),
    "complex values": lambda file, name: file.create_dataset(name, data=VECTORS.astype("c8")),
    "integers": lambda file, name: file.create_dataset(name, data=VECTORS.astype("i2")),
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


LINKS = {
    "hard": lambda file, path: file["moved"],
    "soft": lambda file, path: h5py.SoftLink("/moved"),
    "external": lambda file, path: h5py.ExternalLink(str(path), "/bottlenecks"),
}


@pytest.mark.parametrize("linked", LINKS)
def test_no_link_leads_to_an_array_even_if_it_is_the_right_one(copied, tmp_path, linked):
    """The array's place may be one in another file. A hard link is only HDF5's word for a name."""
    path = files_of(copied)[0]
    before = content(copied)
    shutil.copyfile(path, tmp_path / "elsewhere.h5")
    with h5py.File(path, "r+") as file:
        file.move("bottlenecks", "moved")
        file["bottlenecks"] = LINKS[linked](file, tmp_path / "elsewhere.h5")
    if linked == "hard":
        assert content(copied) == before
        return
    with pytest.raises(cache.CacheError, match="bottlenecks is not a contiguous array"):
        cache.open(copied)
    assert path in {damage.path for damage in verify.find(copied)}


@pytest.mark.parametrize("where", ["{tmp}/elsewhere", "folder"])
def test_an_index_names_no_shard_outside_its_folder_even_if_it_is_the_right_one(copied, tmp_path, where):
    path, name = files_of(copied)[0], f"{where}/1.h5".format(tmp=tmp_path)
    (path.parent / name).parent.mkdir()
    shutil.move(path, path.parent / name)
    other = layout.shard_names(copied)[0]
    rewrite(copied / layout.INDEX, "index", with_column("shards", "shards", Strings.of([name, other])))
    with pytest.raises(cache.CacheError, match="it names a shard outside its folder"):
        cache.open(copied)
    repair.repair(copied)
    assert (path.parent / name).exists()


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
    ("table_name", "column", "value", "reason"),
    [
        ("images", "label_ids", np.full(8, 2, np.int32), "label_ids"),
        ("images", "label_ids", np.full(8, -1, np.int32), "label_ids"),
        ("images", "label_ids", np.zeros(8, np.int64), "label_ids has another type"),
        ("images", "label_ids", np.zeros((8, 1), np.int32), "label_ids has another type"),
        ("images", "label_ids", Strings.of(["0"] * 8), "label_ids has another type"),
        ("images", "shard_ids", np.full(8, 2, np.int32), "it points outside its shards"),
        ("images", "shard_rows", np.full(8, -1, np.int32), "it points outside its shards"),
        ("images", "shard_rows", np.full(8, 2**31 - 1, np.int32), "it points outside its shards"),
        ("images", "sizes", Strings.of(["0"] * 8), "sizes has another type"),
        ("images", "paths", np.zeros(8, np.int64), "paths has another type"),
        ("images", "more", np.zeros(8, np.int64), "images has other columns"),
        ("labels", "labels", np.zeros(2, np.int64), "labels has another type"),
        ("labels", "labels", Strings.of(["class 0"] * 2), "labels names one twice"),
        ("labels", "labels", Strings.of([]), "label_ids"),
        ("shards", "shards", np.zeros(2, np.int64), "shards has another type"),
        ("shards", "shards", Strings.of([]), "it points outside its shards"),
        ("shards", "shards", Strings.of_encoded([b"\xff" * 999 + b".h5", b"a.h5"]), "File name too long"),
        *(
            ("shards", "shards", Strings.of_encoded([b"a.h5", name]), "it names a shard outside its folder")
            for name in (b"../x.h5", b"/etc/x.h5", b"..", b".", b"", b"x\0.h5", b".x.h5", b"x")
        ),
    ],
)
def test_an_index_that_lies_with_true_checksums_is_refused(copied, table_name, column, value, reason):
    path = copied / layout.INDEX
    rewrite(path, "index", with_column(table_name, column, value))
    with pytest.raises(cache.CacheError, match=reason) as error:
        cache.open(copied)
    assert str(copied) in str(error.value)
    assert "\n" not in str(error.value)
    assert path in {damage.path for damage in verify.find(copied)}


@pytest.mark.parametrize("column", ["labels", "shard_ids", "paths"])
def test_an_index_without_a_column_is_refused(copied, column):
    path = copied / layout.INDEX
    with h5py.File(path, "r+") as file:
        del file[column]
    with pytest.raises(cache.CacheError, match=rf"index.h5 is damaged \({column} is missing\)"):
        cache.open(copied)
    assert path in {damage.path for damage in verify.find(copied)}


@pytest.mark.parametrize("column", [*shard.COLUMNS])
def test_a_shard_with_a_column_of_another_type_is_refused(copied, column):
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
    rewrite(path, "shard", with_column("rows", "paths", Strings.of("abcde")))
    columns = dict(shard.read(path).table.columns)
    columns["paths"] = Strings(columns["paths"].data, np.array(offsets))
    with h5py.File(path, "r+") as file:
        file["paths_offsets"][:] = offsets
        # True checksums of what the offsets lead to, as far as that is anything.
        file["rows_checksums"][:] = table.checksums(columns)
    with pytest.raises(cache.CacheError, match=f"{path.name} is damaged"):
        cache.open(copied)
    assert path in {damage.path for damage in verify.find(copied)}
    repair.repair(copied)
    assert verify.find(copied) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in (*BACKBONE.attributes(), "format", "version", "kind")),
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
    repair.repair(copied)
    assert verify.find(copied) == []
    assert len(layout.shard_names(copied)) == (2 if path.name == layout.INDEX else 1)


def test_a_long_attribute_that_is_not_ours_is_not_read(copied):
    path = files_of(copied)[0]
    before = content(copied)
    with h5py.File(path, "r+") as file:
        file.attrs["more"] = np.bytes_(b"x" * (1 << 20))
        file.attrs["many"] = np.zeros(1 << 15)
        file.attrs["text of no fixed length"] = "x"
    assert content(copied) == before


def test_a_newer_format_is_refused_by_its_name(copied):
    with h5py.File(copied / layout.INDEX, "r+") as file:
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


@pytest.mark.parametrize("terminal", ["utf-8", "ascii"])
def test_names_of_many_lines_are_printed_in_one(copied, terminal):
    labels = Strings.of(["class\n0\x1b[2J", "class\udcff \u00e4"])
    rewrite(copied / layout.INDEX, "index", with_column("labels", "labels", labels), {**ATTRIBUTES, "module": "a\nb"})
    assert cache.open(copied).labels == list(labels)
    with pytest.raises(cache.CacheError) as error:
        cache.open(copied, "another")
    assert "\n" not in str(error.value)
    environment = {**os.environ, "PYTHONIOENCODING": f"{terminal}:strict"}
    command = [sys.executable, "-m", "cache", "info", copied]
    done = subprocess.run(command, cwd=REPO, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_cache_without_photos_is_empty(copied):
    def drop_photos(parts):
        parts["images"] = {
            name: Strings.of([]) if name == "paths" else np.array(column[:0])
            for name, column in parts["images"].items()
        }
        parts["shards"]["shards"] = Strings.of([])

    rewrite(copied / layout.INDEX, "index", drop_photos)
    opened = cache.open(copied)
    assert len(opened) == 0
    assert list(opened.mapped()) == []
    assert opened.bottlenecks(np.zeros(0, int)).shape == (0, DIMENSION)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_a_vector_that_is_not_finite_counts_as_damaged(copied, dtype, value):
    path = files_of(copied)[0]

    def spoil(columns):
        vectors = np.array(columns["rows"]["bottlenecks"], dtype)
        vectors[3, DIMENSION - 1] = value
        columns["rows"]["bottlenecks"] = vectors

    rewrite(path, "shard", spoil)
    [damage] = verify.find(copied)
    assert (damage.path, damage.rows.tolist()) == (path, [3])
    assert "1 of 5 rows differ from their checksums or are not finite: 3" in damage.reason
    with pytest.raises(cache.CacheError, match="not finite"):
        verify.check(cache.open(copied))
    repair.repair(copied)
    assert verify.find(copied) == []
    assert len(cache.open(copied)) == 7


@pytest.mark.parametrize("attribute", ["image_height", "image_width", "dimension"])
def test_a_size_that_would_overflow_is_refused(copied, attribute):
    rewrite(copied / layout.INDEX, "index", lambda columns: None, {**ATTRIBUTES, attribute: 1 << 60})
    with pytest.raises(cache.CacheError, match=f"the attribute {attribute}"):
        cache.open(copied)
