"""Which files of a folder are photos of which class."""

import contextlib
import os
import re
import subprocess
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import UserError
from cache.labels import normalise, of_folders
from cache.photos import NOT_A_FILE
from cache.rejected import RETRY
from extract.sources.folder import list_photos


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))
    return root


@pytest.mark.filterwarnings("ignore:folders of photos inside")
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


OF_SYSTEMS = [
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "#recycle/3.jpg",
    "#snapshot/daily/a/1.jpg",
    ".@__thumb/1.jpg",
    "@Recycle/3.jpg",
    "@Recently-Snapshot/a/1.jpg",
    "$RECYCLE.BIN/S-1-5-18/$R1.jpg",
    "$Recycle.Bin/S-1-5-18/$R2.jpg",
    "RECYCLER/S-1-5-21/Dc1.jpg",
    "System Volume Information/tracking.log",
    "lost+found/#12",
    "__MACOSX/a/._1.jpg",
    ".Trash-1000/files/3.jpg",
    ".Trashes/501/3.jpg",
    ".thumbnails/large/1.png",
    "Thumbs.db",
    "thumbs.db",
    "desktop.ini",
    "._1.jpg",
]


@pytest.mark.parametrize("where", ["", "a/", "a/inner/"])
def test_what_systems_put_among_photos_is_passed_over_at_any_depth(tmp_path, where):
    root = touch(tmp_path, "a/inner/1.jpg", "b/2.jpg", *(where + name for name in OF_SYSTEMS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photos = list_photos(root)
    assert list(photos.paths) == ["a/inner/1.jpg", "b/2.jpg"]
    assert photos.unlisted == []


def test_classes_that_are_named_nearly_like_a_systems_folder_stay(tmp_path):
    names = ["recycle", "recycler", "Lost and found", "snapshot", "trash", "macosx", "thumbs"]
    assert len(list_photos(touch(tmp_path, *(f"{name}/1.jpg" for name in names))).labels) == len(names)


def test_folders_of_photos_inside_folders_with_photos_are_counted_in_one_warning(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "a/thumbs/1.jpg", "a/deep/er/1.jpg", "b/inner/2.jpg", "c/3.jpg", "c/x/3.jpg")
    with pytest.warns(UserWarning) as warned:
        assert len(list_photos(root).labels) == 6
    [line] = [str(one.message) for one in warned]
    assert line.startswith("folders of photos inside a folder that has photos itself are classes of their own: 3, ")
    assert line.endswith(f"such as {root / 'a' / 'deep' / 'er'} in {root / 'a'}")


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


def test_pipes_are_marked_as_no_files(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg")
    os.mkfifo(root / "a" / "pipe")
    (root / "a" / "pipe_link").symlink_to(root / "a" / "pipe")
    photos = list_photos(root)
    marked = [path for path, size in zip(photos.paths, photos.sizes, strict=True) if size == NOT_A_FILE]
    assert marked == ["a/pipe", "a/pipe_link"]


def test_links_that_lead_nowhere_are_left_out_and_counted(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (root / "b" / "dead").symlink_to(root / "nowhere")
    (root / "b" / "loop.jpg").symlink_to("loop.jpg")
    (root / "c").mkdir()
    (root / "c" / ("n" * 200)).symlink_to("/" + "n" * 300)
    with pytest.warns(UserWarning) as warned:
        photos = list_photos(root)
    assert list(photos.paths) == ["a/1.jpg", "b/2.jpg"]
    assert [(row.path, row.size, row.mtime, row.reason) for row in photos.unlisted] == [
        ("b/dead", NOT_A_FILE, RETRY, "No such file or directory"),
        ("b/loop.jpg", NOT_A_FILE, RETRY, "Too many levels of symbolic links"),
        ("c/" + "n" * 200, NOT_A_FILE, RETRY, "File name too long"),
    ]
    [line] = [str(one.message) for one in warned]
    assert line.endswith(f"all that lies below: 3, such as {root / 'b' / 'dead'} (No such file or directory)")


def test_a_file_that_is_renamed_while_its_folder_is_listed_is_left_out(tmp_path, monkeypatch):
    root, scandir = touch(tmp_path, "a/1.jpg", "b/2.jpg", "b/3.jpg"), os.scandir

    def scan_too_early(path):
        entries = list(scandir(path))
        if path.endswith(b"/b"):
            (root / "b" / "3.jpg").rename(root / "b" / "4.jpg")
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", scan_too_early)
    with pytest.warns(UserWarning, match=r"such as .*/b/3.jpg \(No such file or directory\)"):
        assert list(list_photos(root).paths) == ["a/1.jpg", "b/2.jpg"]


def test_links_among_folders_end(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (root / "a" / "to b").symlink_to(root / "b")
    (root / "b" / "to a").symlink_to(root / "a")
    with pytest.warns(UserWarning, match="classes of their own: 2"):
        assert list(list_photos(root).paths) == ["a/1.jpg", "a/to b/2.jpg", "b/2.jpg", "b/to a/1.jpg"]


@pytest.fixture
def nest():
    """Makes folders in each other below a folder, and deletes them, for which Python's own function may recurse."""
    made = []

    def make(root, names):
        made.append(root)
        root.mkdir()
        with contextlib.ExitStack() as stack:
            place = os.open(root, os.O_RDONLY)
            stack.callback(os.close, place)
            for name in names:  # one by one, since the whole path may be longer than the system takes
                os.mkdir(name, dir_fd=place)
                place = os.open(name, os.O_RDONLY, dir_fd=place)
                stack.callback(os.close, place)
            os.close(os.open("1.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place))

    yield make
    subprocess.run(["rm", "-rf", *made], check=True)


def test_folders_are_walked_however_deep(tmp_path, nest):
    root = touch(tmp_path, "a/1.jpg")
    nest(root / "b", ["d"] * 1100)
    photos = list_photos(root)
    assert list(photos.paths) == ["a/1.jpg", "b/" + "d/" * 1100 + "1.jpg"]
    assert photos.labels == ["a", "b" + " d" * 1100]


def test_folders_deeper_than_the_system_takes_are_left_out(tmp_path, nest):
    root = touch(tmp_path, "a/1.jpg", "c/2.jpg")
    nest(root / "b", ["d" * 200] * 25)
    with pytest.warns(UserWarning, match=r"left out, .*: 1, such as .*d \(File name too long\)"):
        photos = list_photos(root)
    assert (list(photos.paths), len(photos.unlisted)) == (["a/1.jpg", "c/2.jpg"], 1)


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


def test_class_folders_without_photos_are_left_out_with_a_warning(tmp_path):
    root = touch(tmp_path, "a/1.jpg", "b/2.jpg", "cleared/.DS_Store", "cleared/Thumbs.db", "d/inner/@eaDir/1.jpg")
    (root / "empty").mkdir()
    with pytest.warns(UserWarning) as warned:
        assert list_photos(root).labels == ["a", "b"]
    assert [str(one.message) for one in warned] == [
        f"class folders without photos are left out: 3, such as {root / 'cleared'}"
    ]


@pytest.mark.filterwarnings("ignore")
def test_an_error_names_what_was_left_out(tmp_path):
    root = touch(tmp_path, "a/1.jpg")
    (root / "b").mkdir()
    with pytest.raises(UserError, match=r"only one class, 'a'; class folders without photos are .* such as .*/b; a cl"):
        list_photos(root)
    (root / "c").symlink_to("c")
    (root / "a" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"no subfolder with photos; .* such as .*/c \(Too many levels of .*; make one"):
        list_photos(root)


def test_a_missing_image_dir_is_named_in_the_error(tmp_path):
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
