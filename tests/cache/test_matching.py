"""Which photos have a bottleneck already: the same files, and files that were moved, touched or copied."""

import cache
from cache import compact, layout, strings
from tests.fake_photos import CONTENTS, Folder, expected, missing_paths, published, size_of


def test_a_moved_photo_keeps_its_bottleneck_and_gets_its_new_label(plain):
    Folder(CONTENTS).extract(plain)
    contents = {path: content for path, content in CONTENTS.items() if path != "a/1.jpg"} | {"b/moved.jpg": 1}
    moved = Folder(contents, mtimes={"b/moved.jpg": 9})
    work = moved.extract(plain)
    assert (work.computed, moved.read) == (0, ["b/moved.jpg"])
    assert published(plain.directory) == expected(contents)


def test_a_touched_photo_is_read_and_keeps_its_bottleneck(plain):
    Folder(CONTENTS).extract(plain)
    touched = Folder(CONTENTS, mtimes={"a/2.jpg": 9})
    work = touched.extract(plain)
    assert (work.computed, touched.read) == (0, ["a/2.jpg"])
    assert cache.open(plain.directory).index.mtimes.tolist() == [1, 9, 1, 1, 1]


def test_a_changed_photo_of_the_same_size_is_computed(plain):
    Folder(CONTENTS).extract(plain)
    contents = {**CONTENTS, "a/2.jpg": 302}
    assert size_of(302) == size_of(2)
    changed = Folder(contents, mtimes={"a/2.jpg": 9})
    work = changed.extract(plain)
    assert (work.computed, changed.read) == (1, ["a/2.jpg"])
    assert published(plain.directory) == expected(contents)


def test_a_changed_photo_of_another_size_is_not_even_read(plain):
    Folder(CONTENTS).extract(plain)
    contents = {**CONTENTS, "a/2.jpg": 300}
    assert size_of(300) != size_of(2)
    changed = Folder(contents, mtimes={"a/2.jpg": 9})
    assert changed.extract(plain).computed == 1
    assert changed.read == []


def test_a_copy_of_a_photo_that_is_still_there_is_another_photo(plain):
    Folder(CONTENTS).extract(plain)
    contents = {**CONTENTS, "b/copy.jpg": 1}
    copied = Folder(contents)
    assert copied.extract(plain).computed == 1
    assert copied.read == []
    assert published(plain.directory) == expected(contents)


def test_a_moved_photo_that_cannot_be_read_any_more_is_missing(plain):
    Folder(CONTENTS).extract(plain)
    contents = {path: content for path, content in CONTENTS.items() if path != "a/1.jpg"} | {"b/moved.jpg": 1}
    moved = Folder(contents, unreadable={"b/moved.jpg"})
    work = moved.missing(plain)
    assert (missing_paths(work), moved.read) == (["b/moved.jpg"], ["b/moved.jpg"])


def test_no_photo_is_read_to_compare_it_with_photos_that_are_still_there(plain):
    """After a kill nearly every missing photo has the size of one that is done: all would be read."""
    Folder(CONTENTS).extract(plain)
    contents = CONTENTS | {f"b/{number}.jpg": number for number in range(100, 110)}
    assert {size_of(number) for number in range(100, 110)} == {size_of(content) for content in CONTENTS.values()}
    grown = Folder(contents)
    assert grown.extract(plain).computed == 10
    assert grown.read == []


def test_each_path_is_hashed_a_few_times_whatever_the_number_of_shards(plain, monkeypatch):
    monkeypatch.setattr("cache.work.PIECE", 1)
    folder = Folder({f"a/{number}.jpg": number for number in range(60)})
    folder.compute(plain, folder.missing(plain))
    hashed, hashes = [], strings._hashes
    monkeypatch.setattr(strings, "_hashes", lambda column: hashed.append(len(column)) or hashes(column))
    work = folder.missing(plain)
    assert (len(work.match.shards), len(work)) == (60, 0)
    assert 0 < sum(hashed) <= 4 * 60


def test_photos_that_were_exchanged_are_read_and_keep_their_own_bottlenecks(plain):
    contents = {"a/1.jpg": 1, "b/4.jpg": 4, "b/5.jpg": 5}
    assert size_of(1) == size_of(4)
    Folder(contents).extract(plain)
    contents = {"a/1.jpg": 4, "b/4.jpg": 1, "b/5.jpg": 5}
    exchanged = Folder(contents, ctimes={"a/1.jpg": 101, "b/4.jpg": 101}, listed=200)
    assert exchanged.extract(plain).computed == 0
    assert sorted(exchanged.read) == ["a/1.jpg", "b/4.jpg"]
    assert published(plain.directory) == expected(contents)
    again = Folder(contents, ctimes=exchanged.ctimes, listed=300)
    assert (again.extract(plain).computed, again.read) == (0, [])


def test_photos_that_were_exchanged_after_a_kill_keep_their_own_bottlenecks(plain):
    before = Folder({"a/1.jpg": 1, "b/4.jpg": 4})
    before.compute(plain, before.missing(plain))  # and no index
    contents = {"a/1.jpg": 4, "b/4.jpg": 1}
    exchanged = Folder(contents, ctimes={"a/1.jpg": 101, "b/4.jpg": 101}, listed=200)
    assert exchanged.extract(plain).computed == 0
    assert published(plain.directory) == expected(contents)


def test_another_photo_under_the_same_size_and_mtime_is_computed(plain):
    Folder(CONTENTS).extract(plain)
    contents = {**CONTENTS, "a/2.jpg": 302}
    assert size_of(302) == size_of(2)
    changed = Folder(contents, ctimes={"a/2.jpg": 101}, listed=200)
    assert (changed.extract(plain).computed, changed.read) == (1, ["a/2.jpg"])
    assert published(plain.directory) == expected(contents)


def test_photos_that_were_copied_elsewhere_are_read_once_and_not_computed(plain):
    Folder(CONTENTS).extract(plain)
    copied = Folder(CONTENTS, ctimes=dict.fromkeys(CONTENTS, 101), listed=200)
    assert (copied.extract(plain).computed, len(copied.read)) == (0, 5)
    copied.read.clear()
    assert (copied.extract(plain).computed, copied.read) == (0, [])


def test_a_rejected_photo_whose_ctime_changed_is_tried_again(plain):
    Folder(CONTENTS, unreadable={"a/2.jpg"}).extract(plain)
    assert missing_paths(Folder(CONTENTS).missing(plain)) == []
    assert missing_paths(Folder(CONTENTS, ctimes={"a/2.jpg": 101}, listed=200).missing(plain)) == ["a/2.jpg"]


def test_compacted_shards_keep_the_earliest_listing(plain):
    contents = {"a/1.jpg": 1, "b/4.jpg": 4}
    Folder(contents, listed=100).extract(plain)
    Folder({**contents, "b/5.jpg": 5}, listed=300).extract(plain)
    assert compact.compact(plain.directory).shards_after == 1
    (plain.directory / layout.INDEX).unlink()  # as `verify --repair` does where it is damaged
    exchanged = Folder({"a/1.jpg": 4, "b/4.jpg": 1, "b/5.jpg": 5}, {}, {"a/1.jpg": 200, "b/4.jpg": 200}, 400)
    exchanged.extract(plain)
    assert published(plain.directory) == expected(exchanged.contents)
