"""The footer of an HDF5 file of a cache: the library never sees structures that differ from their checksum."""

import h5py
import numpy as np
import pytest

import cache
from cache import hdf5, layout, table, verify
from cache import index as indexes
from tests.damage import FOOTER, flip
from tests.random_cache import NAME, content, fill_with_everything, shard_paths


@pytest.fixture
def made(tmp_path):
    fill_with_everything(tmp_path / NAME, [5, 3])
    return tmp_path / NAME


@pytest.mark.parametrize("place", [0, 7, 8, 19, 23])
def test_a_flip_in_the_footer_is_harmless(made, place):
    """The file is then read as one of an earlier version: its rows are sound, and a repair must not drop them."""
    before = content(made)
    for path in (made / layout.INDEX, *shard_paths(made)):
        flip(path, path.stat().st_size - FOOTER + place)
    assert verify.find(made) == []
    assert content(made) == before


def test_the_hdf5_library_sees_no_structure_that_differs_from_its_checksum(made, monkeypatch):
    path = made / layout.INDEX
    flip(path, 5000)
    monkeypatch.setattr(h5py, "File", None)
    with pytest.raises(cache.CacheError, match=r"index.h5 is damaged \(its structures differ from their checksum\)"):
        indexes.read(made)


@pytest.mark.parametrize("length", [2, 2**20 + 1, 2**63])
def test_a_footer_that_lies_about_the_length_is_damage(made, length):
    path = made / layout.INDEX
    content = path.read_bytes()[:-FOOTER]
    lying = hdf5._FOOTER.pack(hdf5._MARK, length, 0, 0)[:-4]
    path.write_bytes(content + lying + hdf5.isal_zlib.crc32(lying).to_bytes(4, "little"))
    with pytest.raises(cache.CacheError, match="its structures differ from their checksum"):
        indexes.read(made)


def written(folder, length):
    """A file of three arrays and an attribute of `length` bytes. Returns its path and schema."""
    schemas = {"rows": {"paths": table.STRINGS, "numbers": table.INT64}}
    part = {"paths": cache.strings.Strings.of(["a"] * 2000), "numbers": np.arange(2000)}
    table.write(folder / "file.h5", "test", {"long": "x" * length}, schemas, {"rows": [part]})
    return folder / "file.h5", schemas


@pytest.mark.parametrize("length", [0, 5000, 6000, 6800, 7400, 9000, 60000])
def test_structures_of_any_size_lie_before_the_first_array_and_are_all_checked(tmp_path, length):
    """HDF5 puts those that its first pages cannot hold behind an array."""
    path, schemas = written(tmp_path, length)
    with h5py.File(path) as file:
        assert file.attrs["long"] == b"x" * length
        first = min(dataset.id.get_offset() for dataset in file.values())
        page = file.id.get_create_plist().get_file_space_page_size()
        assert page == 8192 or length > 5000
        assert not any(dataset.id.get_offset() % page for dataset in file.values() if dataset.nbytes >= page)
    attributes, tables = table.read(path, "test", schemas, ["long"])
    assert attributes["long"] == "x" * length
    assert not len(tables["rows"].damaged())
    for place in (20, first - 1):
        flip(path, place)
        with pytest.raises(cache.CacheError, match="its structures differ"):
            table.read(path, "test", schemas)
        flip(path, place)
