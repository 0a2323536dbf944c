"""Distorted versions: other flags, links, folders that are begun or vanish, two runs at once."""

import shutil

import pytest

import cache
from cache import reader, store, verify
from cache.errors import UserError
from extract import target
from extract.run import extract
from extract.settings import Settings
from tests.pictures import make_folder


@pytest.fixture
def run(tmp_path, module):
    """Extracts `tmp_path/photos`, four pictures, into `tmp_path/cache`, with two distorted versions."""
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    fixed = {"image_dir": str(photos), "cache_dir": str(tmp_path / "cache"), "module": module, "engine": "tensorflow"}
    return lambda **options: extract(Settings(**(fixed | {"augment": 2} | options)))


def contents(folder):
    """path -> bytes of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("which", ["all", "one"])
def test_a_link_to_versions_elsewhere_is_refused_and_nothing_there_is_touched(tmp_path, run, which):
    directory = run().directory
    path = directory / store.DISTORTED if which == "all" else store.versions(directory)[1]
    shutil.move(path, tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    before = contents(tmp_path / path.name)
    # Other flags drop the versions that are there.
    for change in (lambda: reader.distorted(cache.open(directory)), lambda: run(augment_seed=1)):
        with pytest.raises(cache.CacheError, match=f"{path} is a link; put the folder itself there"):
            change()
    assert contents(tmp_path / path.name) == before


def test_where_new_versions_cannot_be_made_the_old_ones_stay(run):
    directory = run().directory
    before = contents(directory / store.DISTORTED)
    with pytest.raises(UserError, match="this machine has no GPU:99"):
        run(random_crop=50, devices="GPU:99")
    assert contents(directory / store.DISTORTED) == before


def test_what_a_killed_run_began_with_other_flags_is_dropped(run):
    directory = run(augment=0).directory
    begun = directory / store.DISTORTED / "3-0123456789abcdef"
    (begun / store.SHARDS).mkdir(parents=True)
    (begun / store.SHARDS / ".half.h5.partial").write_bytes(bytes(1000))
    run()
    assert sorted((directory / store.DISTORTED).iterdir()) == store.versions(directory)
    assert len(store.versions(directory)) == 2


def test_of_two_runs_that_drop_the_same_version_neither_fails(run):
    first, second = store.versions(run().directory)
    target.drop(first)
    target.drop(first)
    assert store.versions(first.parents[1]) == [second]
    assert run().distorted == 4
    assert verify.find(first) == []
