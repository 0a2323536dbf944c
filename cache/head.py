"""The head of a classifier as one file: all that answering needs beside the backbone, for programs that do not train.

`python -m train` writes one, HEAD, beside its other files. `FORMAT.md` describes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import table
from cache.calibration import Calibration
from cache.errors import CacheError, UserError, damage
from cache.layout import BACKBONE_ATTRIBUTES, HEAD, LATEST, RUN, RUNS, BackboneInfo
from cache.strings import Strings
from cache.table import INT32, INT64, STRINGS, Numbers, Schema, Table
from cache.thumbnails import is_small_jpeg

KIND = "head"
EXAMPLES = 4  # thumbnails of a class, at most
SCHEMAS: dict[str, Schema] = {
    "classes": {"labels": STRINGS, "biases": Numbers((np.float32,))},
    "weights": {"weights": Numbers((np.float32,), 2)},
    "bins": {"bin_counts": INT64, "bin_hits": INT64, "bin_sums": Numbers((np.float64,))},
    "examples": {"example_label_ids": INT32, "example_thumbnails": STRINGS},
}
ATTRIBUTES = [*BACKBONE_ATTRIBUTES, "temperature", "test_accuracy", "test_photos"]
TRAIN_AGAIN = "train again with `python -m train`"

_TRIES = 3  # to read a head while trainings replace it
_ROUNDING = 1e-5  # by which float32 probabilities may exceed 1


@dataclass(frozen=True)
class Example:
    """A photo that the head classifies correctly, to show what a class looks like."""

    label_id: int  # its class
    thumbnail: bytes  # a JPEG file, as in the cache


@dataclass(frozen=True, eq=False)
class Head:
    """A softmax layer of C classes on bottlenecks of D values, and what is known about it."""

    backbone: BackboneInfo  # whose bottlenecks it takes: those with the same fingerprint, and no others
    labels: Sequence[str]  # C class names, in the order of the outputs
    weights: np.ndarray  # float32 [D, C]
    biases: np.ndarray  # float32 [C]
    temperature: float  # T > 0, see `probabilities`; exactly 1 where none could be fitted
    calibration: Calibration  # of validation photos with that temperature; no counts where there were none
    test_accuracy: float | None  # the share of the test photos that the head gets right; None: there were none
    test_photos: int
    examples: Sequence[Example]  # class by class, up to EXAMPLES of each

    def logits(self, bottlenecks: np.ndarray) -> np.ndarray:
        """float32 [n, C]: x @ weights + biases, for bottlenecks x [n, D] of float16 or float32.

        Raises ValueError for bottlenecks of another length.
        """
        if bottlenecks.ndim != 2 or bottlenecks.shape[1] != len(self.weights):
            raise ValueError(f"bottlenecks of shape {bottlenecks.shape}, not [n, {len(self.weights)}]")
        return bottlenecks.astype(np.float32, copy=False) @ self.weights + self.biases

    def probabilities(self, bottlenecks: np.ndarray, temperature: float | None = None) -> np.ndarray:
        """float32 [n, C]: softmax(logits / T) for bottlenecks [n, D] of float16 or float32.

        T is the head's own temperature, or the given one: with 1 the probabilities are those of the exported
        classifier. A temperature changes how sure an answer is, and never which class comes first. Raises ValueError
        for bottlenecks of another length.
        """
        scores = self.logits(bottlenecks)
        scores -= scores.max(axis=1, keepdims=True)  # exp cannot overflow
        scores /= np.float32(self.temperature if temperature is None else temperature)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        return scores


def write(path: Path, head: Head) -> None:
    """Writes `head` as the file `path`, which appears whole or not at all.

    Raises UserError when it cannot be written, or when the head has numbers that `read` would refuse, such as weights
    that are not finite.
    """
    if reason := _problem(head):
        raise UserError(f"cannot write {path}: the head is of no use ({reason}); train with another --learning_rate")
    attributes = {**head.backbone.attributes(), "temperature": float(head.temperature)}
    if head.test_accuracy is not None:
        attributes |= {"test_accuracy": float(head.test_accuracy), "test_photos": int(head.test_photos)}
    counts, hits, sums = head.calibration.counts, head.calibration.hits, head.calibration.sums
    columns: dict[str, table.Columns] = {
        "classes": {"labels": Strings.of(head.labels), "biases": head.biases},
        "weights": {"weights": head.weights},
        "bins": {"bin_counts": counts, "bin_hits": hits, "bin_sums": sums},
        "examples": {
            "example_label_ids": np.array([example.label_id for example in head.examples], np.int32),
            "example_thumbnails": Strings.of_encoded([example.thumbnail for example in head.examples]),
        },
    }
    table.write(path, KIND, attributes, SCHEMAS, {name: [part] for name, part in columns.items()})


def read(path: str | os.PathLike) -> Head:
    """The head in a file, or in a folder as `find` looks for it. All of it is copied into memory.

    Compares every row with its checksum. Raises CacheError for a head that is missing, damaged, no regular file, or
    newer than this version.
    """
    for _ in range(_TRIES):
        before = _newest(Path(path))
        try:
            return _read(find(path))
        except CacheError:
            if before == _newest(Path(path)):
                raise
            # A training that has ended meanwhile has replaced the folder in which it lay.
    return _read(find(path))


def find(path: str | os.PathLike) -> Path:
    """The file itself, or the head of the newest classifier in the output_dir of a training, or that in a run's folder.

    Trainings of versions before this one wrote none: their weights lie in the graph of the SavedModel only. The message
    then says to train again, which takes the cache alone. Raises CacheError where there is none.
    """
    newest = _newest(Path(path))
    if not os.path.lexists(newest):
        raise CacheError(f"no head at {newest}; give the --output_dir of `python -m train`")
    if not newest.is_dir():
        return newest
    if not os.path.lexists(newest / HEAD):
        raise CacheError(
            f"{path} has no {HEAD}; give the --output_dir of `python -m train`, and if an earlier version has trained "
            "there, train again"
        )
    return newest / HEAD


def _newest(path: Path) -> Path:
    """The folder of the newest classifier in an output_dir, under its own name; any other path as it is."""
    if not path.is_dir():
        return path
    latest = path / LATEST
    return (latest if latest.is_dir() else max((path / RUNS).glob(RUN), default=path)).resolve()


def _read(path: Path) -> Head:
    attributes, tables = table.read(path, KIND, SCHEMAS, ATTRIBUTES, TRAIN_AGAIN)
    for one in tables.values():
        _check_rows(path, one)
    columns = {name: column for one in tables.values() for name, column in one.columns.items()}
    numbers = {name: np.array(column) for name, column in columns.items() if not isinstance(column, Strings)}
    labels, jpegs = columns["labels"], columns["example_thumbnails"]
    assert isinstance(labels, Strings) and isinstance(jpegs, Strings)
    pairs = zip(numbers["example_label_ids"].tolist(), jpegs.encoded(), strict=True)
    head = Head(
        backbone=_backbone(path, attributes),
        labels=list(labels),
        weights=numbers["weights"],
        biases=numbers["biases"],
        temperature=attributes.get("temperature", np.nan),
        calibration=Calibration(numbers["bin_counts"], numbers["bin_hits"], numbers["bin_sums"]),
        test_accuracy=attributes.get("test_accuracy"),
        test_photos=attributes.get("test_photos", 0),
        examples=[Example(label_id, jpeg) for label_id, jpeg in pairs],
    )
    if reason := _problem(head):
        raise damage(path, reason, TRAIN_AGAIN)
    return head


def _check_rows(path: Path, rows: Table) -> None:
    """Raises CacheError where rows differ from their checksums, or strings do not lie one behind the other."""
    if not all(column.is_sound() for column in rows.columns.values() if isinstance(column, Strings)):
        raise damage(path, "the offsets of strings", TRAIN_AGAIN)
    table.check_rows(path, rows, TRAIN_AGAIN)


def _backbone(path: Path, attributes: table.Attributes) -> BackboneInfo:
    try:
        return BackboneInfo.of(path, attributes)
    except CacheError:
        raise damage(path, "the attributes of the backbone", TRAIN_AGAIN) from None


def _problem(head: Head) -> str | None:
    """Why nobody can use a head; None if one can."""
    classes, calibration = len(head.labels), head.calibration
    if not classes or len(set(head.labels)) < classes:
        return "no labels, or one twice"
    if head.weights.shape != (head.backbone.dimension, classes) or head.biases.shape != (classes,):
        return "weights and labels disagree"
    if not (np.isfinite(head.weights).all() and np.isfinite(head.biases).all()):
        return "weights that are not finite"
    if not (_is_number(head.temperature) and 0 < head.temperature < np.inf):
        return "its temperature"
    if head.test_accuracy is None:
        if head.test_photos != 0:
            return "test photos without an accuracy"
    elif not (_is_number(head.test_accuracy) and 0 <= head.test_accuracy <= 1):
        return "its test accuracy"
    elif not (isinstance(head.test_photos, (int, np.integer)) and head.test_photos > 0):
        return "an accuracy without test photos"
    counts, hits, sums = calibration.counts, calibration.hits, calibration.sums
    if not ((hits >= 0) & (hits <= counts) & (sums >= 0) & (sums <= counts * (1 + _ROUNDING))).all():
        return "its calibration"
    if not all(0 <= example.label_id < classes and is_small_jpeg(example.thumbnail) for example in head.examples):
        return "its examples"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating))
