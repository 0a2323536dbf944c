"""The split into training, validation and test photos: the tutorial's rule, and what it promises."""

import csv
import hashlib
import itertools
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import UserError
from cache.labels import normalise, of_folders
from cache.strings import Strings
from train.data import split

PATHS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), max_size=30)
SHARES = st.floats(0, 49)


def by_the_book(path: str, testing_percentage: float, validation_percentage: float) -> int:
    """The rule as the tutorial writes it, one path at a time."""
    percentage = hashed(re.sub(r"_nohash_.*$", "", path))
    if percentage < validation_percentage:
        return split.VALIDATION
    return split.TEST if percentage < testing_percentage + validation_percentage else split.TRAIN


def all_by_the_book(paths, testing_percentage, validation_percentage):
    return np.array([by_the_book(path, testing_percentage, validation_percentage) for path in paths], np.uint8)


def hashed(path):
    return int(hashlib.sha1(path.encode()).hexdigest(), 16) % 2**27 * (100.0 / (2**27 - 1))


# With shares of up to 98% together it trains, so that no other photo of its class has to.
TRAINS = next(path for path in map(str, itertools.count()) if hashed(path) > 98)


def by_hash(paths, testing, validation):
    """The parts of photos of one class, uint8 [N]."""
    paths = [*paths, TRAINS]
    label_ids, parts = np.zeros(len(paths), np.int32), np.full(len(paths), split.TRAIN, np.uint8)
    percentages = {"testing_percentage": testing, "validation_percentage": validation}
    return split.hold_back(parts, Strings.of(paths), ["all"], label_ids, np.arange(len(paths)), **percentages)[:-1]


@given(PATHS, SHARES, SHARES)
def test_the_rule_is_the_tutorials(paths, testing, validation):
    np.testing.assert_array_equal(by_hash(paths, testing, validation), all_by_the_book(paths, testing, validation))


@given(PATHS, PATHS, SHARES, SHARES)
def test_new_photos_move_none(paths, more, testing, validation):
    before = dict(zip(paths, by_hash(paths, testing, validation), strict=True))
    together = more + paths
    after = dict(zip(together, by_hash(together, testing, validation), strict=True))
    assert {path: after[path] for path in paths} == before


@given(PATHS, st.lists(st.text("ab_/.é", max_size=5), min_size=2, max_size=6), SHARES, SHARES)
def test_photos_of_one_object_stay_together(objects, endings, testing, validation):
    for stem in objects:
        photos = [f"{stem}_nohash_{ending}.jpg" for ending in endings]
        assert len(set(by_hash(photos, testing, validation))) == 1


@given(PATHS, SHARES, SHARES, SHARES)
def test_a_larger_validation_share_takes_no_validation_photo_away(paths, testing, smaller, larger):
    smaller, larger = sorted((smaller, larger))
    before, after = (by_hash(paths, testing, validation) for validation in (smaller, larger))
    assert (after[before == split.VALIDATION] == split.VALIDATION).all()


def test_the_percentages_are_reached():
    # 20,000 independent draws: five standard deviations of a share p are 5 sqrt(p (1 - p) / 20000).
    parts = by_hash([f"class/{i}.jpg" for i in range(20_000)], 10, 25)
    for name, share in ((split.TEST, 0.10), (split.VALIDATION, 0.25), (split.TRAIN, 0.65)):
        assert abs((parts == name).mean() - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_percentages_that_leave_nothing_to_train_on():
    split.check_percentages(50, 49.9)
    for testing, validation in ((50, 50), (100, 0), (80, 30)):
        with pytest.raises(UserError, match="below 100"):
            split.check_percentages(testing, validation)


def of_paths(paths, how="hash", testing=10.0, validation=10.0, same=()):
    """The split of a cache of these paths, labelled as the extraction labels them; and the part of each path.

    The photos of each group of paths in `same` are copies of each other.
    """
    contents = {path: group[0] for group in same for path in group}
    fingerprints = np.array([hash(contents.get(path, path)) % 2**64 for path in paths], np.uint64)
    folders = sorted({path.rpartition("/")[0] for path in paths})
    label_of = dict(zip(folders, of_folders(folders), strict=True))
    labels = sorted(label_of.values())
    label_ids = np.array([labels.index(label_of[path.rpartition("/")[0]]) for path in paths], np.int32)
    percentages = {"testing_percentage": testing, "validation_percentage": validation}
    found = split.split(str(how), Strings.of(paths), labels, label_ids, fingerprints, **percentages)
    return found, dict(zip(paths, found.parts.tolist(), strict=True))


def classes(found):
    """The class of each photo, by name."""
    return [found.labels[label_id] for label_id in found.label_ids]


def many(folder, count=40):
    return [f"{folder}/{i:03}.jpg" for i in range(count)]


def test_a_warning_names_small_classes(capsys):
    label_ids = np.array([0] * 30 + [1] * 19)
    parts = np.zeros(49, np.uint8)
    split.check_classes(["many", "few"], label_ids, parts)
    (warning,) = capsys.readouterr().err.splitlines()
    assert "fewer than 20 photos" in warning
    assert warning.endswith(": 'few' (19)")

    split.check_classes(["many", "enough"], np.append(label_ids, 1), np.append(parts, 0))
    assert capsys.readouterr().err == ""

    parts[:4] = [split.VALIDATION, split.VALIDATION, split.TEST, split.TEST]
    parts[30] = split.TEST
    split.check_classes(["many", "few"], label_ids, parts)
    _, validation = capsys.readouterr().err.splitlines()
    assert "no validation photo" in validation
    assert validation.endswith(": 'few' (19)")

    with pytest.raises(UserError, match="there is 1 class,"):
        split.check_classes(["many"], label_ids[:30], parts[:30])


def test_of_many_small_classes_a_warning_names_ten(capsys):
    split.check_classes([f"class {i:02}" for i in range(25)], np.arange(25), np.zeros(25, np.uint8))
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.endswith("'class 09' (1) and 15 more")


# --- the hash, of a cache ---------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), unique=True), SHARES, st.floats(0, 49))
def test_every_class_keeps_a_photo_to_train_on_and_nothing_else_moves(images, testing, validation):
    paths = [f"{label}/{number}.jpg" for label, number in images] + ["d/1.jpg", "e/1.jpg"]
    found, _ = of_paths(paths, "hash", testing, validation)
    by_the_hash = all_by_the_book(paths, testing, validation)
    of_class = np.array(classes(found))
    for label in found.labels:
        inside = of_class == label
        trains = found.parts[inside] == split.TRAIN
        assert trains.any()
        if (by_the_hash[inside] == split.TRAIN).any():
            np.testing.assert_array_equal(found.parts[inside], by_the_hash[inside])
        else:
            assert trains.sum() == 1
            np.testing.assert_array_equal(found.parts[inside][~trains], by_the_hash[inside][~trains])


def held_back(label, count, percentage=10):
    """Paths of the class that the hash holds back all, lowest hash first."""
    hashes = {path: hashed(path) for path in many(label, 500)}
    return sorted((path for path in hashes if hashes[path] < percentage), key=hashes.__getitem__)[:count]


def test_a_class_that_the_hash_would_hold_back_whole_trains_on_its_highest(capsys):
    small = held_back("small", 3)
    found, parts = of_paths([*many("large"), *small[::-1]])
    assert [parts[path] == split.TRAIN for path in small] == [False, False, True]
    assert found.how == "hash"
    warnings = capsys.readouterr().err.splitlines()
    assert [line.endswith(": 'small'") for line in warnings if "one trains" in line] == [True]

    # Other classes change nothing, nor does an image of a lower hash; the first that trains anyway takes its place.
    _, again = of_paths([*many("large", 60), *many("other"), *small])
    assert {path: again[path] for path in small} == {path: parts[path] for path in small}
    _, fewer = of_paths([*many("large"), *small[1:]])
    assert {path: fewer[path] for path in small[1:]} == {path: parts[path] for path in small[1:]}
    trains = next(path for path in many("small") if hashed(path) > 20)
    _, more = of_paths([*many("large"), *small, trains])
    assert [more[path] == split.TRAIN for path in (*small, trains)] == [False, False, False, True]


def test_photos_of_the_object_that_has_to_train_stay_together():
    stem = held_back("small", 1)[0].removesuffix(".jpg")
    photos = [f"{stem}.jpg_nohash_{i}.jpg" for i in range(3)]
    _, parts = of_paths([*many("large"), *photos])
    assert [parts[path] for path in photos] == [split.TRAIN] * 3


def test_a_single_photo_trains():
    for i in range(30):
        found, parts = of_paths([*many("large"), f"small/{i}.jpg"])
        assert parts[f"small/{i}.jpg"] == split.TRAIN
        assert list(found.labels) == ["large", "small"]


def test_a_class_without_a_photo_is_named():
    of_labels = ["a", "none"], np.zeros(40, np.int32), np.arange(40, dtype=np.uint64)
    with pytest.raises(UserError, match="'none' has no photo in the cache"):
        split.split("hash", Strings.of(many("a")), *of_labels, testing_percentage=10, validation_percentage=10)


# --- folders ----------------------------------------------------------------------------------------------------


FOLDERS = {"train": split.TRAIN, "training": split.TRAIN, "Train": split.TRAIN}
FOLDERS |= {"val": split.VALIDATION, "valid": split.VALIDATION, "validation": split.VALIDATION}
FOLDERS |= {"test": split.TEST, "testing": split.TEST}


def laid_out(*tops):
    return [path for top in tops for name in ("roses", "wild/Red Tulips") for path in many(f"{top}/{name}", 25)]


@pytest.mark.parametrize("how", ["auto", "folders"])
@pytest.mark.parametrize("tops", [("train", "val", "test"), ("Train", "validation", "testing"), ("training", "valid")])
def test_folders_above_the_classes_are_the_parts(how, tops, capsys):
    paths = laid_out(*tops)
    found, parts = of_paths(paths, how, testing=0)
    assert parts == {path: FOLDERS[path.partition("/")[0]] for path in paths}
    assert found.how == "folders"
    assert list(found.labels) == ["roses", "wild red tulips"]
    assert found.label_ids.dtype == np.int32
    assert classes(found) == ["roses" if "roses" in path else "wild red tulips" for path in paths]
    assert capsys.readouterr().err == ""


def test_a_part_without_a_folder_is_held_back_from_training():
    paths = laid_out("train", "test")
    found, parts = of_paths(paths, "auto", testing=30, validation=20)
    train = [path for path in paths if path.startswith("train")]
    assert {parts[path] for path in paths if path not in train} == {split.TEST}
    assert [parts[path] for path in train] == all_by_the_book(train, 0, 20).tolist()
    assert found.how == "folders, validation by hash"

    found, parts = of_paths(train, "auto", testing=30, validation=20)
    assert [parts[path] for path in train] == all_by_the_book(train, 30, 20).tolist()
    assert found.how == "folders, validation and test by hash"


def test_only_training_photos_are_moved_back_to_training():
    small = held_back("train/small", 2)
    tests = many("test/small")
    assert max(map(hashed, tests)) > max(map(hashed, small))
    _, parts = of_paths([*laid_out("train", "test"), *small, *tests], "auto")
    assert [parts[path] for path in small] == [split.VALIDATION, split.TRAIN]
    assert {parts[path] for path in tests} == {split.TEST}


@pytest.mark.parametrize(
    "paths",
    [
        [*many("trains"), *many("tests")],
        [*many("train"), *many("test")],  # no class below
        [*many("train a"), *many("train b")],  # the labels that train/a and train/b would have
        [*many("val/a"), *many("val/b")],
        [*many("train_station/day"), *many("train_track/day")],
        [*many("seg_train/a"), *many("seg_train/b")],  # nothing shows that seg_train is a part
        [*many("test_train/a"), *many("test_train/b")],
        [*laid_out("train"), *many("wild/red tulips")],
        [*laid_out("train"), *many("tulips")],
    ],
)
def test_other_folders_are_classes(paths, capsys):
    found, parts = of_paths(paths, "auto")
    assert found.how == "hash"
    assert list(parts.values()) == all_by_the_book(paths, 10, 10).tolist()
    assert classes(found) == [normalise(path.rpartition("/")[0]) for path in paths]
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="--split folders: "):
        of_paths(paths, "folders")


def test_the_hash_can_be_asked_for_where_folders_would_do():
    paths = laid_out("train", "test")
    found, parts = of_paths(paths, "hash")
    assert list(parts.values()) == all_by_the_book(paths, 10, 10).tolist()
    assert list(found.labels) == ["test roses", "test wild red tulips", "train roses", "train wild red tulips"]


def test_a_photo_beside_the_parts_is_named(capsys):
    paths = [*laid_out("train", "test"), "train/stray.jpg"]
    assert of_paths(paths, "auto")[0].how == "hash"
    assert "the folders are not used as a split: 'train/stray.jpg' lies in no class" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"'train/stray\.jpg' lies in no class folder"):
        of_paths(paths, "folders")


def test_folders_without_one_to_train_on():
    with pytest.raises(UserError, match="--split folders: no train/"):
        of_paths(laid_out("val", "test"), "folders")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("Train", "Evaluation"),
        ("TRAINING DATA", "Testing-data"),
        ("trainset", "testset"),
        ("train2017", "eval2017"),
        ("flowers/train", "flowers/test"),
        ("archive/flowers/train/train", "archive/flowers/holdout/holdout"),
        ("Fichiers d'été/train", "Fichiers d'été/test"),
    ],
)
@pytest.mark.parametrize("how", ["auto", "folders"])
def test_parts_have_the_names_and_places_that_people_give_them(train, test, how, capsys):
    paths = laid_out(train, test)
    found, parts = of_paths(paths, how, validation=0)
    assert parts == {path: split.TRAIN if path.startswith(train) else split.TEST for path in paths}
    assert found.how == "folders"
    assert classes(found) == ["roses" if "roses" in path else "wild red tulips" for path in paths]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION", "dev", "validate", "val_images"])
def test_names_of_the_validation_part(name):
    _, parts = of_paths(laid_out("train_images" if "_" in name else "train", name), "auto")
    assert {part for path, part in parts.items() if path.startswith(f"{name}/")} == {split.VALIDATION}


@pytest.mark.parametrize(
    ("train", "beside_it"),
    [("seg_train/seg_train", "seg_pred/seg_pred"), ("train", "test"), ("train", "unlabelled/part 1"), ("train", "val")],
)
def test_photos_that_only_lack_a_class_are_counted_and_left_out(train, beside_it, capsys):
    unlabelled = many(beside_it, 7)
    found, parts = of_paths([*laid_out(train), *unlabelled], "auto")
    assert {parts[path] for path in unlabelled} == {split.LEFT_OUT}
    assert found.how == "folders, validation and test by hash"
    assert list(found.labels) == ["roses", "wild red tulips"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: left out, since no class folder holds the photos: ")
    assert warning.endswith(f"'{normalise(beside_it)}' (7)")


def test_classes_whose_folder_is_their_label_are_the_same_in_all_parts(capsys):
    names = ["C++", "C#", "café", "猫", "Roses", "++"]
    train = [path for name in names for path in many(f"train/{name}", 25)]
    test = [path for name in ["C++", "café", "猫", "++", "roses"] for path in many(f"test/{name}", 25)]
    found, _ = of_paths([*train, *test], "auto", validation=0)
    assert list(found.labels) == sorted(["C++", "C#", "café", "猫", "++", "roses"])
    assert classes(found)[150:] == [path.split("/")[1] for path in test]
    assert "no test photo, so nothing shows how well they do: 'C#' (25)" in capsys.readouterr().err


@pytest.mark.parametrize(("top", "how"), [("val", "auto"), ("test", "folders")])
def test_a_class_that_the_training_folder_lacks_is_named_and_left_out(top, how, capsys):
    more = [*many(f"{top}/Mushroom/Brown", 3), *many("test/weeds", 2), *many("val/weeds", 2)]
    found, parts = of_paths([*laid_out("train", "val", "test"), *more], how)
    assert {path for path, part in parts.items() if part == split.LEFT_OUT} == set(more)
    assert list(found.labels) == ["roses", "wild red tulips"]
    assert found.how == "folders"
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: left out of validation and test, since there is no photo of the class to train")
    assert warning.partition(" on: ")[2] in ("'mushroom brown' (3), 'weeds' (4)", "'weeds' (4), 'mushroom brown' (3)")


def test_a_test_folder_of_which_nothing_is_left_is_held_back_from_training(capsys):
    found, _ = of_paths([*laid_out("train"), *many("test/Mushroom/Brown")], "auto")
    assert found.how == "folders, validation and test by hash"
    assert "'mushroom brown' (40)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "paths", "named"),
    [
        ("hash", laid_out("train", "test"), "'test roses' and 'train roses'"),
        ("auto", [*laid_out("seg_train", "seg_test"), *many("x/y")], None),  # told that x/y is in the way
        ("hash", laid_out("flowers/train", "flowers/val"), "'flowers train roses' and 'flowers val roses'"),
        ("auto", [*many("roses/train"), *many("roses/test")], "'roses test' and 'roses train'"),
        ("auto", [*many("train"), *many("test"), *many("test tube"), *many("train tube")], None),
        ("auto", [*many("roses/train"), *many("tulips/test")], None),
    ],
)
def test_a_warning_names_labels_that_differ_by_a_part_alone(how, paths, named, capsys):
    of_paths(paths, how)
    found = [line for line in capsys.readouterr().err.splitlines() if "part alone" in line]
    assert [line.startswith(f"warning: {named} are two classes, and differ") for line in found] == [True] * bool(named)
    assert all("python -m train --split folders" in line for line in found)


def test_a_warning_names_a_class_that_another_folder_lacks(capsys):
    found, _ = of_paths([*laid_out("train", "val", "test"), *many("train/tulips"), *many("test/tulips")], "auto")
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no validation photo" in warning
    assert "'tulips' (80)" in warning
    assert "tulips" in found.labels


# --- a file -----------------------------------------------------------------------------------------------------


def lines(parts):
    return "".join(f"{path},{part}\n" for path, part in parts.items())


def thirds(paths):
    return dict(zip(paths, itertools.cycle(["train", "Training", "val", " test"]), strict=False))


@pytest.mark.parametrize("start", ["", "path,part\n", "\ufeffPath, Part\r\n\n"])
def test_a_file_names_the_parts(tmp_path, capsys, start):
    paths = [*many("roses"), *many("tulips")]
    (tmp_path / "parts.csv").write_text(start + lines(thirds(paths[::-1])), encoding="utf-8", newline="")
    found, parts = of_paths(paths, tmp_path / "parts.csv")
    assert parts == {path: FOLDERS[part.strip().lower()] for path, part in thirds(paths[::-1]).items()}
    assert found.how == str(tmp_path / "parts.csv")
    assert capsys.readouterr().err == ""


def test_a_file_quotes_paths_as_csv_and_takes_any_bytes(tmp_path):
    odd = ["a,b/1.jpg", 'say "cheese"/1.jpg', "line\r\nbreak/1.jpg", os.fsdecode(b"latin \xe9/1.jpg")]
    with open(tmp_path / "parts.csv", "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file).writerows([path, "train"] for path in odd)
    assert split.read_file(tmp_path / "parts.csv", Strings.of([*odd, "other"])).tolist() == [0, 0, 0, 0, 3]


def test_warnings_count_photos_and_lines_that_go_with_nothing(tmp_path, capsys):
    paths = [*many("roses"), *many("tulips"), *many("weeds")]
    named = thirds(paths[1:80]) | {"roses/gone.jpg": "test", "roses/gone too.jpg": "test"}
    (tmp_path / "parts.csv").write_text(lines(named))
    found, parts = of_paths(paths, tmp_path / "parts.csv")
    unknown, left_out = capsys.readouterr().err.splitlines()
    assert f"2 paths in {tmp_path / 'parts.csv'} are not in the cache, such as 'roses/gone.jpg'" in unknown
    assert "41 photos are left out" in left_out
    assert "'roses/000.jpg'" in left_out
    assert [path for path, part in parts.items() if part == split.LEFT_OUT] == [paths[0], *paths[80:]]
    assert list(found.labels) == ["roses", "tulips"]  # a class without a named photo is not learned
    assert classes(found)[1:80] == [path.partition("/")[0] for path in paths[1:80]]


def test_a_part_that_a_file_lacks_is_held_back_from_its_training_photos(tmp_path):
    paths = [*many("roses", 60), *many("tulips", 60)]
    (tmp_path / "parts.csv").write_text(lines({path: "test" if "7" in path else "train" for path in paths[1:]}))
    found, parts = of_paths(paths, tmp_path / "parts.csv", testing=40, validation=30)
    assert found.how == f"{tmp_path / 'parts.csv'}, validation by hash"
    train = [path for path in paths[1:] if "7" not in path]
    assert [parts[path] for path in train] == all_by_the_book(train, 0, 30).tolist()
    assert parts[paths[0]] == split.LEFT_OUT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.jpg,train\na/2.jpg,tset\n", "line 2: cannot read 'a/2.jpg,tset'; a line is path,part"),
        ("file,split\na/1.jpg,train\n", "line 1: cannot read 'file,split'"),
        ("a/1.jpg,train\npath,part\n", "line 2: cannot read 'path,part'"),
        ("a/1.jpg\n", "line 1: cannot read 'a/1.jpg'"),
        ("a/1.jpg,train,more\n", "line 1: cannot read"),
        ("1,2/1.jpg,train\n", "line 1: cannot read"),
        ('\n\n"a/1.jpg,train\n', "line 3: unexpected end of data"),
        ("a/1.jpg,train\nb/1.jpg,val\na/1.jpg,test\n", "line 3: 'a/1.jpg' is in test, and in train further up"),
        ("a/1.jpg,test\n", "no photo of the cache is in its training part"),
        ("", "no photo of the cache is in its training part"),
        ("a/1.jpg,train\nb/1.jpg,val\n", "validation has photos of class 'b', and train has none"),
        ("a/1.jpg,train\n", "there is 1 class,"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, text, message):
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(UserError) as error:
        of_paths(["a/1.jpg", "a/2.jpg", "b/1.jpg"], tmp_path / "parts.csv")
    assert message in str(error.value)
    assert "parts.csv" in str(error.value) or "1 class" in message


def test_a_file_that_cannot_be_read(tmp_path):
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=f"cannot read {path}: {reason}.*; --split takes auto, hash, folders or"):
            of_paths(["a/1.jpg", "b/1.jpg"], path)


def test_a_file_may_be_longer_than_what_is_looked_up_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "_CHUNK", 7)
    paths = many("a", 30)
    (tmp_path / "parts.csv").write_text(lines(thirds(paths)))
    found = split.read_file(tmp_path / "parts.csv", Strings.of(paths))
    assert found.tolist() == [FOLDERS[part.strip().lower()] for part in thirds(paths).values()]
