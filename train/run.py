"""Training, from a cache to a classifier: open, split, stream, solve, evaluate, export."""

from __future__ import annotations

import time
from collections.abc import Callable

from cache import files, process
from cache.console import print
from train import checkpoint
from train.checkpoint import Checkpoint
from train.data import photos
from train.data.dataset import open_split
from train.data.parts import TRAIN, VALIDATION
from train.result import Fitting, Result, final_line, print_mistakes
from train.settings import TrainSettings
from train.solvers.problem import Progress


def train(settings: TrainSettings) -> Result:
    """The whole of `python -m train`: fits, and writes the classifier and the report into output_dir.

    Raises Interrupted after Ctrl-C, with the progress saved; otherwise what `fit` raises.
    """
    with Checkpoint(settings) as interruptible:
        result = fit(settings, interruptible.keep)
        from train.export import output

        output.write(result)
    print(final_line(result))
    return result


def fit(
    settings: TrainSettings, each: Callable[[Progress, Fitting], None] | None = None, silent: bool = False
) -> Result:
    """Trains and evaluates. Makes output_dir, and writes the learning curves into logs_dir.

    Calls `each` with every Progress. If `silent`, neither a bar nor lines show the steps: `each` may.
    Raises UserError for settings, a cache or a folder that do not work, before TensorFlow is imported; for a learning
    rate that makes the cross entropy infinite; and for too little memory.
    """
    # Open and split. These errors need no TensorFlow, which takes seconds to import.
    dataset = open_split(settings)
    digest = dataset.digest()
    state, curve = checkpoint.load(settings, digest) if settings.resume else (None, [])
    if "int8" in (settings.tflite or ()):
        photos.calibration_sample(dataset.cache, dataset.rows(TRAIN), settings.seed)  # raises now, not after the fit
    dataset.check()
    # Last, since it makes them: a mistyped flag leaves no folders behind.
    files.make_writable(settings.output_dir, "--output_dir")
    files.make_writable(settings.logs_dir, "--summaries_dir" if settings.summaries_dir else "--output_dir")
    process.import_tensorflow()
    from train import devices, solvers
    from train.progress import Watch
    from train.report import evaluate, temperature, tensorboard

    # Stream.
    training, validation = dataset.images(TRAIN, augmented=True), dataset.images(VALIDATION)
    both = dataset.images(TRAIN, VALIDATION, augmented=True) if dataset.refits else None
    if dataset.augmentations:
        last_fit = "; in the last fit, those of the validation photos as well" if both else ""
        print(f"{len(training) - dataset.counts[0]:,} augmentations of the training photos train, too{last_fit}")
    device = devices.choose(settings.device)
    problem = solvers.Problem(training, validation, settings, device, both)

    # Solve.
    fitting, began = Fitting(settings, dataset, digest, curve), time.monotonic()
    with devices.memory_for(settings, device), Watch(settings.logs_dir, settings.solver, silent) as watch:
        watch.draw(curve)  # of the run that was interrupted
        for progress in solvers.solve(problem, state):
            if point := fitting.add(progress):
                watch.show(point, progress)
            if each:
                each(progress, fitting)
    seconds = time.monotonic() - began

    # Evaluate.
    validated = progress.head_before_refit or progress.head
    test = dataset.test_images(settings.test_batch_size, settings.seed)
    result = Result(
        settings=settings,
        cache=dataset.cache,
        head=progress.head,
        counts=dataset.counts,
        curve=fitting.curve,
        seconds=seconds,
        validation=evaluate.evaluate(validated, validation),
        is_refitted=progress.head_before_refit is not None,
        test=evaluate.evaluate(progress.head, test),
        calibrated=temperature.calibrate(validated, progress.head, validation, test),
        parts=dataset.split.parts,
        grid=progress.grid,
    )
    tensorboard.conclude(result)
    if settings.print_misclassified_test_images:
        print_mistakes(result)
    return result
