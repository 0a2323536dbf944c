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

from cache import command
from cache.bar import bar
from cache.errors import UserError
from train.markup import printable

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")


def parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m train.predict",
        description="Prints the most likely labels of photos, with probabilities, in the order of the photos. Ends "
        "with status 2 where some photo could not be labelled; the others are.",
    )
    add = parser.add_argument
    add("--model", type=command.path, default="retrained", help="what `python -m train` wrote: its --output_dir")
    add("--top_k", type=command.positive, default=5, help="labels to print for each image")
    add("--batch_size", type=command.positive, default=32, help="images that go through the network at once")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON Lines: an object for each image on its line")
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
    """Labels what it can. Raises UserError at the end when some image could not be labelled."""
    flags = parser().parse_args(arguments)
    saved_model = _saved_model(Path(flags.model))
    labels = _labels(saved_model)
    found, failed = _find(flags.images), 0
    for image in found:
        if (reason := image.problem or _unreadable(image.path)) is None:
            show = _printer(labels, flags)
            done, broken = _label(_load(saved_model, labels), itertools.chain([image], found), flags.batch_size, show)
            failed += broken
            break
        _complain(image.path, reason)
        failed += 1
    else:
        done = 0
    if failed:
        raise UserError(f"{failed:,} of {done + failed:,} images could not be labelled")


@dataclass(frozen=True)
class _Image:
    path: str
    problem: str | None = None  # why there is nothing to read


@dataclass(frozen=True)
class _Model:
    """decode: an image file's bytes, string scalar -> what `classify` takes a batch of. May be called by any thread.

    classify: a batch of N -> probabilities float32 [N, C].
    """

    decode: Callable[[tf.Tensor], tf.Tensor]
    classify: Callable[[tf.Tensor], tf.Tensor]


def _label(
    model: _Model, images: Iterable[_Image], batch_size: int, show: Callable[[str, np.ndarray], None]
) -> tuple[int, int]:
    """Shows each image's probabilities, or tells why there are none; returns how many of each there were.

    While the network works on a batch, threads read and decode the next: no more than that is in memory.
    """
    import tensorflow as tf

    def decoded(image: _Image) -> tf.Tensor:
        if problem := image.problem or _unreadable(image.path):
            raise UserError(problem)
        with tf.device("/CPU:0"):  # see `export.Classifier`
            return model.decode(tf.constant(Path(image.path).read_bytes()))

    done = failed = 0
    # Where lines scroll by, they show the progress themselves.
    quiet = not sys.stderr.isatty() or sys.stdout.isatty()
    with (
        ThreadPoolExecutor(command.cores()) as threads,
        bar(desc="predict", unit=" images", delay=1, disable=quiet) as shown,
    ):
        try:
            ahead = _ahead(images, decoded, threads, 2 * batch_size)
            while batch := list(itertools.islice(ahead, batch_size)):
                inputs = []
                for image, future in batch:
                    try:
                        inputs.append((image.path, future.result()))
                    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
                        _complain(image.path, "no image, or a broken one; convert it to JPEG or PNG")
                    except (OSError, UserError) as error:
                        _complain(image.path, getattr(error, "strerror", None) or str(error))
                if inputs:
                    with tf.device("/CPU:0"):
                        stacked = tf.stack([tensor for _, tensor in inputs])
                    probabilities = model.classify(stacked).numpy()
                    for (path, _), row in zip(inputs, probabilities, strict=True):
                        show(path, row)
                    sys.stdout.flush()
                done += len(inputs)
                failed += len(batch) - len(inputs)
                shown.update(len(batch))
        except tf.errors.ResourceExhaustedError:
            raise UserError(f"not enough memory for --batch_size {batch_size}; choose a smaller one") from None
        finally:
            threads.shutdown(cancel_futures=True)
    return done, failed


def _ahead(
    images: Iterable[_Image], work: Callable[[_Image], Any], threads: ThreadPoolExecutor, window: int
) -> Iterator[tuple[_Image, Future]]:
    """Each image and its work, in order, with the work on the next `window` begun."""
    begun: deque[tuple[_Image, Future]] = deque()
    for image in images:
        begun.append((image, threads.submit(work, image)))
        if len(begun) == window:
            yield begun.popleft()
    yield from begun


def _load(saved_model: Path, labels: Sequence[str]) -> _Model:
    command.import_tensorflow()  # takes seconds; the errors before this need none of it
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(saved_model))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"cannot load {saved_model} ({_first_line(error)}); train again") from None
    serve = model.signatures["serving_default"]
    outputs = serve.structured_outputs["probabilities"].shape[-1]
    if len(labels) != outputs:
        raise UserError(f"{saved_model} has {outputs} outputs but {len(labels)} labels; train again")
    if hasattr(model, "classify_decoded"):
        return _Model(model.backbone.decode, lambda images: model.classify_decoded(images)["probabilities"])
    # An earlier version's takes a batch only whole, and one broken image would lose the others.
    return _Model(lambda content: serve(content[tf.newaxis])["probabilities"][0], lambda rows: rows)


def _printer(labels: Sequence[str], flags: Any) -> Callable[[str, np.ndarray], None]:
    """What prints an image's path and its likeliest labels, in the form that `flags` ask for."""
    width = max(map(len, labels))
    # The bytes of a name that are not UTF-8 come out of CSV as they are, out of JSON as Python's lone surrogates.
    table = csv.writer(sys.stdout, lineterminator="\n")
    if flags.csv:
        sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
        table.writerow(["path", "rank", "label", "probability"])

    def show(path: str, probabilities: np.ndarray) -> None:
        best = (-probabilities).argsort(kind="stable")[: flags.top_k].tolist()
        ranked = [(labels[label_id], float(probabilities[label_id])) for label_id in best]
        if flags.json:
            pairs = [{"label": label, "probability": _rounded(share)} for label, share in ranked]
            print(json.dumps({"path": path, "labels": pairs}))
        elif flags.csv:
            table.writerows([path, rank, label, _rounded(share)] for rank, (label, share) in enumerate(ranked, 1))
        else:
            print(printable(path))
            for label, share in ranked:
                print(f"  {label:<{width}} {share:6.1%}")

    return show


def _rounded(share: float) -> float:
    """To what of a float32 means something."""
    return float(f"{share:.7g}")


def _find(arguments: Iterable[str]) -> Iterator[_Image]:
    """The images that arguments name, one at a time, in order."""
    for argument in arguments:
        for name in _listed() if argument == "-" else (argument,):
            if os.path.isdir(name):
                below = _below(name, ())
                yield next(below, None) or _Image(name, "a folder without images")
                yield from below
            else:
                yield _Image(name)


def _listed() -> Iterator[str]:
    """The names on standard input. Lines, unless a NUL is among what comes first: then what ends with one."""
    rest, end = b"", b""
    while block := sys.stdin.buffer.read1(1 << 16):  # type: ignore[union-attr]
        rest += block
        end = end or next((mark for mark in (b"\0", b"\n") if mark in rest), b"")
        if end:
            *names, rest = rest.split(end)
            yield from map(os.fsdecode, filter(None, names))
    if rest:
        yield os.fsdecode(rest)


def _below(folder: str, above: tuple[os.stat_result, ...]) -> Iterator[_Image]:
    """The images in a folder, sorted, then those in the folders in it; hidden ones are passed over.

    An image is what has the suffix or the first bytes of one. A link to one of the folders `above` is not followed.
    """
    try:
        here = os.stat(folder)
        names = sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=os.fsencode)
    except OSError as error:
        yield _Image(folder, error.strerror)
        return
    if any(os.path.samestat(here, other) for other in above):
        return
    folders = []
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            folders.append(path)
        elif name.lower().endswith(_SUFFIXES) or _begins_as_image(path):
            yield _Image(path)
    for path in folders:
        yield from _below(path, (*above, here))


def _begins_as_image(path: str) -> bool:
    if _unreadable(path):
        return False
    with open(path, "rb") as file:
        return file.read(4).startswith(_MAGIC)


def _unreadable(path: str) -> str | None:
    """Why a file cannot be read; None where it can."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return "neither a file nor a folder"
        with open(path, "rb"):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _saved_model(model: Path) -> Path:
    """The SavedModel in an output directory, or that directory itself. Raises UserError where there is none."""
    for folder in (model / "saved_model", model):
        if (folder / "saved_model.pb").is_file():
            return folder
    if not model.exists():
        raise UserError(f"no model at {model}; run `python -m train` first, or give its --output_dir")
    raise UserError(f"{model} is no model; give the --output_dir of `python -m train`")


def _labels(saved_model: Path) -> list[str]:
    path = saved_model / "assets.extra" / "labels.txt"
    try:
        return os.fsdecode(path.read_bytes()).removesuffix("\n").split("\n")
    except OSError:
        raise UserError(f"{saved_model} has no labels; give the --output_dir of `python -m train`") from None


def _complain(path: str, reason: str) -> None:
    tqdm.write(f"error: {printable(path)}: {reason}", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(command.run(main))
