"""The parts of photos by the folders that they lie in: `train/roses/a.jpg` is a rose to train on."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cache import labels as class_labels
from cache.console import print
from cache.errors import UserError
from cache.labels import normalise
from train.data.parts import LEFT_OUT, TRAIN, WORDS

# Data sets for competitions have such a folder, of photos whose class is for others to find.
_WORDS = WORDS | dict.fromkeys(("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"), LEFT_OUT)
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?=(set|data|images)?(?![a-z]))")


@dataclass(frozen=True, eq=False)
class Layout:
    """The part and the class of the photos of each of C labels."""

    parts: np.ndarray  # uint8 [C]; LEFT_OUT for photos that lie in no class folder of their part
    classes: Sequence[str]  # C labels without the part; those that differ by the part alone have the same class


def choose(how: str, labels: Sequence[str], photos: Sequence[str]) -> Layout | None:
    """The layout of the folders of C labels, if it is a split; `photos` has the path of one photo of each.

    It is one if all folders above the classes are named after a part, such as `train`, `Test`, or `seg_train` beside
    `seg_test`, and if there are photos to train on. Further folders above all of these do not matter, nor does a part's
    folder inside another one of the same name. Only photos to train on have to lie in class folders.

    Where the folders are no split, the answer is None if `how` is `auto`; if it is `folders`, UserError is raised.
    """
    folders = [photo.rpartition("/")[0] for photo in photos]
    places = [folder.split("/") for folder in folders]
    found = _read(places)
    while not _is_split(found) and len({place[0] for place in places}) == 1 and min(map(len, places)) > 1:
        places = [place[1:] for place in places]
        found = _read(places)
    for i, (label, folder) in enumerate(zip(labels, folders, strict=True)):
        if label not in (folder, normalise(folder)):  # a label that is not the folder's
            found[i] = None
    if _is_split(found):
        return _with_labels([place for place in found if place])
    outside = [photo for photo, place in zip(photos, found, strict=True) if place is None]
    problem = f"{outside[0]!r} lies in no class folder below train/, validation/ or test/" if outside else "no train/"
    if how == "folders":
        raise UserError(f"--split folders: {problem}; move it and run the extraction again, or choose --split hash")
    parts = {part for part, inside in filter(None, found) if inside}
    if outside and TRAIN in parts and len(parts) > 1:
        print(f"warning: the folders are not used as a split: {problem}", file=sys.stderr)
    else:
        warn_of_parts(labels, photos)
    return None


def warn_of_parts(labels: Sequence[str], photos: Sequence[str]) -> None:
    """Warns on standard error if labels differ by the name of a part alone; `photos` has a photo of each of them."""
    first: dict[str, str] = {}  # label of each path without the names of parts
    for label, photo in zip(labels, photos, strict=True):
        folder = photo.rpartition("/")[0].lower()
        other = first.setdefault(_WORD.sub("", folder), label)
        if "/" in folder and other != label and normalise(_WORD.sub("", folder)).strip():
            print(
                f"warning: {other!r} and {label!r} are two classes, and differ by the name of a part alone; "
                "`python -m train --split folders` takes folders such as train/CLASS and test/CLASS for the parts",
                file=sys.stderr,
            )
            return


def _read(places: Sequence[Sequence[str]]) -> list[tuple[int, str] | None]:
    """(part, class folder) of each of C folders, given as the names on the way to it.

    None stands for a folder that is none of a part's, or without a class among those to train on.
    """
    parts = _parts({place[0] for place in places})
    # Some archives hold a folder of their own name.
    twice = {top for top in parts if all(place[1:2] == [top] for place in places if place[0] == top)}
    found: list[tuple[int, str] | None] = []
    for place in places:
        part, inside = parts.get(place[0]), "/".join(place[2 if place[0] in twice else 1 :])
        if part is None or (part == TRAIN and not inside):
            found.append(None)
        else:
            found.append((part if inside else LEFT_OUT, inside))
    return found


def _parts(tops: set[str]) -> dict[str, int]:
    """The part of each of the folders `tops` that is named after one.

    The name may say more than the part, as `seg_train` does, if the folders of other parts say the same.
    """
    words = {top: match[0] for top in tops if len(match := [found[1] for found in _WORD.finditer(top.lower())]) == 1}
    parts = {top: _WORDS[word] for top, word in words.items()}
    more = {top: normalise(_WORD.sub("", top.lower())) for top in words}
    if len(set(filter(None, more.values()))) > 1 or len(set(parts.values())) == 1:
        return {top: part for top, part in parts.items() if not more[top]}
    return parts


def _is_split(found: Sequence[tuple[int, str] | None]) -> bool:
    return None not in found and any(place and place[0] == TRAIN for place in found)


def _with_labels(found: Sequence[tuple[int, str]]) -> Layout:
    """The layout whose classes have the labels that their folders would have if they were those of one part."""
    as_it_is = set()  # what the tutorial would call folders that keep their name
    for part in {part for part, _ in found}:
        inside = sorted({folder for other, folder in found if other == part})
        labels = class_labels.of_folders(inside)
        as_it_is |= {
            normalise(folder) for folder, label in zip(inside, labels, strict=True) if label != normalise(folder)
        }
    classes = [folder if normalise(folder) in as_it_is else normalise(folder) for _, folder in found]
    return Layout(np.array([part for part, _ in found], np.uint8), classes)
