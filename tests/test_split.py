"""The split into training, validation and test images: the tutorial's rule, and what it promises."""

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.errors import UserError
from train import split

PATHS = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), max_size=30)
SHARES = st.floats(0, 50)


def by_the_book(path: str, testing_percentage: float, validation_percentage: float) -> int:
    """The rule as the tutorial writes it, one path at a time."""
    stem = re.sub(r"_nohash_.*$", "", path)
    hashed = int(hashlib.sha1(stem.encode()).hexdigest(), 16)
    percentage = (hashed % (2**27)) * (100.0 / (2**27 - 1))
    if percentage < validation_percentage:
        return split.VALIDATION
    return split.TEST if percentage < testing_percentage + validation_percentage else split.TRAIN


@given(PATHS, SHARES, SHARES)
def test_the_rule_is_the_tutorials(paths, testing, validation):
    expected = [by_the_book(path, testing, validation) for path in paths]
    assert split.assign(paths, testing, validation).tolist() == expected
    assert split.assign([path.encode() for path in paths], testing, validation).tolist() == expected


@given(PATHS, PATHS, SHARES, SHARES)
def test_new_images_move_none(paths, more, testing, validation):
    before = dict(zip(paths, split.assign(paths, testing, validation), strict=True))
    together = more + paths
    after = dict(zip(together, split.assign(together, testing, validation), strict=True))
    assert {path: after[path] for path in paths} == before


@given(PATHS, st.lists(st.text("ab_/.é", max_size=5), min_size=2, max_size=6), SHARES, SHARES)
def test_photos_of_one_object_stay_together(objects, endings, testing, validation):
    for stem in objects:
        photos = [f"{stem}_nohash_{ending}.jpg" for ending in endings]
        assert len(set(split.assign(photos, testing, validation))) == 1


@given(PATHS, SHARES, SHARES, SHARES)
def test_a_larger_validation_share_takes_no_validation_image_away(paths, testing, smaller, larger):
    smaller, larger = sorted((smaller, larger))
    before, after = (split.assign(paths, testing, validation) for validation in (smaller, larger))
    assert (after[before == split.VALIDATION] == split.VALIDATION).all()


def test_the_percentages_are_reached():
    # 20,000 independent draws: five standard deviations of a share p are 5 sqrt(p (1 - p) / 20000).
    sets = split.assign((f"class/{i}.jpg" for i in range(20_000)), 10, 25)
    for name, share in ((split.TEST, 0.10), (split.VALIDATION, 0.25), (split.TRAIN, 0.65)):
        assert abs((sets == name).mean() - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_percentages_that_leave_nothing_to_train_on():
    split.check_percentages(50, 49.9)
    for testing, validation in ((50, 50), (100, 0), (80, 30)):
        with pytest.raises(UserError, match="below 100"):
            split.check_percentages(testing, validation)


def test_classes_are_checked_by_name(capsys):
    label_ids = np.array([0] * 30 + [1] * 19)
    sets = np.zeros(49, np.uint8)
    split.check_classes(["many", "few"], label_ids, sets)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 1
    assert "'few' (19)" in warnings[0]
    assert "many" not in warnings[0]

    split.check_classes(["many", "enough"], np.append(label_ids, 1), np.append(sets, 0))
    assert capsys.readouterr().err == ""

    sets[30:] = split.TEST
    with pytest.raises(UserError, match="'few' has no training image"):
        split.check_classes(["many", "few"], label_ids, sets)
    with pytest.raises(UserError, match="'none' has no image"):
        split.check_classes(["many", "few", "none"], label_ids, np.zeros(49, np.uint8))
    with pytest.raises(UserError, match="holds 1 class,"):
        split.check_classes(["many"], label_ids[:30], sets[:30])
