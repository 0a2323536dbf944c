"""`python -m train.predict`: labels photos with an exported classifier."""

from __future__ import annotations

import csv
import itertools
import json
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cache import console, kinds, process
from cache.bar import bar
from cache.console import print
from cache.errors import UserError, first_line
from cache.passed_over import is_passed_over
from cache.plain_path import plain
from cache.text import printable
from train.export import labels as label_files
from train.export import runs
from train.export.names import SAVED_MODEL
from train.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

# What marks a file in a folder as a photo: its name's ending, or its first bytes.
_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")


def parser() -> console.Parser:
    parser = console.Parser(
        prog="python -m train.predict",
        description="Prints the most likely labels of photos, with probabilities, in the order of the photos. A photo "
        "that cannot be labelled costs only itself; the exit status is then 2.",
    )
    add = parser.add_argument
    add(
        "--model",
        type=console.to_path,
        default=TrainSettings.output_dir,
        help="what `python -m train` wrote: its --output_dir",
    )
    add("--top_k", type=console.positive, default=5, help="labels to print for each photo")
    add("--batch_size", type=console.positive, default=32, help="photos that go through the network at once")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON Lines: for each photo, an object on a line")
    form.add_argument("--csv", action="store_true", help="print CSV: path, rank, label and probability")
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="a JPEG, PNG, GIF, BMP or WebP file; a folder, for all images below it; or - for names on standard input, "
        "one per line or each ended by a NUL",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Labels what it can. Raises UserError at the end if some photo could not be labelled."""
    flags = parser().parse_args(arguments)
    saved_model = _saved_model(flags.model)
    labels = _labels(saved_model)
    photos, labelled, failed = _find(flags.images), 0, 0
    for photo in photos:
        if (reason := photo.problem or _unreadable(photo.path)) is None:
            # The first one that can be read: from here on TensorFlow is needed, which takes seconds to import.
            show = _printer(labels, flags)
            model = _load(saved_model, labels)
            with process.quiet_libraries():
                labelled, broken = _label(model, itertools.chain([photo], photos), flags.batch_size, show)
            failed += broken
            break
        _print_error(photo.path, reason)
        failed += 1
    if failed:
        raise UserError(f"{failed:,} of {labelled + failed:,} photos could not be labelled")


@dataclass(frozen=True)
class _Photo:
    path: str
    problem: str | None = None  # the reason why it cannot be read, if that is known already


@dataclass(frozen=True)
class _Model:
    """An exported classifier in two steps, so that threads can do the first one ahead of need."""

    decode: Callable[[tf.Tensor], tf.Tensor]  # the bytes of a file, string [] -> an element of a batch
    classify: Callable[[tf.Tensor], tf.Tensor]  # a batch of N -> probabilities float32 [N, C]


def _label(
    model: _Model, photos: Iterable[_Photo], batch_size: int, show: Callable[[str, np.ndarray], None]
) -> tuple[int, int]:
    """Shows each photo's probabilities, or prints why there are none. Returns how many were labelled, and how many not.

    While the network works on a batch, threads read and decode the next one. No more than that is in memory.
    """
    import tensorflow as tf

    def decoded(photo: _Photo) -> tf.Tensor:
        if problem := photo.problem or _unreadable(photo.path):
            raise UserError(problem)
        with tf.device("/CPU:0"):  # see `saved_model.Classifier`
            return model.decode(tf.constant(Path(photo.path).read_bytes()))

    labelled = failed = 0
    # On a terminal where the answers scroll by, these show the progress.
    is_quiet = not sys.stderr.isatty() or sys.stdout.isatty()
    with (
        ThreadPoolExecutor(process.cores()) as threads,
        bar(desc="predict", unit=" photos", delay=1, disable=is_quiet) as progress,
    ):
        try:
            started = _started(photos, decoded, threads, 2 * batch_size)
            while batch := list(itertools.islice(started, batch_size)):
                inputs = []
                for photo, future in batch:
                    try:
                        inputs.append((photo.path, future.result()))
                    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
                        _print_error(photo.path, _why_no_photo(photo.path))
                    except (OSError, UserError) as error:
                        _print_error(photo.path, first_line(error))
                if inputs:
                    with tf.device("/CPU:0"):
                        stacked = tf.stack([tensor for _, tensor in inputs])
                    probabilities = model.classify(stacked).numpy()
                    for (path, _), row in zip(inputs, probabilities, strict=True):
                        show(path, row)
                    sys.stdout.flush()
                labelled += len(inputs)
                failed += len(batch) - len(inputs)
                progress.update(len(batch))
        except tf.errors.ResourceExhaustedError:
            raise UserError(f"not enough memory for --batch_size {batch_size}; choose a smaller one") from None
        finally:
            threads.shutdown(cancel_futures=True)
    return labelled, failed


def _started(
    photos: Iterable[_Photo], work: Callable[[_Photo], tf.Tensor], threads: ThreadPoolExecutor, window: int
) -> Iterator[tuple[_Photo, Future[tf.Tensor]]]:
    """Each photo with its `work`, in order; the work on the next `window` photos has been started."""
    started: deque[tuple[_Photo, Future[tf.Tensor]]] = deque()
    for photo in photos:
        started.append((photo, threads.submit(work, photo)))
        if len(started) == window:
            yield started.popleft()
    yield from started


def _load(saved_model: Path, labels: Sequence[str]) -> _Model:
    process.import_tensorflow()  # takes seconds; the errors before this need none of it
    import tensorflow as tf

    try:
        with plain(saved_model) as path:
            model = tf.saved_model.load(path)
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"cannot load {saved_model} ({first_line(error)}); train again") from None
    serve = model.signatures["serving_default"]
    outputs = serve.structured_outputs["probabilities"].shape[-1]
    if len(labels) != outputs:
        raise UserError(f"{saved_model} has {outputs} outputs but {len(labels)} labels; train again")
    if hasattr(model, "classify_decoded"):
        return _Model(model.backbone.decode, lambda images: model.classify_decoded(images)["probabilities"])
    # A model of an earlier version only takes encoded photos, of which a broken one would fail the whole batch.
    return _Model(lambda content: serve(content[tf.newaxis])["probabilities"][0], lambda rows: rows)


def _printer(labels: Sequence[str], flags: Any) -> Callable[[str, np.ndarray], None]:
    """A function that prints a photo's path and its likeliest labels, in the form that `flags` ask for."""
    width = max(len(printable(label)) for label in labels)
    # The bytes of a name that are not UTF-8 are in CSV as they are, and in JSON as Python's lone surrogates.
    table = csv.writer(sys.stdout, lineterminator="\n")
    if flags.csv:
        console.write_names_as_they_are()
        table.writerow(["path", "rank", "label", "probability"])

    def show(path: str, probabilities: np.ndarray) -> None:
        best = (-probabilities).argsort(kind="stable")[: flags.top_k].tolist()
        ranked = [(labels[label_id], float(probabilities[label_id])) for label_id in best]
        if flags.json:
            pairs = [{"label": label, "probability": _rounded(share)} for label, share in ranked]
            sys.stdout.write(json.dumps({"path": path, "labels": pairs}) + "\n")
        elif flags.csv:
            table.writerows([path, rank, label, _rounded(share)] for rank, (label, share) in enumerate(ranked, 1))
        else:
            print(path)
            for label, share in ranked:
                print(f"  {printable(label):<{width}} {share:6.1%}")

    return show


def _rounded(share: float) -> float:
    """To the digits that a float32 has."""
    return float(f"{share:.7g}")


def _find(arguments: Iterable[str]) -> Iterator[_Photo]:
    """The photos that arguments name, one at a time, in order."""
    for argument in arguments:
        for name in _names_on_stdin() if argument == "-" else (argument,):
            if os.path.isdir(name):
                photos = _in_folder(name)
                yield next(photos, None) or _Photo(name, "a folder without photos")
                yield from photos
            else:
                yield _Photo(name)


def _names_on_stdin() -> Iterator[str]:
    """The names on standard input, each ended by a NUL if the first block has one, otherwise by a line end."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise UserError("there is no standard input here, as in a notebook; give the names of the photos")
    rest, end = b"", b""
    while block := stream.read1(1 << 16):
        rest += block
        end = end or next((mark for mark in (b"\0", b"\n") if mark in rest), b"")
        if end:
            *names, rest = rest.split(end)
            yield from map(os.fsdecode, filter(None, names))
    if rest:
        yield os.fsdecode(rest)


def _in_folder(top: str) -> Iterator[_Photo]:
    """The photos in a folder, sorted, then those in each folder in it. Skips what is hidden or a system's own.

    A link to a folder above it is not followed.
    """
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]  # with the folders above each
    while waiting:
        folder, above = waiting.pop()
        try:
            here = os.stat(folder)
            names = sorted(name for name in os.listdir(os.fsencode(folder)) if not is_passed_over(name))
        except OSError as error:
            yield _Photo(folder, first_line(error))
            continue
        above = (*above, (here.st_dev, here.st_ino))
        folders = []
        for name in names:
            path = os.path.join(folder, os.fsdecode(name))
            try:
                status = os.stat(path)
            except OSError as error:  # such as a link to nothing: nobody knows whether it was a photo
                yield _Photo(path, first_line(error))
                continue
            if stat.S_ISDIR(status.st_mode):
                if (status.st_dev, status.st_ino) not in above:
                    folders.append((path, above))
            elif path.lower().endswith(_SUFFIXES) or _begins_as_photo(path):
                yield _Photo(path)
        waiting += reversed(folders)


def _begins_as_photo(path: str) -> bool:
    if _unreadable(path):
        return False
    with open(path, "rb") as file:
        return kinds.is_photo(file.read(4))


def _why_no_photo(path: str) -> str:
    with open(path, "rb") as file:
        return kinds.reason(file.read(kinds.HEAD))


def _unreadable(path: str) -> str | None:
    """Why a file cannot be read; None if it can."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return "neither a file nor a folder"
        if status.st_size > kinds.LARGEST:
            return kinds.TOO_LARGE
        with open(path, "rb"):
            return None
    except OSError as error:
        return first_line(error)


def _saved_model(model: Path) -> Path:
    """The SavedModel of the newest run in an output_dir, or that in a run's folder, or this folder itself.

    It is the folder's own path: where `latest` leads, another training may change. Raises UserError if there is none.
    """
    for folder in (runs.newest(model) or model, model):
        for saved_model in (folder / SAVED_MODEL, folder):
            if (saved_model / "saved_model.pb").is_file():
                return saved_model.resolve()
    if not model.exists():
        raise UserError(f"no model at {model}; run `python -m train` first, or give its --output_dir")
    raise UserError(f"{model} is no model; give the --output_dir of `python -m train`")


def _labels(saved_model: Path) -> list[str]:
    try:
        return label_files.read(saved_model / label_files.ASSET)
    except OSError:
        raise UserError(f"{saved_model} has no labels; give the --output_dir of `python -m train`") from None


def _print_error(path: str, reason: str) -> None:
    tqdm.write(printable(f"error: {path}: {reason}"), file=sys.stderr)


def script() -> int:
    """The command `retrain-predict`."""
    return console.run(main)


if __name__ == "__main__":
    sys.exit(script())
