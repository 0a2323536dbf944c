"""Which images train, validate and test: a stable hash of the path decides, folders above the classes, or a file."""

from __future__ import annotations

import csv
import hashlib
import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import UserError
from cache.strings import Lookup, Strings

TRAIN, VALIDATION, TEST, LEFT_OUT = 0, 1, 2, 3
NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
PARTS = {  # what a folder or a line of a file may call them
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}

FEW_IMAGES = 20  # below this a class is too small for the tutorial's percentages
_BUCKETS = 1 << 27  # the tutorial hashes a path to one of these
_CHUNK = 65536  # lines of a file that are looked up at once
_SHOWN = 10  # classes that a warning names


@dataclass(frozen=True)
class Split:
    """The part and the class of each of N images."""

    how: str  # "hash", "folders" or a file's name, and which parts the hash had to add
    sets: np.ndarray  # uint8 [N]: TRAIN, VALIDATION, TEST or LEFT_OUT
    labels: Sequence[str]  # the C classes, sorted
    label_ids: np.ndarray  # int32 [N], into labels; those of images that are left out say nothing
    by_hash: Collection[int]  # the parts that the hash chose, not the user


def split(
    how: str,
    paths: Strings,
    labels: Sequence[str],
    label_ids: np.ndarray,
    testing_percentage: float,
    validation_percentage: float,
) -> Split:
    """Splits a cache's N images (label_ids int [N], into `labels`), and warns on standard error of small classes.

    `how` is `hash`; `folders`, for images such as `train/roses/a.jpg` with the label `train roses`, whose class is
    then `roses`; `auto`, which is `folders` where every image lies like that, and else `hash`; or a file, see
    `read_file`. The percentages are of the training images, for a part that no folder or line names: the hash holds
    them back. Raises UserError where there is nothing to learn from, and for folders and files that will not do.
    """
    for label in itertools.compress(labels, np.bincount(label_ids, minlength=len(labels)) == 0):
        raise UserError(f"class {label!r} has no image in the cache; add images and run the extraction again")
    names, sets, given = labels, np.full(len(paths), TRAIN, np.uint8), False
    if how not in ("auto", "hash", "folders"):
        sets, given = read_file(Path(how), paths), True
    elif how != "hash" and (found := _folders(how, paths, labels, label_ids)):
        how, names, sets, given = "folders", found[0], found[1][label_ids], True
    else:
        how = "hash"
    labels, label_ids = _classes(names, label_ids, sets)
    if given:
        _check_given(how, labels, label_ids, sets)
    lacking = [part for part in (VALIDATION, TEST) if not (sets == part).any()]
    sets = hold_back(
        sets,
        paths,
        labels,
        label_ids,
        testing_percentage if TEST in lacking else 0,
        validation_percentage if VALIDATION in lacking else 0,
    )
    held = [NAMES[part] for part in lacking if given and (sets == part).any()]
    check_classes(labels, label_ids, sets)
    return Split(how + (f", {' and '.join(held)} by hash" if held else ""), sets, labels, label_ids, lacking)


def hold_back(
    sets: np.ndarray,
    paths: Strings,
    labels: Sequence[str],
    label_ids: np.ndarray,
    testing_percentage: float,
    validation_percentage: float,
) -> np.ndarray:
    """`sets` uint8 [N] with training images that became validation and test images by the tutorial's hash.

    It is SHA-1 of the path below image_dir with everything from `_nohash_` on cut off, modulo 2^27, as a percentage.
    Photos of one object, told apart after `_nohash_`, stay together; adding images moves none.

    Of a class that would keep none to train on, the image of the highest hash trains, with those it shares its object
    with, and a warning says so: whatever else is added, it stays unless an image of the class has a higher one.
    """
    if not (testing_percentage or validation_percentage):
        return sets
    buckets = _buckets(paths)
    training = sets == TRAIN
    sets = np.where(training, _by_bucket(buckets, testing_percentage, validation_percentage), sets)
    lost = np.zeros(len(labels), bool)
    lost[label_ids[training]] = True
    lost[label_ids[sets == TRAIN]] = False
    inside = np.flatnonzero(training & lost[label_ids])
    highest = np.zeros(len(labels), buckets.dtype)
    np.maximum.at(highest, label_ids[inside], buckets[inside])
    sets[inside[buckets[inside] == highest[label_ids[inside]]]] = TRAIN
    _warn("the hash would hold back every image, so one trains", labels, lost)
    return sets


def read_file(file: Path, paths: Strings) -> np.ndarray:
    """uint8 [N]: the part that a CSV file of the columns `path` and `part` names for each of the N `paths`.

    A header `path,part` may come first. Images that no line names are left out; of them, and of lines whose image is
    not there, a warning on standard error tells. Raises UserError, with the line's number, for a file that cannot be
    read so, and for an image that has two parts.
    """
    sets = np.full(len(paths), LEFT_OUT, np.uint8)
    lookup, unknown, first = Lookup(paths), 0, ""
    rows = _rows(file)
    while chunk := list(itertools.islice(rows, _CHUNK)):
        places = lookup.find(Strings.of([path for _, path, _ in chunk]), absent=-1)
        for place, (line, path, part) in zip(places.tolist(), chunk, strict=True):
            if place < 0:
                first = first or path
                unknown += 1
            elif sets[place] not in (LEFT_OUT, part):
                raise UserError(
                    f"{file}, line {line}: {path!r} is in {NAMES[part]}, and in {NAMES[int(sets[place])]} further up; "
                    "take one of the lines out"
                )
            else:
                sets[place] = part
    if unknown:
        print(
            f"warning: {unknown:,} paths in {file} are not in the cache, such as {first!r}: a path is that below "
            "image_dir",
            file=sys.stderr,
        )
    left_out = np.flatnonzero(sets == LEFT_OUT)
    if len(left_out):
        print(
            f"warning: {len(left_out):,} images are left out, which {file} does not name, such as "
            f"{paths[left_out[0]]!r}",
            file=sys.stderr,
        )
    return sets


def check_percentages(testing_percentage: float, validation_percentage: float) -> None:
    """Raises UserError when the two percentages leave nothing to train on."""
    if testing_percentage + validation_percentage >= 100:
        raise UserError(
            f"--testing_percentage {testing_percentage:g} and --validation_percentage {validation_percentage:g} "
            "leave no images for training; their sum must be below 100"
        )


def check_classes(labels: Sequence[str], label_ids: np.ndarray, sets: np.ndarray) -> None:
    """Warns on standard error of classes that are small, or have no image in a part that others have images in.

    label_ids int [N], sets uint8 [N]. Raises UserError for fewer than two classes.
    """
    if len(labels) < 2:
        raise UserError(
            f"there {'is' if len(labels) == 1 else 'are'} {len(labels)} class{'es' * (len(labels) != 1)}, and a "
            "classifier needs two or more; add a folder of images for each class and run the extraction again"
        )
    images = np.bincount(label_ids[sets != LEFT_OUT], minlength=len(labels))
    _warn(f"fewer than {FEW_IMAGES} images, expect poor results", labels, images < FEW_IMAGES, images)
    for part in (VALIDATION, TEST):
        inside = np.bincount(label_ids[sets == part], minlength=len(labels))
        if inside.any():
            _warn(f"no {NAMES[part]} image, so nothing tells how these do", labels, inside == 0, images)


def _folders(
    how: str, paths: Strings, labels: Sequence[str], label_ids: np.ndarray
) -> tuple[list[str], np.ndarray] | None:
    """Each label without the part that it begins with, and that part, uint8 [C]. None where `auto` has to hash."""
    some = np.zeros(len(labels), np.int64)
    some[label_ids] = np.arange(len(label_ids))  # an image of each label: all of them lie in one folder
    names, parts, outside = [], [], []
    for label, path in zip(labels, paths.take(some), strict=True):
        top = path.partition("/")[0].lower()
        name = label.removeprefix(f"{top} ")
        if top in PARTS and name != label and name.strip():
            names.append(name)
            parts.append(PARTS[top])
        else:
            outside.append(path)
    if not outside and TRAIN in parts:
        return names, np.array(parts, np.uint8)
    problem = f"{outside[0]!r} lies in no class folder below train/, validation/ or test/" if outside else "no train/"
    if how == "folders":
        raise UserError(f"--split folders: {problem}; move it and run the extraction again, or choose --split hash")
    if outside and TRAIN in parts and len(set(parts)) > 1:
        print(f"warning: the folders are not taken for a split: {problem}", file=sys.stderr)
    return None


def _classes(names: Sequence[str], label_ids: np.ndarray, sets: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The sorted classes, where some labels' `names` may be the same, that any part has, and the ids to go with it."""
    used = np.zeros(len(names), bool)
    used[label_ids[sets != LEFT_OUT]] = True
    labels = sorted(set(itertools.compress(names, used)))
    ranks = {label: rank for rank, label in enumerate(labels)}
    return labels, np.array([ranks.get(name, 0) for name in names], np.int32)[label_ids]


def _check_given(how: str, labels: Sequence[str], label_ids: np.ndarray, sets: np.ndarray) -> None:
    """Raises UserError where nothing trains, or where a part has a class that the training part has not."""
    if not (sets == TRAIN).any():
        raise UserError(f"--split {how}: no image of the cache is in its training part; put some there")
    known = np.zeros(len(labels), bool)
    known[label_ids[sets == TRAIN]] = True
    for part in (VALIDATION, TEST):
        inside = np.bincount(label_ids[sets == part], minlength=len(labels))
        for label in itertools.compress(labels, (inside > 0) & ~known):
            raise UserError(
                f"--split {how}: {NAMES[part]} has images of class {label!r}, and train has none; "
                "give it training images, or leave it out"
            )


def _rows(file: Path) -> Iterator[tuple[int, str, int]]:
    """(line number, path, part) of each line."""
    remedy = "a line is path,part, and the part is train, validation or test"
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            reader = csv.reader(text, strict=True)
            for number, row in enumerate(reader):
                if not row or (number == 0 and [column.strip().lower() for column in row] == ["path", "part"]):
                    continue
                part = PARTS.get(row[-1].strip().lower())
                if len(row) != 2 or part is None:
                    raise UserError(f"{file}, line {reader.line_num}: cannot read {','.join(row)[:100]!r}; {remedy}")
                yield reader.line_num, row[0], part
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; --split takes auto, hash, folders or a file") from None


def _warn(what: str, labels: Sequence[str], which: np.ndarray, counts: np.ndarray | None = None) -> None:
    """Names the labels where `which` bool [C], with their `counts`, on standard error; nothing where there are none."""
    places = np.flatnonzero(which).tolist()
    if not places:
        return
    named = [repr(labels[i]) + ("" if counts is None else f" ({counts[i]})") for i in places[:_SHOWN]]
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    print(f"warning: {what}: {', '.join(named)}{more}", file=sys.stderr)


def _by_bucket(buckets: np.ndarray, testing_percentage: float, validation_percentage: float) -> np.ndarray:
    percentages = buckets * (100.0 / (_BUCKETS - 1))
    sets = np.full(len(percentages), TRAIN, np.uint8)
    sets[percentages < testing_percentage + validation_percentage] = TEST
    sets[percentages < validation_percentage] = VALIDATION
    return sets


def _buckets(paths: Strings) -> np.ndarray:
    """uint32 [N], below _BUCKETS."""
    return np.fromiter(map(_bucket, paths.encoded()), np.uint32)


def _bucket(path: bytes) -> int:
    stem = path.partition(b"_nohash_")[0]
    # 2^27 divides 2^32: the digest's last four bytes hold all that its remainder depends on.
    return int.from_bytes(hashlib.sha1(stem).digest()[-4:], "big") % _BUCKETS
