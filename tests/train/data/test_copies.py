"""Copies of photos: what training prints of them, and that the hash keeps them in one part."""

import numpy as np
import pytest

from tests.train.data.test_split import by_the_book, many, of_paths
from train.data import split
from train.data.parts import TEST, TRAIN, VALIDATION


def in_part(part, label="a"):
    """Paths of a class, those that the hash puts into this part."""
    return [path for path in many(label, 500) if by_the_book(path, 10, 10) == part]


@pytest.mark.parametrize("part", [TRAIN, VALIDATION, TEST])
def test_the_hash_puts_all_copies_where_the_first_path_goes(capsys, part):
    first = in_part(part)[0]
    later = [path for path in many("a", 500) if path > first]
    copies = [next(path for path in later if by_the_book(path, 10, 10) == other) for other in (TRAIN, VALIDATION, TEST)]
    paths = [*many("a", 500), *many("b")]
    _, without = of_paths(paths)
    _, parts = of_paths(paths, same=[[first, *copies]])
    assert {parts[path] for path in copies} == {part}
    assert {path: where for path, where in parts.items() if path not in copies} == {
        path: where for path, where in without.items() if path not in copies
    }
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: 1 photo with a copy in its own class, such as '{first}' and '{min(copies)}': ")


def test_copies_in_two_classes_stay_in_one_part_and_are_named(capsys):
    pairs = list(zip(many("a"), many("b"), strict=True))[:10]
    _, parts = of_paths([*many("a"), *many("b")], same=pairs)
    assert all(parts[one] == parts[other] == by_the_book(one, 10, 10) for one, other in pairs)
    [warning] = capsys.readouterr().err.splitlines()
    assert warning == (
        "warning: 10 photos with a copy in another class, such as 'a/000.jpg' and 'b/000.jpg': delete those in the "
        "wrong one, and run the extraction again"
    )


def test_copies_that_lie_in_two_folders_of_parts_stay_there_and_are_named(capsys):
    paths = [*many("train/a"), *many("train/b"), *many("test/a"), *many("test/b"), *many("val/a"), *many("val/b")]
    found, parts = of_paths(paths, "auto", same=[["train/a/007.jpg", "test/a/001.jpg"]])
    assert found.how == "folders"
    assert (parts["train/a/007.jpg"], parts["test/a/001.jpg"]) == (TRAIN, TEST)
    [warning] = capsys.readouterr().err.splitlines()
    assert warning == (
        "warning: 1 photo with a copy in another part, such as 'train/a/007.jpg' and 'test/a/001.jpg': accuracies are "
        "too high by that; leave each photo in one part"
    )


def test_a_class_of_copies_trains_as_a_whole(capsys):
    held = [path for path in many("a", 500) if by_the_book(path, 10, 10) != TRAIN][:4]
    found, parts = of_paths([*held, *many("b")], same=[held])
    assert {parts[path] for path in held} == {TRAIN}
    assert np.count_nonzero(found.parts == split.LEFT_OUT) == 0
    assert "every photo, so one trains" in capsys.readouterr().err
