"""Augmentations in the cache: stopped, damaged, linked, begun with other flags, or made while photos disappear."""

import json
import os
import shutil
import time

import numpy as np
import pytest

import cache
from cache import console, files, layout, reader, shard, verify
from cache.__main__ import main as cache_main
from cache.errors import UserError
from cache.store import Store
from extract import compute as computing
from extract.run import extract
from extract.settings import Settings
from tests.damage import flip, place_of
from tests.extract.augmentations import FLAGS, assert_same, augmentations, forget
from tests.interrupted import Child, Step
from tests.pictures import TICK, make_folder, write_picture
from tests.processes import extract_with_nothing_to_do


def contents(folder):
    """path -> bytes of all files below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_with_nothing_to_do_imports_no_tensorflow_and_writes_nothing(tmp_path, extracted, augment, module):
    (tmp_path / "photos" / "a" / "broken.jpg").write_text("no image")
    time.sleep(TICK)
    augment()
    flags = ["--image_dir", tmp_path / "photos", "--cache_dir", tmp_path / "cache", "--module", module, *FLAGS]
    assert "2 augmentations: 0 computed, 12 reused" in extract_with_nothing_to_do(tmp_path / "cache", flags)


# Photos take three batches, each its own shard: 2 and 3 are of the plain photos, 5 of the first augmentation, 8 of the
# second.
@pytest.mark.parametrize(
    "at",
    [
        Step("before", "replace", "shard", 5),
        Step("after", "replace", "shard", 8),
        Step("before", "replace", "index", 2),
        Step("after", "replace", "index", 1),
    ],
    ids=str,
)
def test_a_killed_run_goes_on_and_makes_the_same_rows(tmp_path, extracted, augment, module, at):
    wanted = augmentations(extracted)
    forget(extracted)
    flags = ["--image_dir", tmp_path / "photos", "--cache_dir", tmp_path / "cache", "--module", module, *FLAGS]
    child = Child("extract", [*map(str, flags), "--batch_size", "2"], at)
    assert child.wait()[0] == -9
    committed = {
        folder: sum(len(shard.read(folder / "shards" / name)) for name in layout.shard_names(folder))
        for folder in (extracted, *layout.augmentations(extracted))
    }
    assert augment().augmented == 12 - (sum(committed.values()) - committed[extracted])
    assert_same(augmentations(extracted), wanted)


def test_an_augmentation_that_is_not_complete_is_named_with_the_remedy(extracted, augment):
    _, second = layout.augmentations(extracted)
    (second / layout.INDEX).unlink()
    with pytest.raises(cache.CacheError, match=rf"{second} is not complete.*run it again with --augment.*or delete"):
        reader.augmentations(cache.open(extracted))
    assert augment().augmented == 0
    assert len(augmentations(extracted)) == 2


def test_damage_is_found_and_exactly_those_rows_are_made_again(tmp_path, extracted, augment, capsys):
    wanted = augmentations(extracted)
    first, second = reader.augmentations(cache.open(extracted))
    damaged = second.shards[0].rows.paths[3]
    flip(second.shards[0].path, place_of(second.shards[0].path, "bottlenecks", 3))
    capsys.readouterr()
    assert console.run(cache_main, ["verify", "--json", str(tmp_path / "cache")]) == 2
    printed = capsys.readouterr()
    assert str(second.directory) in printed.err
    entries = {entry["directory"]: entry for entry in json.loads(printed.out)}
    assert {name: entry["sound"] for name, entry in entries.items()} == {
        str(extracted): True,
        str(first.directory): True,
        str(second.directory): False,
    }
    assert entries[str(second.directory)]["damage"][0]["rows"] == [3]
    with pytest.raises(cache.CacheError, match="rows differ from their checksums"):
        verify.check(reader.augmentations(cache.open(extracted))[1])
    assert console.run(cache_main, ["verify", "--repair", str(tmp_path / "cache")]) == 0
    left = augmentations(extracted)
    assert wanted[1].keys() - left[1].keys() == {damaged}
    assert augment().augmented == 1
    assert_same(augmentations(extracted), wanted)


def test_info_and_compact_list_augmentations(tmp_path, extracted, augment, capsys):
    write_picture(tmp_path / "photos" / "a" / "new.png", 50)
    augment()
    wanted = augmentations(extracted)
    capsys.readouterr()
    assert console.run(cache_main, ["compact", "--json", str(tmp_path / "cache")]) == 0
    compacted = json.loads(capsys.readouterr().out)
    folders = [str(extracted), *map(str, layout.augmentations(extracted))]
    assert [entry["directory"] for entry in compacted] == folders
    assert [(entry["shards_before"], entry["shards_after"]) for entry in compacted] == [(2, 1)] * 3
    assert_same(augmentations(extracted), wanted)
    assert console.run(cache_main, ["info", "--json", str(tmp_path / "cache")]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [(entry["directory"], entry["version"], entry["images"]) for entry in entries] == [
        (folder, number, 7) for folder, number in zip(folders, [None, 1, 2], strict=True)
    ]
    assert console.run(cache_main, ["info", str(tmp_path / "cache")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == folders


def test_an_augmentation_that_is_being_made_is_not_compacted_but_all_others_are(tmp_path, extracted, augment, capsys):
    write_picture(tmp_path / "photos" / "a" / "new.png", 9)
    augment()
    first, second = layout.augmentations(extracted)
    (first / layout.INDEX).unlink()
    before = contents(first)
    capsys.readouterr()
    assert console.run(cache_main, ["compact", "--json", str(tmp_path / "cache")]) == 0
    entries = {entry["directory"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert (entries[str(first)]["shards_before"], entries[str(first)]["shards_after"]) == (2, 2)
    assert (entries[str(second)]["shards_before"], entries[str(second)]["shards_after"]) == (2, 1)
    assert contents(first) == before
    assert console.run(cache_main, ["compact", str(tmp_path / "cache")]) == 0
    assert f"{first}: left alone, its extraction has not ended" in capsys.readouterr().out


def test_only_plain_bottlenecks_are_a_cache_to_open_or_to_extract_into(tmp_path, extracted, module):
    assert cache.open(tmp_path / "cache").directory == extracted
    assert reader.augmentations(reader.augmentations(cache.open(extracted))[0]) == []
    with pytest.raises(cache.CacheError, match="give another --cache_dir"):
        extract(Settings(str(tmp_path / "photos"), str(layout.augmentations(extracted)[0]), module))


@pytest.mark.parametrize("old", [0, 1])
def test_a_network_that_changed_under_its_name_neither_makes_nor_drops_augmentations(
    tmp_path, augment, module, other_module, hub, old
):
    make_folder(tmp_path / "photos", {"a": 2, "b": 2})
    handle, put = hub
    put(module)
    directory = augment(module=handle, augment=old, augment_seed=1).directory
    before = layout.augmentations(directory)
    put(other_module)
    error = f"is no longer the network that made {directory}; give another --cache_dir"
    with pytest.raises(cache.UserError, match=error):
        augment(module=handle)
    assert layout.augmentations(directory) == before and len(before) == old


def test_an_augmentation_of_another_backbone_is_refused(extracted, augment, other_module):
    other = augment(module=other_module, augment=1).directory
    shutil.rmtree(extracted / layout.AUGMENTATIONS)
    shutil.copytree(other / layout.AUGMENTATIONS, extracted / layout.AUGMENTATIONS)
    with pytest.raises(cache.CacheError, match="made by another backbone"):
        reader.augmentations(cache.open(extracted))


@pytest.mark.parametrize("which", ["all", "one"])
def test_a_link_to_augmentations_elsewhere_is_refused_and_nothing_there_is_touched(tmp_path, extracted, augment, which):
    path = extracted / layout.AUGMENTATIONS if which == "all" else layout.augmentations(extracted)[1]
    shutil.move(path, tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    swept = tmp_path / path.name / ".x.tmp"  # a killed run's, as it seems
    swept.mkdir()
    (swept / "thesis.txt").write_text("ten years of work")
    os.utime(swept, (0, 0))
    before = contents(tmp_path / path.name)
    # Other flags drop the augmentations that are there.
    for change in (lambda: reader.augmentations(cache.open(extracted)), lambda: augment(augment_seed=1)):
        with pytest.raises(cache.CacheError, match=f"{path} is a link; put the folder itself there"):
            change()
    assert contents(tmp_path / path.name) == before


def test_where_new_augmentations_cannot_be_made_the_old_ones_stay(extracted, augment):
    before = contents(extracted / layout.AUGMENTATIONS)
    with pytest.raises(UserError, match="this machine has no GPU:99"):
        augment(random_crop=50, devices="GPU:99")
    assert contents(extracted / layout.AUGMENTATIONS) == before


def test_what_a_killed_run_began_with_other_flags_is_dropped(extracted, augment):
    begun = extracted / layout.AUGMENTATIONS / "3-0123456789abcdef"
    (begun / layout.SHARDS).mkdir(parents=True)
    (begun / layout.SHARDS / f".half.h5{files.TEMPORARY}").write_bytes(bytes(1000))
    augment()
    assert sorted((extracted / layout.AUGMENTATIONS).iterdir()) == layout.augmentations(extracted)
    assert len(layout.augmentations(extracted)) == 2


def test_folders_that_are_no_augmentations_stay(extracted, augment):
    names = ("2026-photos", "0-0123456789abcdef", "9", "notes")
    folders = [extracted / layout.AUGMENTATIONS / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    assert augment(augment=1, augment_seed=1).augmented == 6
    assert all(folder.exists() for folder in folders)
    assert len(layout.augmentations(extracted)) == 1


def test_an_augmentation_can_be_dropped_twice_as_two_runs_at_once_do(extracted, augment):
    first, second = reader.augmentations(cache.open(extracted))
    for _ in range(2):
        Store(first.directory, first.backbone).drop()
    assert layout.augmentations(extracted) == [second.directory]
    assert augment().augmented == 6
    assert verify.find(first.directory) == []


@pytest.fixture
def losing(monkeypatch):
    """Calls a function after each computation."""

    def install(lose):
        compute = computing.compute

        def compute_and_lose(*arguments):
            compute(*arguments)
            lose()

        monkeypatch.setattr(computing, "compute", compute_and_lose)

    return install


def test_a_photo_that_is_gone_before_it_is_augmented_is_left_out(tmp_path, extracted, augment, losing, capsys):
    forget(extracted)
    losing(lambda: (tmp_path / "photos" / "a" / "000.png").unlink(missing_ok=True))
    result = augment()
    assert (result.computed, result.augmented, result.augmented_reused) == (6, 10, 0)
    assert "1 photos can no longer be read; augmentation 2 lacks them" in capsys.readouterr().out
    plain = cache.open(extracted)
    for augmentation in reader.augmentations(plain):
        assert reader.places(augmentation, plain).tolist() == [-1, 0, 1, 2, 3, 4]


def test_where_no_photo_can_be_read_any_more_there_is_no_augmentation(tmp_path, extracted, augment, losing):
    forget(extracted)
    losing(lambda: shutil.rmtree(tmp_path / "photos", ignore_errors=True))
    result = augment()
    assert (result.computed, result.augmented, result.augmented_reused) == (6, 0, 0)
    assert reader.augmentations(cache.open(extracted)) == []


def test_augmentations_are_in_the_order_of_their_numbers(extracted):
    folder = extracted / layout.AUGMENTATIONS
    for number in range(3, 12):
        shutil.copytree(layout.augmentations(extracted)[1], folder / f"{number}-0123456789abcdef")
    opened = reader.augmentations(cache.open(extracted))
    assert [layout.augmentation_number(augmentation.directory) for augmentation in opened] == list(range(1, 12))


@pytest.mark.parametrize("differs", ["content", "size", "time"])
def test_a_photo_that_changed_is_not_found_in_augmentations_that_do_not_have_it(tmp_path, extracted, augment, differs):
    photo = tmp_path / "photos" / "a" / "000.png"
    before = photo.stat()
    if differs == "content":
        write_picture(photo, 70)
    else:
        if differs == "size":
            photo.write_bytes(photo.read_bytes() + b"more")
        os.utime(photo, ns=(0, before.st_mtime_ns + (1 if differs == "time" else 0)))
    augment(augment=0)
    plain = cache.open(extracted)
    for augmentation in reader.augmentations(plain):
        assert list(augmentation.paths) == list(plain.paths)
        np.testing.assert_array_equal(reader.places(augmentation, plain), [-1, 1, 2, 3, 4, 5])


def test_what_killed_runs_left_half_written_is_swept(tmp_path, extracted, augment):
    first, _ = layout.augmentations(extracted)
    left = [extracted / layout.AUGMENTATIONS / f".2-dropped{files.TEMPORARY}", first / f".half.h5{files.TEMPORARY}"]
    left[0].mkdir()
    left[1].write_bytes(bytes(1000))
    for path in left:
        os.utime(path, (0, 0))
    write_picture(tmp_path / "photos" / "a" / "new.png", 9)
    assert augment(augment=1).augmented == 1
    assert not any(path.exists() for path in left)
