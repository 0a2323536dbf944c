"""The write side of a cache: what is missing, what is published, and what becomes of photos that cannot be read."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest

import cache
from cache import files, layout, rejected, shard, store, verify
from cache import index as indexes
from cache.errors import CacheError, UserError
from cache.layout import INDEX, REJECTED, SHARDS
from cache.photos import NOT_A_FILE
from cache.rejected import RETRY
from cache.store import Store
from tests.damage import flip, place_of
from tests.fake_photos import BACKBONE, CONTENTS, Folder, expected, missing_paths, published, size_of
from tests.random_cache import shard_paths


def stamps(directory):
    """What changes when a file is replaced or written, or one comes or goes."""
    paths = [path for path in directory.rglob("*") if path.name != files.LOCK and not path.is_dir()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


# --- missing, writer, publish -----------------------------------------------------------------------------------


def test_everything_is_missing_in_a_folder_that_does_not_exist(plain):
    folder = Folder(CONTENTS)
    work = folder.missing(plain)
    assert missing_paths(work) == sorted(CONTENTS)
    assert (len(work), len(work.rejected)) == (5, 0)
    assert not plain.directory.exists()
    assert folder.read == []


def test_what_was_computed_and_published_is_read(plain):
    folder = Folder(CONTENTS)
    work = folder.missing(plain)
    assert sorted(folder.compute(plain, work)) == sorted(CONTENTS)
    plain.publish(work, folder.read_fingerprints)
    assert (work.computed, work.reused) == (5, 0)
    assert published(plain.directory) == expected(CONTENTS)
    assert cache.open(plain.directory).index.image_dir == "/photos"
    assert not (plain.directory / REJECTED).exists()
    assert verify.find(plain.directory) == []


def test_shards_say_which_backbone_engine_and_precision_made_them(plain):
    with plain.writer(Folder(CONTENTS).photos(), "mixed_bfloat16", "openvino") as writer:
        writer.append(Folder(CONTENTS).rows(Folder(CONTENTS).photos(), np.arange(5)))
    [path] = shard_paths(plain.directory)
    attributes = shard.read(path).attributes
    assert attributes.items() >= {**BACKBONE.attributes(), "precision": "mixed_bfloat16", "engine": "openvino"}.items()


def test_a_writer_sweeps_what_killed_writers_left(plain):
    Folder(CONTENTS).extract(plain)
    abandoned = plain.directory / SHARDS / f".1.h5{files.TEMPORARY}"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (time.time() - 7200,) * 2)
    with plain.writer(Folder(CONTENTS).photos(), "float32", "tensorflow"):
        pass
    assert not abandoned.exists()


def test_a_folder_that_cannot_be_written_is_reported_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/tiny: Not a directory; choose another --cache_dir"):
        Store(tmp_path / "file" / "tiny", BACKBONE).writer(Folder(CONTENTS).photos(), "float32", "tensorflow")


def test_publishing_nothing_new_leaves_every_file_untouched(plain):
    folder = Folder({**CONTENTS, "b/6.jpg": 6}, unreadable={"b/6.jpg"})
    folder.extract(plain)
    before = stamps(plain.directory)
    work = folder.extract(plain)
    assert (len(work), work.computed, work.reused, len(work.rejected)) == (0, 0, 5, 1)
    assert stamps(plain.directory) == before


def test_only_new_photos_are_missing_and_photos_that_are_gone_leave_the_index(plain):
    Folder(CONTENTS).extract(plain)
    contents = {"a/1.jpg": 1, "a/new.jpg": 60, "b/5.jpg": 5, "c/7.jpg": 70}
    work = Folder(contents).missing(plain)
    assert missing_paths(work) == ["a/new.jpg", "c/7.jpg"]
    Folder(contents).extract(plain)
    assert published(plain.directory) == expected(contents)
    assert cache.open(plain.directory).labels == ["a", "b", "c"]


def test_what_a_killed_run_committed_is_not_missing(plain):
    folder = Folder(CONTENTS)
    folder.compute(plain, folder.missing(plain))
    assert not (plain.directory / INDEX).exists()
    work = folder.extract(plain)
    assert (work.computed, work.reused) == (0, 5)
    assert published(plain.directory) == expected(CONTENTS)
    assert folder.read == []


# --- rejected photos --------------------------------------------------------------------------------------------


def test_rejected_photos_are_listed_and_skipped_until_they_change(plain):
    folder = Folder(CONTENTS, unreadable={"a/2.jpg"})
    work = folder.extract(plain)
    assert (work.computed, work.newly_rejected, work.reused) == (4, 1, 0)
    [row] = rejected.read(plain.directory)
    assert (row.path, row.size, row.mtime, row.reason) == ("a/2.jpg", size_of(2), 1, "broken")
    assert "a/2.jpg" not in published(plain.directory)
    again = folder.missing(plain)
    assert (len(again), list(again.rejected.values()), again.newly_rejected) == (0, [row], 0)
    changed = Folder(CONTENTS, mtimes={"a/2.jpg": 9})
    assert missing_paths(changed.missing(plain)) == ["a/2.jpg"]
    changed.extract(plain)
    assert rejected.read(plain.directory) == []
    assert published(plain.directory) == expected(CONTENTS)


def test_a_rejected_photo_is_not_read_to_compare_it_with_photos_that_are_gone(plain):
    folder = Folder(CONTENTS, unreadable={"a/2.jpg"})
    folder.extract(plain)
    contents = {path: content for path, content in CONTENTS.items() if path != "b/5.jpg"}
    assert size_of(CONTENTS["b/5.jpg"]) == size_of(CONTENTS["a/2.jpg"])
    smaller = Folder({**contents, "b/moved.jpg": 5}, unreadable={"a/2.jpg"})
    assert smaller.extract(plain).computed == 0
    assert smaller.read == ["b/moved.jpg"]


def test_a_photo_to_retry_is_missing_though_it_has_not_changed(plain):
    folder = Folder(CONTENTS)
    work = folder.missing(plain)
    work.reject(1, "the disk broke down", retry=True)
    folder.compute(plain, work)
    plain.publish(work, folder.read_fingerprints)
    assert [row.mtime for row in rejected.read(plain.directory)] == [RETRY]
    assert missing_paths(folder.missing(plain)) == ["a/2.jpg"]


def test_what_is_no_file_is_rejected(plain):
    folder = Folder(CONTENTS)
    photos = folder.photos()
    photos.sizes[0] = NOT_A_FILE
    work = plain.missing(photos, folder.read_fingerprints)
    assert "a/1.jpg" not in missing_paths(work)
    assert [(row.path, row.reason) for row in work.rejected.values()] == [("a/1.jpg", "not a file")]


def test_a_class_without_readable_photos_is_an_error_that_names_its_folder(plain):
    folder = Folder(CONTENTS, unreadable={"b/4.jpg", "b/5.jpg"})
    work = folder.missing(plain)
    folder.compute(plain, work)
    with pytest.raises(UserError, match=r"class folder /photos/b has no readable photo; .*rejected.csv says why"):
        plain.publish(work, folder.read_fingerprints)
    assert [row.path for row in rejected.read(plain.directory)] == ["b/4.jpg", "b/5.jpg"]
    assert not (plain.directory / INDEX).exists()
    with pytest.raises(UserError, match="class folder /photos/b"):
        folder.extract(plain)
    whole = Folder(CONTENTS, mtimes={"b/4.jpg": 9, "b/5.jpg": 9})
    assert whole.extract(plain).computed == 2  # the photos of the other class are committed


def test_a_damaged_list_of_rejected_photos_is_refused(plain):
    Folder(CONTENTS).extract(plain)
    (plain.directory / REJECTED).write_text("no,table")
    with pytest.raises(CacheError, match=r"rejected.csv is damaged"):
        Folder(CONTENTS).missing(plain)


# --- augmentations ----------------------------------------------------------------------------------------------


@pytest.fixture
def augmentation(plain):
    return plain.augmentation(2, "flip (1), seed 0, version 2")


def test_an_augmentation_is_a_folder_of_its_own(plain, augmentation):
    assert (plain.is_augmentation, augmentation.is_augmentation) == (False, True)
    assert augmentation.directory.parent == plain.directory / layout.AUGMENTATIONS
    assert augmentation.directory.name == f"2-{augmentation.backbone.fingerprint}"
    assert augmentation.backbone.fingerprint != plain.backbone.fingerprint
    assert plain.augmentation(2, "crop").directory != augmentation.directory


def test_an_augmentation_lacks_the_photos_that_are_rejected_and_lists_none(plain, augmentation):
    folder = Folder(CONTENTS, unreadable={"a/2.jpg"})
    done = folder.extract(plain)
    work = folder.missing(augmentation, unreadable=done.rejected)
    assert missing_paths(work) == ["a/1.jpg", "a/3.jpg", "b/4.jpg", "b/5.jpg"]
    folder.compute(augmentation, work)
    augmentation.publish(work, folder.read_fingerprints)
    assert sorted(published(augmentation.directory)) == ["a/1.jpg", "a/3.jpg", "b/4.jpg", "b/5.jpg"]
    assert not (augmentation.directory / REJECTED).exists()
    assert layout.augmentations(plain.directory) == [augmentation.directory]
    before = stamps(plain.directory)
    again = folder.missing(augmentation, unreadable=done.rejected)
    augmentation.publish(again, folder.read_fingerprints)
    assert (len(again), again.reused) == (0, 4)
    assert stamps(plain.directory) == before


def test_an_augmentation_may_lack_a_whole_class_that_can_no_longer_be_read(plain, augmentation):
    Folder(CONTENTS).extract(plain)
    folder = Folder(CONTENTS, unreadable={"b/4.jpg", "b/5.jpg"})
    work = folder.extract(augmentation)
    assert (work.computed, work.newly_rejected) == (3, 2)
    assert sorted(published(augmentation.directory)) == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]
    assert not (augmentation.directory / REJECTED).exists()


def test_an_augmentation_of_no_photos_has_no_index(plain, augmentation):
    folder = Folder(CONTENTS, unreadable=set(CONTENTS))
    work = folder.missing(augmentation)
    folder.compute(augmentation, work)
    for path in shard_paths(augmentation.directory):
        path.unlink()
    augmentation.publish(work, folder.read_fingerprints)
    assert not (augmentation.directory / INDEX).exists()


# --- drop -------------------------------------------------------------------------------------------------------


def test_drop_deletes_one_augmentation_or_everything(plain, augmentation):
    other = plain.augmentation(1, "flip (1), seed 0, version 1")
    for folder in (plain, augmentation, other):
        Folder(CONTENTS).extract(folder)
    augmentation.drop()
    assert layout.augmentations(plain.directory) == [other.directory]
    assert published(plain.directory) == expected(CONTENTS)
    plain.drop()
    assert list(plain.directory.parent.iterdir()) == []
    plain.drop()  # what is not there needs no deletion


# --- damage -----------------------------------------------------------------------------------------------------


def lose_all(directory):
    for path in shard_paths(directory):
        path.unlink()


def test_bottlenecks_that_vanish_before_they_are_published_are_an_error(plain):
    folder = Folder(CONTENTS)
    work = folder.missing(plain)
    folder.compute(plain, work)
    lose_all(plain.directory)
    with pytest.raises(UserError, match=rf"5 bottlenecks are gone from {plain.directory}; run the same command again"):
        plain.publish(work, folder.read_fingerprints)
    assert not (plain.directory / INDEX).exists()


def test_bottlenecks_that_vanished_since_the_last_run_are_missing(plain):
    Folder(CONTENTS).extract(plain)
    lose_all(plain.directory)
    assert Folder(CONTENTS).extract(plain).computed == 5
    assert published(plain.directory) == expected(CONTENTS)


@pytest.mark.parametrize(
    ("column", "value"), [("shard_rows", 6), ("shard_rows", -1), ("shard_ids", 3), ("shard_ids", -1)]
)
def test_an_index_that_points_nowhere_is_refused(plain, column, value):
    Folder(CONTENTS).extract(plain)
    info, index = indexes.read(plain.directory)
    numbers = getattr(index, column).copy()
    numbers[0] = value
    indexes.write(plain.directory, info, replace(index, **{column: numbers}))
    with pytest.raises(CacheError, match=r"index.h5 is damaged .* verify --repair"):
        Folder({**CONTENTS, "a/new.jpg": 60}).missing(plain)


@pytest.mark.parametrize("grown", [False, True])
def test_a_damaged_row_of_the_index_gets_no_new_checksum(plain, grown):
    Folder(CONTENTS).extract(plain)
    path = plain.directory / INDEX
    flip(path, place_of(path, "shard_rows", 0))  # now the bottleneck of the first photo is that of another
    with pytest.raises(CacheError, match=r"index.h5 is damaged .* verify --repair"):
        Folder({**CONTENTS, "a/new.jpg": 60} if grown else CONTENTS).missing(plain)


def test_a_shard_that_cannot_be_read_does_not_get_into_the_index(plain):
    Folder(CONTENTS).extract(plain)
    (plain.directory / SHARDS / "20000101T000000-broken.h5").write_bytes(b"no HDF5")
    with pytest.raises(CacheError, match=r"broken.h5 is damaged"):
        Folder({**CONTENTS, "a/new.jpg": 60}).missing(plain)
    with pytest.raises(CacheError, match=r"broken.h5 is damaged"):
        Folder(CONTENTS).extract(plain)
    assert published(plain.directory) == expected(CONTENTS)


def test_a_shard_of_another_backbone_is_refused(plain, tmp_path):
    other = Store(tmp_path / "other", replace(BACKBONE, fingerprint="fedcba9876543210"))
    Folder(CONTENTS).extract(other)
    foreign = shard_paths(other.directory)[0]
    Folder(CONTENTS).extract(plain)
    os.link(foreign, plain.directory / SHARDS / foreign.name)
    with pytest.raises(CacheError, match=r"\.h5 is damaged \(made by another backbone\)"):
        Folder({**CONTENTS, "a/new.jpg": 60}).missing(plain)


# --- what a folder's files say of its backbone --------------------------------------------------------------------


def test_the_backbone_is_read_from_the_index_or_the_first_shard(plain):
    with pytest.raises(CacheError, match=r"index.h5 is missing"):
        store.read_info(plain.directory)
    folder = Folder(CONTENTS)
    folder.compute(plain, folder.missing(plain))
    assert store.read_info(plain.directory) == BACKBONE
    folder.extract(plain)
    lose_all(plain.directory)
    assert store.read_info(plain.directory) == BACKBONE
