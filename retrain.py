"""The tutorial's own command: `python -m extract` and `python -m train` in one go, with the tutorial's flags."""

from __future__ import annotations

import argparse
import contextlib
import functools
import glob
import os
import sys
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cache import console, files, process
from cache.console import print
from cache.errors import UserError
from extract.settings import Settings
from train.export.names import IN_SAVED_MODEL
from train.settings import TrainSettings

if TYPE_CHECKING:
    from train.result import Fitting
    from train.solvers.problem import Progress

INCEPTION = "inception_v3"
VERBOSITIES = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")
CHANGES = ("flip_left_right", "random_crop", "random_scale", "random_brightness")
TRAIN_FLAGS = (
    "how_many_training_steps",
    "learning_rate",
    "train_batch_size",
    "testing_percentage",
    "validation_percentage",
    "validation_batch_size",
    "test_batch_size",
    "eval_step_interval",
)
# Augmentations of each photo. The tutorial's script changes photos anew in every step, 400,000 of them in 4,000 steps;
# these cost five passes over the photos, once.
AUGMENT = 5

DESCRIPTION = f"""Extracts bottlenecks of the photos below --image_dir and trains a classifier on them, as TensorFlow's
image retraining tutorial does, with its flags. Each subfolder is a class; folders train/ and test/ above the classes
are taken as the split. It is `python -m extract` followed by `python -m train`. With a random
change of photos, such as --random_crop, the network runs on {AUGMENT} augmentations of each photo, once; their
bottlenecks are kept, too."""


def parser() -> console.Parser:
    flags = console.Parser(prog="python retrain.py", description=DESCRIPTION)
    add = flags.add_argument
    console.add_flags(flags, Settings, ["image_dir"])
    add(
        "--tfhub_module",
        default=None,
        help=f"the network; takes what `python -m extract --module` takes (default: {INCEPTION} from TensorFlow Hub; "
        "if that cannot be reached, the built-in efficientnet_lite0)",
    )
    add("--bottleneck_dir", type=console.path, default="/tmp/bottleneck", help="where the bottlenecks are kept")
    console.add_flags(
        flags,
        TrainSettings,
        [*TRAIN_FLAGS, "print_misclassified_test_images"],
        how_many_training_steps="batches to train on; more help as long as the validation accuracy rises",
        learning_rate="how far one step goes: too small trains slowly, too large jumps about or diverges",
        train_batch_size="photos in a step",
        testing_percentage="share of the photos held back for the final test accuracy; a hash of the path chooses "
        "them, so a photo stays on its side when others are added",
        validation_percentage="share of the photos that the validation accuracy is measured on; the same hash picks "
        "them",
        validation_batch_size="photos in a validation; -1 takes all validation photos",
        eval_step_interval="steps between two validations",
    )
    add("--summaries_dir", type=console.to_path, default="/tmp/retrain_logs", help="where TensorBoard finds the run")
    add("--output_graph", type=console.to_path, default="/tmp/output_graph.pb", help="gets the frozen graph")
    add("--output_labels", type=console.to_path, default="/tmp/output_labels.txt", help="gets the labels, one a line")
    console.add_flags(flags, TrainSettings, ["final_tensor_name"])
    add("--saved_model_dir", type=_path_or_none, default=None, help="becomes a SavedModel (default: none is written)")
    add(
        "--checkpoint_path",
        type=console.to_path,
        default="/tmp/_retrain_checkpoint",
        help="gets the variables of the softmax layer",
    )
    add(
        "--intermediate_store_frequency",
        type=console.natural,
        default=TrainSettings.intermediate_store_frequency,
        help="steps between two graphs; 0: none",
    )
    add(
        "--intermediate_output_graphs_dir",
        type=console.to_path,
        default="/tmp/intermediate_graph/",
        help="gets them, as intermediate_STEP.pb",
    )
    console.add_flags(flags, Settings, CHANGES)
    add(
        "--logging_verbosity",
        choices=VERBOSITIES,
        default="INFO",
        help="WARN: warnings and errors only; ERROR and FATAL: errors only",
    )
    return flags


def main(arguments: list[str] | None = None) -> None:
    flags = parser().parse_args(arguments)
    level = VERBOSITIES.index(flags.logging_verbosity)
    flags.quiet = level >= VERBOSITIES.index("WARN")
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", errors="replace"))
        if flags.quiet:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        if level > VERBOSITIES.index("WARN"):  # `console.run` prints errors, after this block
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        _retrain(flags)


def _retrain(flags: argparse.Namespace) -> None:
    from extract.sources.folder import list_photos
    from train.data import split

    split.check_percentages(flags.testing_percentage, flags.validation_percentage)
    with warnings.catch_warnings():  # the extraction lists the photos again, and gives the warnings
        warnings.simplefilter("ignore")
        list_photos(flags.image_dir)
    _check_places(flags)
    directory = _extract(flags)
    try:
        _train(flags, directory)
    except KeyboardInterrupt:
        raise console.Interrupted(
            f"interrupted; the bottlenecks are kept in {directory}, and the same command trains anew on them"
        ) from None


def _check_places(flags: argparse.Namespace) -> None:
    """Makes the folders to write into. Raises UserError for what cannot be written or must not be replaced."""
    folders = {"summaries_dir": flags.summaries_dir}
    for name in ("output_graph", "output_labels", "checkpoint_path"):
        path = getattr(flags, name)
        if path.is_dir():
            raise UserError(f"--{name} {path} is a folder; name a file in it")
        folders[name] = path.parent
    if flags.intermediate_store_frequency:
        folders["intermediate_output_graphs_dir"] = flags.intermediate_output_graphs_dir
    if flags.saved_model_dir:
        folder = flags.saved_model_dir.absolute()
        if folder.exists() and not (folder.is_dir() and IN_SAVED_MODEL.issuperset(os.listdir(folder))):
            raise UserError(f"--saved_model_dir {folder} is there, and is no SavedModel to replace; name a new folder")
        folders["saved_model_dir"] = folder.parent
    for name, folder in folders.items():
        files.make_writable(folder, f"--{name}")
    # What killed runs left.
    for path in filter(None, (flags.output_graph, flags.output_labels, flags.checkpoint_path, flags.saved_model_dir)):
        files.sweep([path.parent], f"{glob.escape(path.name)}.*")
    files.sweep([flags.intermediate_output_graphs_dir], "intermediate_*")


def _extract(flags: argparse.Namespace) -> Path:
    """Fills the cache; returns this network's folder in it."""
    from extract.backbones import DEFAULT, UnreachableError
    from extract.run import extract

    changes = {name: getattr(flags, name) for name in CHANGES}
    settings = Settings(
        image_dir=flags.image_dir,
        cache_dir=flags.bottleneck_dir,
        module=flags.tfhub_module or INCEPTION,
        augment=AUGMENT if any(changes.values()) else 0,
        **changes,
        show_bar=not flags.quiet,
    )
    try:
        result = extract(settings)
    except UnreachableError:
        # Whoever chose a network wants that one or an error; whoever typed the tutorial's command wants a classifier.
        if flags.tfhub_module:
            raise
        warnings.warn(
            f"{INCEPTION} cannot be downloaded, so the built-in {DEFAULT} takes its place; "
            "--tfhub_module chooses a network",
            stacklevel=2,
        )
        result = extract(replace(settings, module=DEFAULT))
    if result.rejected:
        warnings.warn(
            f"left out, as broken or no images: {result.rejected}; see {result.directory / 'rejected.csv'}",
            stacklevel=2,
        )
    return result.directory


def _train(flags: argparse.Namespace, directory: Path) -> None:
    """Fits the head to the bottlenecks in `directory`, and writes what the flags ask for."""
    process.import_tensorflow()
    from train import run
    from train.export import labels, tutorial
    from train.result import final_line, print_mistakes

    frozen_graph = functools.cache(tutorial.frozen_graph)  # the backbone is frozen once for all graphs

    def show(progress: Progress, fitting: Fitting) -> None:
        frequency = flags.intermediate_store_frequency
        if frequency and progress.step % frequency == 0:
            path = flags.intermediate_output_graphs_dir / f"intermediate_{progress.step}.pb"
            frozen_graph(fitting.dataset.cache, flags.final_tensor_name)(path, progress.head)
        if fitting.curve and fitting.curve[-1].step == progress.step:
            _print(progress)

    settings = TrainSettings(
        cache_dir=directory,
        output_dir=flags.output_graph.parent,
        solver="sgd",  # the tutorial's only one
        **{name: getattr(flags, name) for name in TRAIN_FLAGS},
        use_augmentations=any(getattr(flags, name) for name in CHANGES),
        summaries_dir=flags.summaries_dir,
        intermediate_store_frequency=flags.intermediate_store_frequency,
    )
    result = run.fit(settings, show, silent=True)
    frozen_graph(result.cache, flags.final_tensor_name)(flags.output_graph, result.head)
    labels.write(flags.output_labels, result.cache.labels)
    tutorial.write_checkpoint(flags.checkpoint_path, result.head)
    if flags.saved_model_dir:
        tutorial.write_saved_model(flags.saved_model_dir, result.cache, result.head)
    if flags.print_misclassified_test_images:
        print_mistakes(result, flags.image_dir)
    print(f"graph: {flags.output_graph}, labels: {flags.output_labels}, TensorBoard: {flags.summaries_dir}")
    print(final_line(result))


def _print(progress: Progress) -> None:
    """The tutorial's lines, which its users' scripts look for."""
    lines = [f"Train accuracy = {progress.accuracy:.1%}", f"Cross entropy = {progress.cross_entropy:f}"]
    if validation := progress.validation:
        lines.append(f"Validation accuracy = {validation.accuracy:.1%} (N={validation.count})")
    for line in lines:
        print(f"{datetime.now()}: Step {progress.step}: {line}", flush=True)


def _path_or_none(text: str) -> Path | None:
    """A path, or None for the empty string, the tutorial's way to say that there is to be none."""
    return console.to_path(text) if text else None


def script() -> int:
    console.interrupt_on_sigterm()
    return console.run(main, is_job=True)


if __name__ == "__main__":
    sys.exit(script())
