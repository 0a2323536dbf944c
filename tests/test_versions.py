"""Distorted versions: other flags, links, folders that are begun or vanish, two runs at once."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cache
from cache import columns, command, reader, store, verify
from cache.__main__ import main as cache_main
from cache.errors import UserError
from cache.strings import Strings
from extract import decode, distort, target
from extract import fill as filling
from extract.run import extract
from extract.settings import Distortion, Settings
from tests.pictures import make_folder, write_picture


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
    (begun / store.SHARDS / f".half.h5{columns.TEMPORARY}").write_bytes(bytes(1000))
    run()
    assert sorted((directory / store.DISTORTED).iterdir()) == store.versions(directory)
    assert len(store.versions(directory)) == 2


def test_what_is_no_version_stays(run):
    directory = run(augment=0).directory
    folders = [directory / store.DISTORTED / name for name in ("2026-photos", "0-0123456789abcdef", "9", "notes")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert run(augment=1).distorted == 4
    assert run(augment=1, augment_seed=1).distorted == 4
    assert all(folder.exists() for folder in folders)
    assert len(store.versions(directory)) == 1


def test_of_two_runs_that_drop_the_same_version_neither_fails(run):
    first, second = store.versions(run().directory)
    target.drop(first)
    target.drop(first)
    assert store.versions(first.parents[1]) == [second]
    assert run().distorted == 4
    assert verify.find(first) == []


def test_a_photo_that_is_gone_before_its_versions_are_made_lacks_them(tmp_path, run, monkeypatch, capsys):
    fill = filling.fill

    def fill_and_lose(*arguments):
        filled = fill(*arguments)
        (tmp_path / "photos" / "a" / "000.png").unlink(missing_ok=True)
        return filled

    monkeypatch.setattr(filling, "fill", fill_and_lose)
    result = run()
    assert (result.computed, result.distorted, result.distorted_reused) == (4, 6, 0)
    assert "1 images can no more be read, and have no version 2" in capsys.readouterr().out
    plain = cache.open(result.directory)
    for version in reader.distorted(plain):
        assert reader.places(version, plain).tolist() == [-1, 0, 1, 2]


def test_where_no_photo_can_be_read_any_more_there_is_no_version(tmp_path, run, monkeypatch):
    fill = filling.fill

    def fill_and_lose(*arguments):
        filled = fill(*arguments)
        shutil.rmtree(tmp_path / "photos", ignore_errors=True)
        return filled

    monkeypatch.setattr(filling, "fill", fill_and_lose)
    result = run()
    assert (result.computed, result.distorted, result.distorted_reused) == (4, 0, 0)
    assert reader.distorted(cache.open(result.directory)) == []


def test_a_version_that_is_being_made_keeps_no_other_from_being_compacted(tmp_path, run, capsys):
    photos = make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    run()
    write_picture(photos / "a" / "new.png", 9)
    first, second = store.versions(run().directory)
    (first / store.INDEX).unlink()
    before = contents(first)
    capsys.readouterr()
    assert command.run(cache_main, ["compact", "--json", str(tmp_path / "cache")]) == 0
    told = {entry["directory"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert (told[str(first)]["shards_before"], told[str(first)]["shards_after"]) == (2, 2)
    assert (told[str(second)]["shards_before"], told[str(second)]["shards_after"]) == (2, 1)
    assert contents(first) == before
    assert command.run(cache_main, ["compact", str(tmp_path / "cache")]) == 0
    assert f"{first}: left alone, its extraction has not ended" in capsys.readouterr().out


def test_versions_are_in_the_order_of_their_numbers(run):
    directory = run(augment=11).directory
    assert [store.version_of(path) for path in store.versions(directory)] == list(range(1, 12))


@pytest.mark.parametrize("differs", ["size", "time"])
def test_a_photo_of_another_size_or_time_is_another_photo(tmp_path, run, differs):
    directory = run().directory
    photo = tmp_path / "photos" / "a" / "000.png"
    before = photo.stat()
    if differs == "size":
        photo.write_bytes(photo.read_bytes() + b"more")
    os.utime(photo, ns=(0, before.st_mtime_ns + (differs == "time")))
    run(augment=0)
    plain = cache.open(directory)
    for version in reader.distorted(plain):
        assert reader.places(version, plain).tolist() == [-1, 1, 2, 3]


def test_what_killed_runs_left_half_written_is_swept(tmp_path, run):
    directory = run(augment=1).directory
    [first] = store.versions(directory)
    left = [directory / store.DISTORTED / f".2-dropped{columns.TEMPORARY}", first / f".half.h5{columns.TEMPORARY}"]
    left[0].mkdir()
    left[1].write_bytes(bytes(1000))
    for path in left:
        os.utime(path, (0, 0))
    write_picture(tmp_path / "photos" / "a" / "new.png", 9)
    assert run(augment=1).distorted == 1
    assert not any(path.exists() for path in left)


def test_of_a_large_jpeg_as_much_is_decoded_as_an_enlarged_crop_needs(tmp_path, run):
    """Of a plain one the decoder leaves 4 times the network's 16 pixels; of one enlarged up to 4 times, 16 times."""
    side = 8 * 4 * 16  # a plain one comes at an eighth
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
    picture.save(tmp_path / "photos" / "a" / "large.jpg", quality=95, subsampling=0)
    distortion = Distortion(False, 100, 100, 0, 0, 1)
    content = (tmp_path / "photos" / "a" / "large.jpg").read_bytes()
    path = Strings.of(["a/large.jpg"])
    [batch] = decode.batches(tmp_path / "photos", path, (16, 16), 1, 1, distortion=distortion)
    # Half is 16 times the network's size.
    wanted = tf.io.decode_jpeg(content, ratio=2)
    draws = distort.draw(tf.raw_ops.Fingerprint(data=[content], method="farmhash64")[0], distortion)
    np.testing.assert_array_equal(batch.images[0], distort.distort(wanted, 16, 16, distortion, draws))
