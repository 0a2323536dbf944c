"""Training on a cache: solvers beside scikit-learn, the time of the whole command, and what grows with the cache."""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import cache as bottlenecks
from benchmarks import measure, synthetic
from benchmarks.measure import Contender, Options, Result
from cache import layout, process
from cache.reader import Cache
from train import solvers
from train.settings import TrainSettings
from train.solvers.problem import Problem, Progress

SUITE = "train"
VECTORS, HELD_BACK, STEPS = 2400, 240, 4000
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of L2
ROWS = 400_000  # 1 GB at float16

T = TypeVar("T")


def steps(options: Options) -> Iterator[Result]:
    """The tutorial's steps, and the default solver at one strength of L2, beside one fit by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    from train.solvers import sgd

    cache = bottlenecks.open(synthetic.write(options.scratch / "steps", VECTORS + HELD_BACK))
    settings = TrainSettings(options.scratch, options.scratch, solver="sgd")
    settings = replace(settings, how_many_training_steps=options.scaled(STEPS, least=20))
    problem = _problem(cache, settings, HELD_BACK)
    no_curve = _changed(problem, eval_step_interval=settings.how_many_training_steps)
    strength = _best_strength(problem)
    one_strength = _changed(problem, solver="lbfgs", l2=strength, class_weights="none")
    c = 1 / (strength * VECTORS)  # the same strength in scikit-learn's terms
    vectors, label_ids = cache.bottlenecks(problem.training.rows).astype(np.float32), problem.training.label_ids
    figures = measure.turns(
        {
            "command's": measure.seconds(lambda: _solve(problem)),
            "steps alone": measure.seconds(lambda: _solve(no_curve)),
            "not compiled": measure.seconds(lambda: _last(sgd.sgd(no_curve, None, False))),
            "lbfgs": measure.seconds(lambda: _solve(one_strength)),
            "scikit-learn": measure.seconds(lambda: LogisticRegression(C=c, max_iter=10_000).fit(vectors, label_ids)),
        },
        options.repeats,
    )
    reference = f"LogisticRegression(C={c:.2g}).fit", figures["scikit-learn"]
    case = f"{settings.how_many_training_steps:,} steps of {settings.train_batch_size}"
    points = f"a point each {settings.eval_step_interval}"
    yield Result(SUITE, f"{case}, {points}", "s", figures["command's"], *reference, target=1.0)
    yield Result(SUITE, f"{case}, no curve", "s", figures["steps alone"], *reference, target=1.0)
    yield Result(SUITE, f"{case}, XLA", "s", figures["steps alone"], "the same graph without", figures["not compiled"])
    yield Result(SUITE, f"lbfgs, L2 {strength:.2g}", "s", figures["lbfgs"], *reference, target=1.0)


def sweeping(options: Options) -> Iterator[Result]:
    """The 64 heads of a sweep, beside one head alone."""
    from train.solvers import sweep

    cache = bottlenecks.open(synthetic.write(options.scratch / "sweep", VECTORS + HELD_BACK))
    settings = TrainSettings(options.scratch, options.scratch, solver="sweep")
    settings = replace(settings, how_many_training_steps=options.scaled(STEPS, least=20))
    problem = _problem(cache, settings, HELD_BACK)
    trials = sweep.grid()
    figures = measure.turns(
        {
            "all": measure.seconds(lambda: _last(sweep.sweep(problem, None, trials))),
            "one": measure.seconds(lambda: _last(sweep.sweep(problem, None, trials[:1]))),
        },
        options.repeats,
    )
    case = f"{len(trials)} heads at first, {settings.how_many_training_steps:,} steps"
    yield Result(SUITE, case, "s", figures["all"], "one head", figures["one"], target=1 / 3)


def whole_command(options: Options) -> Iterator[Result]:
    """From a cache to an exported classifier with all defaults, in a new process that has imported TensorFlow."""
    folder = options.scratch / "command"
    synthetic.write(folder / "cache", VECTORS)
    _write_backbone(folder / "cache")
    figures = measure.turns(
        {"ours": lambda: _in_new_process(functools.partial(_train, folder, folder / "out"))},
        options.repeats,
        warm_up=False,
    )
    yield Result(SUITE, "from cache to exported classifier", "s", figures["ours"], target=3.0)


def streaming(options: Options) -> Iterator[Result]:
    """All of a large cache through one head, beside reading a mapped array and converting it to float32."""
    from train.data import batches
    from train.report import evaluate
    from train.solvers import head

    folder = options.scratch / "streaming"
    count = options.scaled(ROWS, least=500)
    cache = bottlenecks.open(synthetic.write(folder, count))
    images = batches.Images(cache, np.arange(count))
    array = np.lib.format.open_memmap(folder / "all.npy", "w+", cache.dtype, (count, cache.backbone.dimension))
    step = batches.BLOCK_BYTES // images.row_bytes
    for begin in range(0, count, step):
        array[begin : begin + step] = cache.bottlenecks(images.rows[begin : begin + step])
    start = head.initial(synthetic.DIMENSION, synthetic.CLASSES, np.random.default_rng(0))

    def reference() -> None:
        for begin in range(0, count, step):
            array[begin : begin + step].astype(np.float32)

    gigabytes = array.nbytes / 1e9
    figures = measure.turns(
        {
            "ours": measure.rate(gigabytes, lambda: evaluate.evaluate(start, images)),
            "memmap": measure.rate(gigabytes, reference),
        },
        options.half_repeats,
    )
    case = f"{gigabytes:.2g} GB through one head"
    yield Result(SUITE, case, "GB/s", figures["ours"], "memmap, astype(float32)", figures["memmap"], target=0.6)


def from_disk(options: Options) -> Iterator[Result]:
    """The tutorial's steps when every read comes from the disk, beside the same when it comes from the page cache."""
    count = options.scaled(ROWS, least=500)
    folder = synthetic.write(options.scratch / "disk", count)
    synthetic.write_index(folder, np.sort(np.arange(count, dtype=np.int32) % synthetic.CLASSES))
    step_count = options.scaled(1000, least=20)
    settings = TrainSettings(
        folder, folder, solver="sgd", how_many_training_steps=step_count, eval_step_interval=step_count
    )

    def fit(cold: bool) -> float:
        cache = bottlenecks.open(folder)
        if cold:
            _drop_from_page_cache(cache)
        return measure.seconds(lambda: _solve(_problem(cache, settings, HELD_BACK)))()

    figures = measure.turns({"cold": lambda: fit(True), "warm": lambda: fit(False)}, options.half_repeats)
    gigabytes = count * synthetic.DIMENSION * np.dtype(np.float16).itemsize / 1e9
    case = f"{step_count:,} steps of sgd, {gigabytes:.2g} GB on disk"
    yield Result(SUITE, case, "s", figures["cold"], "in memory", figures["warm"])


def growth(options: Options) -> Iterator[Result]:
    """The same fit on ten times as many images, in new processes: how time and memory grow."""
    small, large = options.scaled(100_000, least=500), options.scaled(1_000_000, least=5000)
    folder = options.scratch / "growth"
    shards = synthetic.write(folder / "shards", small) / layout.SHARDS
    step_count = options.scaled(1000, least=20)
    for count in (small, large):
        cache = folder / str(count) / "cache"
        (cache / layout.SHARDS).mkdir(parents=True)
        for name in layout.shard_names(shards.parent):
            (cache / layout.SHARDS / name).hardlink_to(shards / name)
        synthetic.write_index(cache, np.arange(count, dtype=np.int32) % synthetic.CLASSES)
        _write_backbone(cache)
    for solver, name in (("sgd", f"{step_count:,} steps of sgd"), ("lbfgs", "lbfgs, one strength")):
        megabytes: dict[int, list[float]] = {large: [], small: []}
        contenders: dict[str, Contender] = {
            str(count): functools.partial(
                _fit_in_new_process, folder / str(count), solver, step_count, megabytes=megabytes[count]
            )
            for count in (large, small)
        }
        figures = measure.turns(contenders, options.half_repeats, warm_up=False)
        case, reference = f"{name} on {large:,} images", f"on {small:,}"
        yield Result(SUITE, case, "s", figures[str(large)], reference, figures[str(small)])
        yield Result(SUITE, f"{case}, memory", "MB", megabytes[large], reference, megabytes[small])


# Only Linux drops files from its page cache on request, and reports how much memory no file backs.
LINUX_CASES = (from_disk, growth) if sys.platform == "linux" else ()
CASES = (steps, sweeping, whole_command, streaming, *LINUX_CASES)


def _problem(cache: Cache, settings: TrainSettings, held_back: int) -> Problem:
    """The last `held_back` images validate, and all others train."""
    from train.data.batches import Images

    rows = np.arange(len(cache))
    training, validation = Images(cache, rows[: len(rows) - held_back]), Images(cache, rows[len(rows) - held_back :])
    return Problem(training, validation, settings, "/CPU:0")


def _changed(problem: Problem, **settings: Any) -> Problem:
    """The same problem with other `settings`."""
    return replace(problem, settings=replace(problem.settings, **settings))


def _solve(problem: Problem) -> Progress:
    return _last(solvers.solve(problem))


def _last(progress: Iterator[Progress]) -> Progress:
    """Runs a solver to its end, and returns its last progress."""
    return deque(progress, maxlen=1).pop()


def _best_strength(problem: Problem) -> float:
    """The L2 of the fit with the smallest cross entropy on the validation images."""
    scores = {l2: _solve(_changed(problem, solver="lbfgs", l2=l2, class_weights="none")).validation for l2 in STRENGTHS}
    return min(scores, key=lambda l2: scores[l2].cross_entropy)  # type: ignore[union-attr]


def _drop_from_page_cache(cache: Cache) -> None:
    """Makes the next reads of the shards come from the disk."""
    for shard in cache.shards:
        # The system keeps pages that a process has touched through a map, so the cache must be newly opened.
        with open(shard.path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write_backbone(folder: Path) -> None:
    """Saves the built-in backbone beside the bottlenecks, because the exported classifier contains it."""
    from extract import backbones
    from extract.backbones import serving

    serving.save(backbones.load(backbones.DEFAULT), folder / layout.BACKBONE)


def _in_new_process(work: Callable[[], T]) -> T:
    """Returns what `work` returns in a new process, where nothing that this one has traced or allocated counts."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(work).result()


def _train(cache_dir: Path, output_dir: Path) -> float:
    """Seconds of `python -m train` with all defaults, without the import of TensorFlow."""
    from train import run

    process.import_tensorflow()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return measure.seconds(lambda: run.train(TrainSettings(cache_dir, output_dir)))()


def _fit_in_new_process(folder: Path, solver: str, step_count: int, megabytes: list[float]) -> float:
    """Seconds of a fit of `step_count` steps on the cache in `folder`. Appends the fit's memory to `megabytes`."""
    spent, peak = _in_new_process(
        functools.partial(_fit_and_watch, folder / "cache", folder / "out", solver, step_count)
    )
    megabytes.append(peak)
    return spent


def _fit_and_watch(cache_dir: Path, output_dir: Path, solver: str, step_count: int) -> tuple[float, float]:
    """Seconds of a fit, and by how many MB the memory of this process grew at most.

    Mapped files do not count, because the system can drop them at any time.
    """
    from train import run

    process.import_tensorflow()
    settings = TrainSettings(
        cache_dir, output_dir, solver=solver, how_many_training_steps=step_count, l2=0.01, class_weights="none"
    )
    before, peak, ended = _anonymous_megabytes(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, _anonymous_megabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        spent = measure.seconds(lambda: run.fit(settings))()
    ended.set()
    watcher.join()
    return spent, max(peak, _anonymous_megabytes()) - before


def _anonymous_megabytes() -> float:
    """The memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3
