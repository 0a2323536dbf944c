"""Which files of a folder are photos of which class."""

import os
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import UserError
from cache.labels import normalise, of_folders
from cache.photos import NOT_A_FILE
from extract.sources.folder import list_photos


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


def test_files_have_the_label_of_their_folder_below_image_dir(tmp_path):
    root = touch(tmp_path, "Roses/b.jpg", "Roses/a.JPG", "Wild/Red-Tulips/c", "Wild/d.png", "daisy/e.txt")
    photos = list_photos(root)
    assert photos.labels == ["daisy", "roses", "wild", "wild red tulips"]
    assert [(path, photos.labels[label]) for path, label in zip(photos.paths, photos.label_ids, strict=True)] == [
        ("Roses/a.JPG", "roses"),
        ("Roses/b.jpg", "roses"),
        ("Wild/d.png", "wild"),
        ("Wild/Red-Tulips/c", "wild red tulips"),
        ("daisy/e.txt", "daisy"),
    ]
    assert photos.sizes.tolist() == [len(path) for path in photos.paths]
    assert photos.mtimes.tolist() == [os.stat(root / path).st_mtime_ns for path in photos.paths]


def test_hidden_files_and_folders_are_skipped(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "a/.DS_Store", "b/2.jpg", ".git/objects/3.jpg", "b/.thumbs/4.jpg")
    assert list(list_photos(root).paths) == ["a/1.jpg", "b/2.jpg"]


def test_files_beside_the_class_folders_are_left_out_with_a_warning(tmp_path):
    root = touch(tmp_path, "readme.txt", "a/1.jpg", "b/2.jpg")
    with pytest.warns(UserWarning, match="1 files lie in"):
        assert len(list_photos(root)) == 2


def test_a_link_to_a_class_folder_is_followed_but_a_link_to_a_parent_is_not(tmp_path):
    elsewhere = touch(tmp_path / "elsewhere", "1.jpg")
    root = touch(tmp_path / "photos", "b/2.jpg")
    (root / "a").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(root)
    assert list(list_photos(root).paths) == ["a/1.jpg", "b/2.jpg"]


def test_pipes_are_marked_as_no_files_and_a_dead_link_is_listed(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg")
    os.mkfifo(root / "a" / "pipe")
    (root / "a" / "pipe_link").symlink_to(root / "a" / "pipe")
    (root / "b" / "dead").symlink_to(root / "nowhere")
    photos = list_photos(root)
    marked = [path for path, size in zip(photos.paths, photos.sizes, strict=True) if size == NOT_A_FILE]
    assert marked == ["a/pipe", "a/pipe_link"]
    assert "b/dead" in list(photos.paths)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no subfolder"),
        (["a/1.jpg"], "only one class, 'a'"),
        (["猫/1.jpg", "狗\n/2.jpg"], r"class folder '狗\\n' has a control character in its name; rename it"),
    ],
)
def test_folders_that_are_no_classes_are_named_in_the_error(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        list_photos(touch(tmp_path, *names))


def test_an_empty_class_folder_and_a_missing_image_dir_are_named_in_the_error(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="empty is empty"):
        list_photos(root)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        list_photos(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "folders",
    [
        {"猫": "猫", "狗": "狗", "birds": "birds"},
        {"Кошка 2024": "Кошка 2024", "Собака 2024": "Собака 2024"},
        {"Кошка": "Кошка", "Wild/Кошка 1": "Wild/Кошка 1", "Wild/Dog": "wild dog"},
        {"café": "café", "caf": "caf", "cafe\u0301": "cafe\u0301", "Café-2": "Café-2"},
        {"C++": "C++", "C#": "C#", "Rust": "rust"},
        {"C++": "C++", "C#": "C#", "c ": "c ", "c": "c"},  # a name that is the others' form
        {"++": "++", "C++": "c ", "Wild/++": "Wild/++", "wild": "wild"},
        {"Red-Roses": "Red-Roses", "red_roses": "red_roses", "red roses": "red roses"},
        {"x/red roses": "x/red roses", "x_red/roses": "x_red/roses"},
        {"roses \u2013 red!": "roses red ", "🐱 cats": " cats", "🐶": "🐶"},  # no letter is lost, or all is
        {os.fsdecode(b"caf\xe9"): os.fsdecode(b"caf\xe9"), "x²": "x²"},
    ],
    ids=" ".join,
)
def test_a_folder_keeps_its_name_as_label_where_the_tutorials_form_fails(tmp_path, folders):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        photos = list_photos(touch(tmp_path, *(f"{folder}/1.jpg" for folder in folders)))
    assert photos.labels == sorted(folders.values())
    labels = (photos.labels[label_id] for label_id in photos.label_ids)
    assert dict(zip((path.rpartition("/")[0] for path in photos.paths), labels, strict=True)) == folders
    assert [folders[folder] for folder in photos.folders] == photos.labels


def test_a_warning_names_folders_that_may_be_one_class(tmp_path):
    root = touch(tmp_path, *(f"{name}/1.jpg" for name in ("Red", "red", "RED", "猫", "狗", "Кот 1", "Пёс 1")))
    with pytest.warns(UserWarning) as warned:
        list_photos(root)
    (warning,) = map(str, (one.message for one in warned))
    assert warning.startswith("class folders 'RED' and 'Red' and 1 more differ by case or punctuation alone, so each")


NAMES = st.text("aé猫B+# 1", min_size=1, max_size=3).filter(lambda name: not name.startswith("."))


@given(st.sets(st.lists(NAMES, min_size=1, max_size=2).map("/".join), min_size=1))
def test_labels_differ_whatever_the_folders(folders):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = dict(zip(folders, of_folders(list(folders)), strict=True))
        assert dict(zip(sorted(folders), of_folders(sorted(folders)), strict=True)) == labels
    assert len(set(labels.values())) == len(folders)
    assert all(label in (folder, normalise(folder)) for folder, label in labels.items())


@given(st.text(st.characters(blacklist_categories=["Cs"])))
def test_labels_are_made_as_in_the_tutorial(name):
    # Word by word, whereas the program replaces with one expression.
    words = re.split("[^0-9a-z]+", name.lower())
    assert normalise(name) == " ".join(words)
    assert normalise(normalise(name)) == normalise(name)


def test_a_folder_of_classes_alone_gives_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list_photos(touch(tmp_path, "a/1.jpg", "b/2.jpg"))
