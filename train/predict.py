"""`python -m train.predict`: labels photos with an exported classifier."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from cache import command
from cache.errors import UserError
from train.report import printable


def parser() -> command.Parser:
    parser = command.Parser(
        prog="python -m train.predict",
        description="Prints the most likely labels of photos, with probabilities.",
    )
    parser.add_argument(
        "--model", type=Path, default=Path("retrained"), help="what `python -m train` wrote: its --output_dir"
    )
    parser.add_argument("--top_k", type=command.positive, default=5, help="labels to print for each image")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a JPEG, PNG, GIF, BMP or WebP file")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Labels what it can. Raises UserError at the end when some image could not be labelled."""
    flags = parser().parse_args(arguments)
    saved_model = _saved_model(flags.model)
    labels = _labels(saved_model)
    readable = [image for image in flags.images if _can_read(image)]
    labelled = _label(saved_model, labels, readable, flags.top_k) if readable else 0
    if labelled < len(flags.images):
        raise UserError(f"{len(flags.images) - labelled} of {len(flags.images)} images could not be labelled")


def _label(saved_model: Path, labels: Sequence[str], images: Sequence[str], top_k: int) -> int:
    """Prints each image's labels, an error where it is broken; returns how many were labelled."""
    command.import_tensorflow()  # takes seconds; the errors before this need none of it
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(saved_model))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise UserError(f"cannot load {saved_model} ({_first_line(error)}); train again") from None
    outputs = model.signatures["serving_default"].structured_outputs["probabilities"].shape[-1]
    if len(labels) != outputs:
        raise UserError(f"{saved_model} has {outputs} outputs but {len(labels)} labels; train again")
    labelled = 0
    for image in images:
        try:
            content = Path(image).read_bytes()
            probabilities = model.signatures["serving_default"](tf.constant([content]))["probabilities"].numpy()[0]
        except OSError as error:
            _complain(image, error.strerror or str(error))
            continue
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
            _complain(image, "no image, or a broken one; convert it to JPEG or PNG")
            continue
        print(printable(image))
        width = max(map(len, labels))
        for label_id in (-probabilities).argsort(kind="stable")[:top_k]:
            print(f"  {labels[label_id]:<{width}} {probabilities[label_id]:6.1%}")
        labelled += 1
    return labelled


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


def _can_read(image: str) -> bool:
    try:
        if not stat.S_ISREG(os.stat(image).st_mode):  # opening a pipe would wait for ever
            _complain(image, "not a file; name the images in a folder one by one")
            return False
        with open(image, "rb"):
            return True
    except OSError as error:
        _complain(image, error.strerror or str(error))
        return False


def _complain(image: str, reason: str) -> None:
    print(f"error: {printable(image)}: {reason}", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(command.run(main))
