"""Training, from a cache to a classifier: open, split, stream, solve, evaluate, export."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import cache as bottlenecks
from cache import command, verify
from cache.errors import CacheError
from cache.reader import Cache
from train import photos, report, split

if TYPE_CHECKING:
    from train.evaluate import Evaluation
    from train.head import Head
    from train.solvers import Progress
    from train.stream import Images


@dataclass(frozen=True)
class TrainSettings:
    """A run's settings; names and defaults are those of the flags of `python -m train`."""

    cache_dir: Path
    output_dir: Path
    module: str | None = None
    how_many_training_steps: int = 4000
    learning_rate: float = 0.01
    train_batch_size: int = 100
    validation_batch_size: int = 100  # -1: the whole validation set
    test_batch_size: int = -1  # -1: the whole test set
    testing_percentage: float = 10.0
    validation_percentage: float = 10.0
    eval_step_interval: int = 10
    seed: int = 0
    print_misclassified_test_images: bool = False
    summaries_dir: Path | None = None  # None: `logs` in output_dir
    tflite: Sequence[str] | None = None  # float16, int8
    frozen_graph: bool = False
    final_tensor_name: str = "final_result"

    @property
    def logs_dir(self) -> Path:
        return self.summaries_dir or self.output_dir / "logs"


@dataclass(frozen=True)
class Point:
    """The learning curves after `step` steps: on the last training batch, and on validation images."""

    step: int
    train_accuracy: float
    train_cross_entropy: float
    validation_accuracy: float | None = None  # None: no image fell into the validation set
    validation_cross_entropy: float | None = None


@dataclass(frozen=True)
class Result:
    """What a run of training found."""

    settings: TrainSettings
    cache: Cache
    head: Head
    counts: tuple[int, int, int]  # images that train, validate and test
    curve: Sequence[Point]
    seconds: float  # that the solver took, validation included
    validation: Evaluation | None = field(repr=False)  # on the whole validation set; None: it is empty
    test: Evaluation | None = field(repr=False)  # None: the test set is empty
    sets: np.ndarray = field(repr=False)  # uint8 [N], what each image is for; see `split`
    exports: Mapping[str, Any] = field(default_factory=dict)  # by file, what was asked for beside the SavedModel


def train(settings: TrainSettings) -> Result:
    """The whole of `python -m train`: fits, and writes the classifier and the report into output_dir."""
    command.check_writable(settings.output_dir, "--output_dir")
    result = fit(settings)
    _write(result)
    print(final_line(result))
    return result


def fit(settings: TrainSettings) -> Result:
    """Trains and evaluates; writes nothing but the summaries in logs_dir.

    Raises UserError for percentages, a cache or a folder that will not do, before TensorFlow is imported, and
    for a learning rate that makes the cross entropy infinite.
    """
    split.check_percentages(settings.testing_percentage, settings.validation_percentage)
    command.check_writable(settings.logs_dir, "--summaries_dir" if settings.summaries_dir else "--output_dir")
    cache = bottlenecks.open(settings.cache_dir, settings.module)
    sets = _split(cache, settings)
    if "int8" in (settings.tflite or ()):
        photos.samples(cache, np.flatnonzero(sets == split.TRAIN), settings.seed)  # raises now, not after the training
    verify.check(cache)  # damage would make a worse classifier, and nobody would know

    # TensorFlow takes seconds to import, and the errors above need none of it.
    command.import_tensorflow()
    from train import evaluate, head, solvers
    from train.progress import Watch
    from train.stream import Images

    training, validation, test = (
        Images(cache, np.flatnonzero(sets == name)) for name in (split.TRAIN, split.VALIDATION, split.TEST)
    )

    start = head.initial(cache.module.dimension, len(cache.labels), np.random.default_rng([settings.seed, 0]))
    solver = solvers.sgd(
        start,
        training,
        np.random.default_rng([settings.seed, 1]),
        steps=settings.how_many_training_steps,
        batch_size=settings.train_batch_size,
        learning_rate=settings.learning_rate,
        interval=settings.eval_step_interval,
    )
    sampler = np.random.default_rng([settings.seed, 2])
    curve: list[Point] = []
    began = time.monotonic()
    with Watch(settings.logs_dir, settings.how_many_training_steps) as watch:
        for progress in solver:
            drawn = _validation_batch(validation, settings.validation_batch_size, sampler)
            curve.append(_point(progress, evaluate.evaluate(progress.head, drawn)))
            watch.show(curve[-1], progress.head, len(drawn))
    result = Result(
        settings,
        cache,
        progress.head,
        (len(training), len(validation), len(test)),
        curve,
        time.monotonic() - began,
        evaluate.evaluate(progress.head, validation),
        evaluate.evaluate(progress.head, _test_images(test, settings)),
        sets,
    )
    if settings.print_misclassified_test_images and result.test:
        _tell_mistakes(cache, result.test)
    return result


def final_line(result: Result) -> str:
    """The tutorial's last line, or why it cannot be told."""
    if result.test is None:
        return (
            "Final test accuracy cannot be told: no image fell into the test set; raise --testing_percentage "
            "or add images"
        )
    return f"Final test accuracy = {result.test.accuracy:.1%} (N={result.test.count})"


def _split(cache: Cache, settings: TrainSettings) -> np.ndarray:
    """uint8 [N]: which images train, validate and test. Raises UserError where there is nothing to learn from."""
    if not (cache.backbone_dir / "saved_model.pb").exists():
        raise CacheError(f"{cache.backbone_dir} holds no SavedModel; copy the whole cache, or run the extraction again")
    sets = split.assign(cache.paths.encoded(), settings.testing_percentage, settings.validation_percentage)
    split.check_classes(cache.labels, cache.label_ids, sets)
    training, validation, test = np.bincount(sets, minlength=3)
    if not validation:
        print("warning: no image fell into the validation set; training goes on without", file=sys.stderr)
    print(
        f"{len(cache.labels)} classes, {len(cache):,} images: {training:,} train, {validation:,} validate, "
        f"{test:,} test"
    )
    return sets


def _validation_batch(images: Images, batch_size: int, generator: np.random.Generator) -> Images:
    """What one evaluation sees: class-balanced draws, or the whole set."""
    from train import stream

    if batch_size == -1 or not len(images):
        return images
    rows, _, _ = images.by_class
    return replace(images, rows=rows[stream.draw(images, generator, batch_size)])


def _test_images(images: Images, settings: TrainSettings) -> Images:
    """The whole test set, or a random part of it. No image counts twice: this is the number that people quote."""
    if settings.test_batch_size == -1 or settings.test_batch_size >= len(images):
        return images
    generator = np.random.default_rng([settings.seed, 3])
    return replace(images, rows=generator.choice(images.rows, settings.test_batch_size, replace=False))


def _point(progress: Progress, validation: Evaluation | None) -> Point:
    train = (progress.step, progress.accuracy, progress.cross_entropy)
    return Point(*train, validation.accuracy, validation.cross_entropy) if validation else Point(*train)


def _write(result: Result) -> None:
    """Writes the classifier and what there is to know of it into output_dir, and tells so."""
    from train import export

    folder = result.settings.output_dir
    export.write_saved_model(folder / "saved_model", result.cache, result.head)
    export.write_labels(folder / "labels.txt", result.cache.labels)
    _write_report(result)
    print(
        f"{result.settings.how_many_training_steps:,} steps in {result.seconds:.1f} s; in {folder}: saved_model/, "
        "labels.txt, metrics.json, report.html\n"
        f"TensorBoard: {result.settings.logs_dir}\n"
        f"try: python -m train.predict --model {shlex.quote(str(folder))} photo.jpg"
    )
    if result.settings.tflite or result.settings.frozen_graph:
        from train import ship

        _write_report(replace(result, exports=ship.ship(result)))


def _write_report(result: Result) -> None:
    from train import export

    folder = result.settings.output_dir
    for name, text in (("metrics.json", report.metrics(result)), ("report.html", report.html(result))):
        with export.writing(folder / name):
            (folder / name).write_text(text, encoding="utf-8")


def _tell_mistakes(cache: Cache, test: Evaluation) -> None:
    print("Misclassified test images:")
    for row, label_id in zip(test.mistakes, test.predicted, strict=True):
        print(f"{report.printable(cache.paths[row])}  {cache.labels[label_id]}")
