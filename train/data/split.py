"""The training, validation and test part of a cache: by a stable hash of the path, by folders, or by a file."""

from __future__ import annotations

import csv
import hashlib
import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.console import print
from cache.errors import UserError, first_line
from cache.strings import ABSENT, Lookup, Strings
from train.data import copies, folders
from train.data.folders import Layout
from train.data.parts import LEFT_OUT, NAMES, TEST, TRAIN, VALIDATION, WORDS

FEW_PHOTOS = 20  # a class of fewer is too small for the tutorial's percentages
_BUCKETS = 1 << 27  # how many values the tutorial's hash of a path has
_CHUNK = 65536  # lines of a file that are looked up at a time
_SHOWN = 10  # classes that a warning names


@dataclass(frozen=True, eq=False)
class Split:
    """The part and the class of each of N photos."""

    how: str  # "hash", "folders" or a file's name, and which parts the hash had to add
    parts: np.ndarray  # uint8 [N]: TRAIN, VALIDATION, TEST or LEFT_OUT
    labels: Sequence[str]  # the C classes, sorted
    label_ids: np.ndarray  # int32 [N], into labels; meaningless for photos that are left out
    by_hash: Collection[int]  # the parts that the hash chose, not the user

    def count(self, part: int) -> int:
        return int(np.count_nonzero(self.parts == part))

    @property
    def may_refit(self) -> bool:
        """Whether validation photos may train in the end. Those that the user chose to validate never do."""
        return VALIDATION in self.by_hash and self.count(VALIDATION) > 0

    def __str__(self) -> str:
        train, validation, test = (self.count(part) for part in (TRAIN, VALIDATION, TEST))
        return (
            f"{len(self.labels)} classes, {train + validation + test:,} photos: {train:,} train, {validation:,} "
            f"validate, {test:,} test; split by {self.how}"
        )


def split(
    how: str,
    paths: Strings,
    labels: Sequence[str],
    label_ids: np.ndarray,
    fingerprints: np.ndarray,
    *,
    testing_percentage: float,
    validation_percentage: float,
) -> Split:
    """Splits a cache's N photos (label_ids int [N], into `labels`; fingerprints uint64 [N], of their files).

    Warns on standard error of small classes, of labels that may be one class, and of copies.

    `how` is one of
    - `hash`;
    - `folders`, for photos such as `train/roses/a.jpg`, whose class is then `roses`, see `folders.choose`;
    - `auto`: `folders` if that can be, otherwise `hash`;
    - the path of a file, see `read_file`.
    A part that no folder or line names is held back from the training photos by the hash; the percentages are shares of
    these photos. Raises UserError if there is nothing to learn from, and for folders and files that are no split.
    """
    if len(empty := np.flatnonzero(np.bincount(label_ids, minlength=len(labels)) == 0)):
        raise UserError(
            f"class {labels[empty[0]]!r} has no photo in the cache; add photos and run the extraction again"
        )
    names, parts, by_user = labels, np.full(len(paths), TRAIN, np.uint8), False
    one_photo = np.zeros(len(labels), np.int64)  # of each label: all photos of a label lie in one folder
    one_photo[label_ids] = np.arange(len(label_ids))
    examples = list(paths.take(one_photo))
    if how in ("auto", "folders"):
        if layout := folders.choose(how, labels, examples):
            names, parts, by_user = layout.classes, _by_folders(layout, labels, label_ids), True
        how = "folders" if layout else "hash"
    else:
        folders.warn_of_parts(labels, examples)
        if how != "hash":
            parts, by_user = read_file(Path(how), paths), True
    labels, label_ids = _classes(names, label_ids, parts)
    if by_user:
        _check_chosen(how, labels, label_ids, parts)
    lacking = [part for part in (VALIDATION, TEST) if not (parts == part).any()]
    original = copies.originals(fingerprints, paths, parts)
    parts = hold_back(
        parts,
        paths,
        labels,
        label_ids,
        original,
        testing_percentage=testing_percentage if TEST in lacking else 0,
        validation_percentage=validation_percentage if VALIDATION in lacking else 0,
    )
    added = [NAMES[part] for part in lacking if by_user and (parts == part).any()]
    check_classes(labels, label_ids, parts)
    copies.warn(original, paths, label_ids, parts)
    if added:
        how += f", {' and '.join(added)} by hash"
    return Split(how, parts, labels, label_ids, lacking)


def hold_back(
    parts: np.ndarray,
    paths: Strings,
    labels: Sequence[str],
    label_ids: np.ndarray,
    original: np.ndarray,
    *,
    testing_percentage: float,
    validation_percentage: float,
) -> np.ndarray:
    """`parts` uint8 [N], with some of the training photos moved to validation and test by the tutorial's hash.

    The hash is SHA-1 of the path below image_dir without `_nohash_` and all that follows it, modulo 2^27, as a
    percentage. Photos of one object, whose paths differ after `_nohash_` only, stay together; adding photos moves none.
    A copy goes where its `original` (int64 [N], of `copies.originals`) goes.

    Of a class that would keep none to train on, the photo of the highest hash trains, together with the others of its
    object and its copies, and a warning says so. Only a photo of that class with a higher hash takes its place when
    photos are added.
    """
    if not (testing_percentage or validation_percentage):
        return parts
    buckets = _buckets(paths)[original]
    was_training = parts == TRAIN
    parts = np.where(was_training, _by_bucket(buckets, testing_percentage, validation_percentage), parts)
    is_lost = np.zeros(len(labels), bool)  # classes without a training photo
    is_lost[label_ids[was_training]] = True
    is_lost[label_ids[parts == TRAIN]] = False
    photos = np.flatnonzero(was_training & is_lost[label_ids])
    highest = np.zeros(len(labels), buckets.dtype)
    np.maximum.at(highest, label_ids[photos], buckets[photos])
    parts[photos[buckets[photos] == highest[label_ids[photos]]]] = TRAIN
    trains = np.zeros(len(parts), bool)
    trains[original[parts == TRAIN]] = True  # of one group of copies, all or none, whatever their classes
    parts[was_training & trains[original]] = TRAIN
    _warn("the hash would hold back every photo, so one trains", labels, is_lost)
    return parts


def read_file(file: Path, paths: Strings) -> np.ndarray:
    """uint8 [N]: the part that a CSV file of the columns `path` and `part` names for each of the N `paths`.

    A header `path,part` may come first. Photos that no line names are left out. Warnings on standard error count them,
    and the lines whose photo is not in the cache. Raises UserError, with the line's number, for a file of another form
    and for a photo that has two parts.
    """
    parts = np.full(len(paths), LEFT_OUT, np.uint8)
    lookup, unknown, first_unknown = Lookup(paths), 0, ""
    rows = _rows(file)
    while chunk := list(itertools.islice(rows, _CHUNK)):
        places = lookup.find(Strings.of([path for _, path, _ in chunk]))
        for place, (line, path, part) in zip(places.tolist(), chunk, strict=True):
            if place == ABSENT:
                first_unknown = first_unknown or path
                unknown += 1
            elif parts[place] not in (LEFT_OUT, part):
                raise UserError(
                    f"{file}, line {line}: {path!r} is in {NAMES[part]}, and in {NAMES[int(parts[place])]} further up; "
                    "take one of the lines out"
                )
            else:
                parts[place] = part
    if unknown:
        print(
            f"warning: {unknown:,} paths in {file} are not in the cache, such as {first_unknown!r}; paths are relative "
            "to image_dir",
            file=sys.stderr,
        )
    left_out = np.flatnonzero(parts == LEFT_OUT)
    if len(left_out):
        print(
            f"warning: {len(left_out):,} photos are left out, since {file} does not name them, such as "
            f"{paths[left_out[0]]!r}",
            file=sys.stderr,
        )
    return parts


def check_percentages(testing_percentage: float, validation_percentage: float) -> None:
    """Raises UserError when the two percentages leave nothing to train on."""
    if testing_percentage + validation_percentage >= 100:
        raise UserError(
            f"--testing_percentage {testing_percentage:g} and --validation_percentage {validation_percentage:g} "
            "leave no photos for training; their sum must be below 100"
        )


def check_classes(labels: Sequence[str], label_ids: np.ndarray, parts: np.ndarray) -> None:
    """Warns on standard error of classes that are small, or have no photo in a part that others have photos in.

    label_ids int [N], parts uint8 [N]. Raises UserError for fewer than two classes.
    """
    if len(labels) < 2:
        classes = "is 1 class" if len(labels) == 1 else f"are {len(labels)} classes"
        raise UserError(
            f"there {classes}, and a classifier needs two or more; add a folder of photos for each class and run the "
            "extraction again"
        )
    counts = np.bincount(label_ids[parts != LEFT_OUT], minlength=len(labels))
    _warn(f"fewer than {FEW_PHOTOS} photos, expect poor results", labels, counts < FEW_PHOTOS, counts)
    for part in (VALIDATION, TEST):
        in_part = np.bincount(label_ids[parts == part], minlength=len(labels))
        if in_part.any():
            _warn(f"no {NAMES[part]} photo, so nothing shows how well they do", labels, in_part == 0, counts)


def _by_folders(layout: Layout, labels: Sequence[str], label_ids: np.ndarray) -> np.ndarray:
    """uint8 [N]: the part of each photo. Those without a class to learn are left out, and a warning counts them."""
    parts, counts = layout.parts.copy(), np.bincount(label_ids, minlength=len(labels))
    _warn("left out, since no class folder holds the photos", labels, parts == LEFT_OUT, counts)
    trained = set(itertools.compress(layout.classes, parts == TRAIN))
    unknown: dict[str, int] = {}
    for i, name in enumerate(layout.classes):
        if parts[i] != LEFT_OUT and name not in trained:
            unknown[name] = unknown.get(name, 0) + int(counts[i])
            parts[i] = LEFT_OUT
    problem = "left out of validation and test, since there is no photo of the class to train on"
    _warn(problem, [*unknown], np.ones(len(unknown), bool), np.array([*unknown.values()], int))
    return parts[label_ids]


def _classes(names: Sequence[str], label_ids: np.ndarray, parts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The sorted classes that any part has, and the photos' label ids into them, int32 [N].

    `names` has the class of each old label; several labels may have the same one.
    """
    is_used = np.zeros(len(names), bool)
    is_used[label_ids[parts != LEFT_OUT]] = True
    labels = sorted(set(itertools.compress(names, is_used)))
    ranks = {label: rank for rank, label in enumerate(labels)}
    return labels, np.array([ranks.get(name, 0) for name in names], np.int32)[label_ids]


def _check_chosen(how: str, labels: Sequence[str], label_ids: np.ndarray, parts: np.ndarray) -> None:
    """Raises UserError if nothing trains, or if another part has a class that the training part lacks."""
    if not (parts == TRAIN).any():
        raise UserError(f"--split {how}: no photo of the cache is in its training part; put some there")
    is_trained = np.zeros(len(labels), bool)
    is_trained[label_ids[parts == TRAIN]] = True
    for part in (VALIDATION, TEST):
        in_part = np.bincount(label_ids[parts == part], minlength=len(labels)) > 0
        if len(unknown := np.flatnonzero(in_part & ~is_trained)):
            raise UserError(
                f"--split {how}: {NAMES[part]} has photos of class {labels[unknown[0]]!r}, and train has none; "
                "give it training photos, or leave it out"
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
                part = WORDS.get(row[-1].strip().lower())
                if len(row) != 2 or part is None:
                    raise UserError(f"{file}, line {reader.line_num}: cannot read {','.join(row)[:100]!r}; {remedy}")
                yield reader.line_num, row[0], part
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num}: {error}; {remedy}") from None
    except OSError as error:
        reason = first_line(error)
        raise UserError(f"cannot read {file}: {reason}; --split takes auto, hash, folders or a file") from None


def _warn(problem: str, labels: Sequence[str], has_it: np.ndarray, counts: np.ndarray | None = None) -> None:
    """Names the classes that have the problem (bool [C]), with their `counts`, on standard error, if there are any."""
    places = np.flatnonzero(has_it).tolist()
    if not places:
        return
    named = [repr(labels[i]) + ("" if counts is None else f" ({counts[i]})") for i in places[:_SHOWN]]
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    print(f"warning: {problem}: {', '.join(named)}{more}", file=sys.stderr)


def _by_bucket(buckets: np.ndarray, testing_percentage: float, validation_percentage: float) -> np.ndarray:
    percentages = buckets * (100.0 / (_BUCKETS - 1))
    parts = np.full(len(percentages), TRAIN, np.uint8)
    parts[percentages < testing_percentage + validation_percentage] = TEST
    parts[percentages < validation_percentage] = VALIDATION
    return parts


def _buckets(paths: Strings) -> np.ndarray:
    """The hash of each path, uint32 [N], below _BUCKETS."""
    return np.fromiter(map(_bucket, paths.encoded()), np.uint32)


def _bucket(path: bytes) -> int:
    stem = path.partition(b"_nohash_")[0]
    # 2^27 divides 2^32, so the remainder of the digest depends on its last four bytes only.
    return int.from_bytes(hashlib.sha1(stem).digest()[-4:], "big") % _BUCKETS
