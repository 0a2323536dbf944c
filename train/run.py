"""Training, from a cache to a classifier: open, split, stream, solve, evaluate, export."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

import cache as bottlenecks
from cache import command, reader, verify
from cache.errors import CacheError, UserError
from cache.reader import Cache
from train import interrupted, photos, report, split
from train.markup import printable
from train.result import Point, Result, final_line, tell_mistakes
from train.settings import TrainSettings
from train.split import Split

if TYPE_CHECKING:
    from train.solvers import Progress
    from train.stream import Images


@dataclass(frozen=True)
class Fitting:
    """A fit that is going on."""

    cache: Cache
    data: str  # `interrupted.digest` of what it is fitted on
    curve: list[Point]  # so far


def train(settings: TrainSettings) -> Result:
    """The whole of `python -m train`: fits, and writes the classifier and the report into output_dir.

    Raises Interrupted after Ctrl-C, when what was reached is saved.
    """
    reached: list[tuple[Progress, Fitting]] = []

    def keep(progress: Progress, fitting: Fitting) -> None:
        if not progress.is_last:  # from there the solver has nothing to go on with
            reached[:] = [(progress, fitting)]

    try:
        result = fit(settings, keep)
        _write(result)
    except KeyboardInterrupt:
        if not reached:
            raise
        raise command.Interrupted(_save(settings, *reached[0])) from None
    print(final_line(result))
    return result


def fit(
    settings: TrainSettings, each: Callable[[Progress, Fitting], None] | None = None, silent: bool = False
) -> Result:
    """Trains and evaluates; makes output_dir, and writes the curves into logs_dir.

    `each` is called with every Progress. If `silent`, neither a bar nor lines show the steps: `each` may.
    Raises UserError for percentages, a cache or a folder that will not do, before TensorFlow is imported, and
    for a learning rate that makes the cross entropy infinite and for too little memory.
    """
    split.check_percentages(settings.testing_percentage, settings.validation_percentage)
    opened = bottlenecks.open(settings.cache_dir, settings.module)
    cache, shared_out = _split(opened, settings)
    sets = shared_out.sets
    refits = _refits(settings, shared_out)
    versions = reader.distorted(opened) if settings.distorted else []
    state, fitting = None, Fitting(cache, interrupted.digest(cache, sets, versions, refits), [])
    if settings.resume:
        state, points = interrupted.load(settings.output_dir, settings, fitting.data)
        fitting.curve.extend(Point.of_numbers(numbers) for numbers in points.tolist())
    if "int8" in (settings.tflite or ()):
        photos.samples(cache, np.flatnonzero(sets == split.TRAIN), settings.seed)  # raises now, not after the training
    for each_cache in (opened, *versions):  # damage would make a worse classifier, and nobody would know
        verify.check(each_cache)
    # Last, since it makes them: what was mistyped leaves no folders behind.
    command.make_writable(settings.output_dir, "--output_dir")
    command.make_writable(settings.logs_dir, "--summaries_dir" if settings.summaries_dir else "--output_dir")

    # TensorFlow takes seconds to import, and the errors above need none of it.
    command.import_tensorflow()
    from train import devices, evaluate, solvers, summaries
    from train.progress import Watch
    from train.stream import Images

    def images(*parts: int) -> Images:
        return Images(cache, np.flatnonzero(np.isin(sets, parts)))

    training, validation, test = images(split.TRAIN), images(split.VALIDATION), images(split.TEST)
    together = images(split.TRAIN, split.VALIDATION) if refits else None
    if versions:
        plain, training = training, training.with_versions(versions)
        together = together and together.with_versions(versions)
        print(
            f"{len(training) - len(plain):,} distorted versions of the training images train, too"
            + (", in the last fit those of the validation images as well" if together else "")
        )
    device = devices.choose(settings.device)
    problem = solvers.Problem(training, validation, settings, device, together)
    began = time.monotonic()
    with devices.memory_for(settings, device), Watch(settings.logs_dir, settings.solver, silent) as watch:
        for point in fitting.curve:  # of the run that was stopped
            watch.draw(point)
        for progress in solvers.solve(problem, state):
            if settings.solver != "sgd" or progress.step % settings.eval_step_interval == 0 or progress.is_last:
                if fitting.curve and fitting.curve[-1].step == progress.step:
                    fitting.curve.pop()
                fitting.curve.append(Point.of(progress))
                watch.show(fitting.curve[-1], progress)
            if each:
                each(progress, fitting)
    result = Result(
        settings=settings,
        cache=cache,
        head=progress.head,
        counts=(int(np.count_nonzero(sets == split.TRAIN)), len(validation), len(test)),
        curve=fitting.curve,
        seconds=time.monotonic() - began,
        validation=evaluate.evaluate(progress.head_before_refit or progress.head, validation),
        is_refitted=progress.head_before_refit is not None,
        test=evaluate.evaluate(progress.head, _test_images(test, settings)),
        sets=sets,
        grid=progress.grid,
    )
    summaries.conclude(result)
    if settings.print_misclassified_test_images:
        tell_mistakes(result)
    return result


def _split(cache: Cache, settings: TrainSettings) -> tuple[Cache, Split]:
    """The cache with the classes to learn, and which of its images train, validate and test.

    Raises UserError where there is nothing to learn from.
    """
    if not (cache.backbone_dir / "saved_model.pb").exists():
        raise CacheError(f"{cache.backbone_dir} holds no SavedModel; copy the whole cache, or run the extraction again")
    percentages = settings.testing_percentage, settings.validation_percentage
    found = split.split(settings.split, cache.paths, cache.labels, cache.label_ids, *percentages)
    training, validation, test, _ = np.bincount(found.sets, minlength=4)
    if not validation and settings.solver == "sweep":
        raise UserError(
            "a sweep needs validation images to choose by; raise --validation_percentage or use --solver lbfgs"
        )
    if not validation:
        print("warning: no image fell into the validation set; training goes on without", file=sys.stderr)
    print(
        f"{len(found.labels)} classes, {training + validation + test:,} images: {training:,} train, "
        f"{validation:,} validate, {test:,} test; split by {printable(found.how)}"
    )
    return replace(cache, index=replace(cache.index, labels=found.labels, label_ids=found.label_ids)), found


def _refits(settings: TrainSettings, shared_out: Split) -> bool:
    """Whether the validation images train in the end: never those that the user chose to validate."""
    by_hash = split.VALIDATION in shared_out.by_hash and bool((shared_out.sets == split.VALIDATION).any())
    return settings.solver == "lbfgs" and not settings.no_refit and by_hash


def _test_images(images: Images, settings: TrainSettings) -> Images:
    """The whole test set, or a random part of it. No image counts twice: this is the number that people quote."""
    if settings.test_batch_size == -1 or settings.test_batch_size >= len(images):
        return images
    generator = np.random.default_rng([settings.seed, 3])
    return replace(images, rows=generator.choice(images.rows, settings.test_batch_size, replace=False))


def _save(settings: TrainSettings, progress: Progress, fitting: Fitting) -> str:
    """Saves what was reached; says where it is and how to go on."""
    # From where the solver goes on, which with lbfgs is where the strength began.
    points = [point.numbers for point in fitting.curve if point.step <= int(progress.state["step"])]
    try:
        path = interrupted.save(settings.output_dir, settings, fitting.data, progress, points)
    except OSError as error:
        return f"interrupted; {settings.output_dir} cannot be written ({error.strerror}): nothing is saved"
    return (
        f"interrupted after step {progress.step:,}; the best head so far is in {path}; the same command with --resume "
        "goes on from there"
    )


def _write(result: Result) -> None:
    """Writes the classifier and what there is to know of it into output_dir and logs_dir, and tells so."""
    from train import export, ship

    folder = result.settings.output_dir
    export.write_saved_model(folder / "saved_model", result.cache, result.head)
    export.write_labels(folder / "labels.txt", result.cache.labels)
    for name in (*ship.FILES, interrupted.FILE):  # of a former run
        (folder / name).unlink(missing_ok=True)
    _write_report(result)
    print(
        f"{result.how_fitted} in {result.seconds:.1f} s; in {folder}: saved_model/, "
        "labels.txt, metrics.json, report.html\n"
        f"TensorBoard: {result.settings.logs_dir}\n"
        f"try: python -m train.predict --model {shlex.quote(str(folder))} photo.jpg"
    )
    if result.settings.tflite or result.settings.frozen_graph:
        _write_report(replace(result, exports=ship.ship(result)))


def _write_report(result: Result) -> None:
    from train import export

    folder = result.settings.output_dir
    for name, text in (("metrics.json", report.metrics(result)), ("report.html", report.html(result))):
        export.write_file(folder / name, text.encode())
