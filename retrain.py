"""The tutorial's own command: `python -m extract` and `python -m train` in one go, with the tutorial's flags."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cache import command
from cache.errors import UserError
from train.names import tensor_name

INCEPTION = "inception_v3"
VERBOSITIES = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL")
DISTORTIONS = ("flip_left_right", "random_crop", "random_scale", "random_brightness")
# Distorted versions of each image. The tutorial's script distorts images anew in every step, 400,000 of them in 4,000
# steps; these cost five passes over the images, once.
AUGMENT = 5

# What TensorFlow puts into the folder of a SavedModel.
SAVED_MODEL = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra", ".DS_Store"}

if TYPE_CHECKING:
    from train import run
    from train.solvers import Progress

DESCRIPTION = f"""Extracts bottlenecks of the images below --image_dir and trains a classifier on them, as TensorFlow's
image retraining tutorial does, with its flags. It is `python -m extract` followed by `python -m train`. With a
distortion on, the network runs on {AUGMENT} distorted versions of each image, once: these bottlenecks are kept too."""


def parser() -> command.Parser:
    flags = command.Parser(prog="python retrain.py", description=DESCRIPTION)
    add = flags.add_argument
    add(
        "--image_dir",
        type=command.path,
        required=True,
        default=argparse.SUPPRESS,
        help="folder with a subfolder of images for each class",
    )
    add(
        "--tfhub_module",
        default=None,
        help=f"the network; takes what `python -m extract --module` takes (default: {INCEPTION} from TensorFlow Hub; "
        "where that cannot be reached, the built-in efficientnet_lite0)",
    )
    add("--bottleneck_dir", type=command.path, default="/tmp/bottleneck", help="where the bottlenecks are kept")
    add("--how_many_training_steps", type=command.positive, default=4000, help="batches to train on")
    add("--learning_rate", type=command.positive_float, default=0.01, help="how far one step goes")
    add("--train_batch_size", type=command.positive, default=100, help="images in a step")
    add("--testing_percentage", type=command.percentage, default=10.0, help="share of the images that test")
    add("--validation_percentage", type=command.percentage, default=10.0, help="share of the images that validate")
    add("--validation_batch_size", type=command.batch_size, default=100, help="images in a validation; -1: all")
    add("--test_batch_size", type=command.batch_size, default=-1, help="images in the final test; -1: all")
    add("--eval_step_interval", type=command.positive, default=10, help="steps between two validations")
    add("--print_misclassified_test_images", action="store_true", help="print path and predicted label of each")
    add("--summaries_dir", type=_path, default="/tmp/retrain_logs", help="where TensorBoard finds the run")
    add("--output_graph", type=_path, default="/tmp/output_graph.pb", help="gets the frozen graph")
    add("--output_labels", type=_path, default="/tmp/output_labels.txt", help="gets the labels, one a line")
    add(
        "--final_tensor_name",
        type=tensor_name,
        default="final_result",
        help="name of the softmax output in the frozen graph",
    )
    add("--saved_model_dir", type=_path_or_none, default=None, help="becomes a SavedModel (default: none is written)")
    add("--checkpoint_path", type=_path, default="/tmp/_retrain_checkpoint", help="gets the layer's variables")
    add("--intermediate_store_frequency", type=command.natural, default=0, help="steps between two graphs; 0: none")
    add(
        "--intermediate_output_graphs_dir",
        type=_path,
        default="/tmp/intermediate_graph/",
        help="gets them, as intermediate_STEP.pb",
    )
    add("--flip_left_right", action="store_true", help="distortion: mirror half of the training images")
    percents = {
        "random_crop": "crop images, enlarged by so many per cent, at a random place",
        "random_scale": "enlarge by up to so many per cent",
        "random_brightness": "multiply pixels by 1 plus or minus up to so many per cent",
    }
    for name, help_text in percents.items():
        add(f"--{name}", type=command.percent, default=0, metavar="PERCENT", help=f"distortion: {help_text}")
    add(
        "--logging_verbosity", choices=VERBOSITIES, default="INFO", help="WARN: warnings and errors only; above: errors"
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
        if level > VERBOSITIES.index("WARN"):  # errors are told when this is left
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        _retrain(flags)


def _retrain(flags: argparse.Namespace) -> None:
    from extract.images import list_images
    from train import split

    split.check_percentages(flags.testing_percentage, flags.validation_percentage)
    with warnings.catch_warnings():  # the extraction lists them, too, and gives the warnings
        warnings.simplefilter("ignore")
        list_images(flags.image_dir)
    _check_places(flags)
    directory = _extract(flags)
    try:
        _train(flags, directory)
    except KeyboardInterrupt:
        raise command.Interrupted(
            f"interrupted; the bottlenecks are kept in {directory}, and the same command trains anew on them"
        ) from None


def _check_places(flags: argparse.Namespace) -> None:
    """Raises UserError for what must not be replaced, or cannot be written; makes the folders of what can."""
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
        if folder.exists() and not (folder.is_dir() and SAVED_MODEL.issuperset(os.listdir(folder))):
            raise UserError(f"--saved_model_dir {folder} is there, and is no SavedModel to replace; name a new folder")
        folders["saved_model_dir"] = folder.parent
    for name, folder in folders.items():
        command.make_writable(folder, f"--{name}")


def _train(flags: argparse.Namespace, directory: Path) -> None:
    """Fits the layer to the bottlenecks in `directory`, and writes what the flags ask for."""
    command.import_tensorflow()
    from train import export, run
    from train.result import final_line, tell_mistakes

    def show(progress: Progress, fitting: run.Fitting) -> None:
        frequency = flags.intermediate_store_frequency
        if frequency and progress.step % frequency == 0:
            path = flags.intermediate_output_graphs_dir / f"intermediate_{progress.step}.pb"
            export.write_frozen_graph(path, fitting.cache, progress.head, flags.final_tensor_name)
        if fitting.curve and fitting.curve[-1].step == progress.step:
            _print(progress)

    result = run.fit(
        run.TrainSettings(
            cache_dir=directory,
            output_dir=flags.output_graph.parent,
            how_many_training_steps=flags.how_many_training_steps,
            learning_rate=flags.learning_rate,
            train_batch_size=flags.train_batch_size,
            validation_batch_size=flags.validation_batch_size,
            test_batch_size=flags.test_batch_size,
            testing_percentage=flags.testing_percentage,
            validation_percentage=flags.validation_percentage,
            split="hash",  # the tutorial knows no other, as with the solver
            solver="sgd",
            distorted=any(getattr(flags, name) for name in DISTORTIONS),
            eval_step_interval=flags.eval_step_interval,
            summaries_dir=flags.summaries_dir,
            intermediate_store_frequency=flags.intermediate_store_frequency,
        ),
        show,
        silent=True,
    )
    export.write_frozen_graph(flags.output_graph, result.cache, result.head, flags.final_tensor_name)
    export.write_labels(flags.output_labels, result.cache.labels)
    export.write_checkpoint(flags.checkpoint_path, result.head)
    if flags.saved_model_dir:
        export.write_tutorial_saved_model(flags.saved_model_dir, result.cache, result.head)
    if flags.print_misclassified_test_images:
        tell_mistakes(result, flags.image_dir)
    print(f"graph: {flags.output_graph}, labels: {flags.output_labels}, TensorBoard: {flags.summaries_dir}")
    print(final_line(result))


def _print(progress: Progress) -> None:
    """The tutorial's lines, which its users' scripts look for."""
    lines = [f"Train accuracy = {progress.accuracy:.1%}", f"Cross entropy = {progress.cross_entropy:f}"]
    if validation := progress.validation:
        lines.append(f"Validation accuracy = {validation.accuracy:.1%} (N={validation.count})")
    for line in lines:
        print(f"{datetime.now()}: Step {progress.step}: {line}", flush=True)


def _extract(flags: argparse.Namespace) -> Path:
    """Fills the cache; returns this network's folder in it."""
    from extract.backbone import DEFAULT, UnreachableError
    from extract.run import extract
    from extract.settings import Settings

    distortions = {name: getattr(flags, name) for name in DISTORTIONS}
    settings = Settings(
        flags.image_dir,
        flags.bottleneck_dir,
        flags.tfhub_module or INCEPTION,
        augment=AUGMENT * any(distortions.values()),
        **distortions,
        show_bar=not flags.quiet,
    )
    try:
        found = extract(settings)
    except UnreachableError:
        # Somebody who chose a network wants that one or an error; somebody who typed the tutorial's command
        # wants a classifier.
        if flags.tfhub_module:
            raise
        warnings.warn(
            f"{INCEPTION} cannot be downloaded, so the built-in {DEFAULT} takes its place; "
            "--tfhub_module chooses a network",
            stacklevel=2,
        )
        found = extract(replace(settings, module=DEFAULT))
    if found.rejected:
        warnings.warn(
            f"left out, as broken or no images: {found.rejected}; see {found.directory / 'rejected.csv'}",
            stacklevel=2,
        )
    return found.directory


def _path(text: str) -> Path:
    return Path(command.path(text))


def _path_or_none(text: str) -> Path | None:
    """The tutorial's way to say that there shall be none is the empty string."""
    return _path(text) if text else None


if __name__ == "__main__":
    # A job that is told to stop commits what it has, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(command.run(main))
