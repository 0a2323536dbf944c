"""Training on a cache: the steps beside scikit-learn, the whole command's time, and what grows with the cache."""

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
from typing import Any

import numpy as np

import cache as bottlenecks
from benchmarks import measure, synthetic
from benchmarks.measure import Options, Result
from cache import command, store
from cache.reader import Cache
from train import solvers
from train.settings import TrainSettings
from train.solvers import Problem, Progress

VECTORS, HELD_BACK, STEPS = 2400, 240, 4000
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
ROWS = 400_000  # 1 GB at float16
SUITE = "train"


def steps(options: Options) -> Iterator[Result]:
    """The tutorial's steps, and one strength of the default fit, graphs traced, beside one fit of scikit-learn's."""
    from sklearn.linear_model import LogisticRegression

    from train import sgd

    cache = bottlenecks.open(synthetic.write(options.scratch / "steps", VECTORS + HELD_BACK))
    settings = TrainSettings(options.scratch, options.scratch, solver="sgd")
    settings = replace(settings, how_many_training_steps=options.scaled(STEPS, least=20))
    problem = _problem(cache, settings, HELD_BACK)
    vectors = cache.bottlenecks(problem.training.rows).astype(np.float32)
    strength = _best_strength(problem)
    no_curve = replace(settings, eval_step_interval=settings.how_many_training_steps)
    figures = measure.turns(
        {
            "command's": measure.seconds(lambda: _solve(problem)),
            "steps alone": measure.seconds(lambda: _solve(replace(problem, settings=no_curve))),
            "not compiled": measure.seconds(
                lambda: _exhaust(sgd.sgd(replace(problem, settings=no_curve), None, False))
            ),
            "lbfgs": measure.seconds(lambda: _solve(_of(problem, solver="lbfgs", l2=strength, class_weights="none"))),
            "scikit-learn": measure.seconds(
                lambda: LogisticRegression(C=1 / (strength * VECTORS), max_iter=10_000).fit(
                    vectors, problem.training.label_ids
                )
            ),
        },
        options.repeats,
    )
    reference = f"LogisticRegression(C={1 / (strength * VECTORS):.2g}).fit", figures["scikit-learn"], 1.0
    case = f"{settings.how_many_training_steps:,} steps of {settings.train_batch_size}"
    points = f"a point each {settings.eval_step_interval}"
    yield Result(SUITE, f"{case}, {points}", "s", figures["command's"], *reference)
    yield Result(SUITE, f"{case}, no curve", "s", figures["steps alone"], *reference)
    yield Result(SUITE, f"{case}, XLA", "s", figures["steps alone"], "the same graph without", figures["not compiled"])
    yield Result(SUITE, f"lbfgs, L2 {strength:.2g}", "s", figures["lbfgs"], *reference)


def sweeping(options: Options) -> Iterator[Result]:
    """All heads of a sweep, beside one head alone."""
    from train import sweep

    cache = bottlenecks.open(synthetic.write(options.scratch / "sweep", VECTORS + HELD_BACK))
    settings = TrainSettings(options.scratch, options.scratch, solver="sweep")
    settings = replace(settings, how_many_training_steps=options.scaled(STEPS, least=20))
    problem = _problem(cache, settings, HELD_BACK)
    trials = sweep.grid()
    figures = measure.turns(
        {
            "all": measure.seconds(lambda: _exhaust(sweep.sweep(problem, None, trials))),
            "one": measure.seconds(lambda: _exhaust(sweep.sweep(problem, None, trials[:1]))),
        },
        options.repeats,
    )
    case = f"{len(trials)} heads at first, {settings.how_many_training_steps:,} steps"
    yield Result(SUITE, case, "s", figures["all"], "one head", figures["one"], 1 / 3)


def command_(options: Options) -> Iterator[Result]:
    """From a cache to an exported classifier with all defaults, in a new process, after TensorFlow's import."""
    folder = options.scratch / "command"
    synthetic.write(folder / "cache", VECTORS)
    _write_backbone(folder / "cache")
    figures = measure.turns(
        {"ours": lambda: _in_new_process(_fit, folder, folder / "out")}, options.repeats, warm=False
    )
    yield Result(SUITE, "from cache to exported classifier", "s", figures["ours"], target=3.0)


def streaming(options: Options) -> Iterator[Result]:
    """All of a big cache through one head, beside reading one mapped array and making it float32."""
    from train import evaluate, head, stream

    folder = options.scratch / "streaming"
    count = options.scaled(ROWS, least=500)
    cache = bottlenecks.open(synthetic.write(folder, count))
    images = stream.Images(cache, np.arange(count))
    array = np.lib.format.open_memmap(folder / "all.npy", "w+", cache.dtype, (count, cache.module.dimension))
    step = stream.BLOCK_BYTES // images.row_bytes
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
        _few(options),
    )
    case = f"{gigabytes:.2g} GB through one head"
    yield Result(SUITE, case, "GB/s", figures["ours"], "memmap, astype(float32)", figures["memmap"], 0.6)


def from_disk(options: Options) -> Iterator[Result]:
    """The tutorial's steps on a cache that the system has forgotten, beside one that it holds in memory."""
    count = options.scaled(ROWS, least=500)
    folder = synthetic.write(options.scratch / "disk", count)
    synthetic.write_index(folder, np.sort(np.arange(count, dtype=np.int32) % synthetic.CLASSES))
    how_many = options.scaled(1000, least=20)
    settings = TrainSettings(
        folder, folder, solver="sgd", how_many_training_steps=how_many, eval_step_interval=how_many
    )

    def fit(cold: bool) -> float:
        cache = bottlenecks.open(folder)
        for shard in cache.shards if cold else ():
            with open(shard.path, "rb") as file:  # what no process has touched in its maps can be forgotten
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return measure.seconds(lambda: _solve(_problem(cache, settings, HELD_BACK)))()

    figures = measure.turns({"cold": lambda: fit(True), "warm": lambda: fit(False)}, _few(options))
    gigabytes = count * synthetic.DIMENSION * np.dtype(np.float16).itemsize / 1e9
    case = f"{how_many:,} steps of sgd, {gigabytes:.2g} GB on disk"
    yield Result(SUITE, case, "s", figures["cold"], "in memory", figures["warm"])


def growth(options: Options) -> Iterator[Result]:
    """The same fit on ten times the images, each in a new process: what it costs in time and memory."""
    small, large = options.scaled(100_000, least=500), options.scaled(1_000_000, least=5000)
    folder = options.scratch / "growth"
    shards = synthetic.write(folder / "shards", small) / store.SHARDS
    how_many = options.scaled(1000, least=20)
    for count in (small, large):
        cache = folder / f"{count}" / "cache"
        cache.mkdir(parents=True)
        (cache / store.SHARDS).mkdir()
        for name in store.shard_names(shards.parent):
            (cache / store.SHARDS / name).hardlink_to(shards / name)
        synthetic.write_index(cache, np.arange(count, dtype=np.int32) % synthetic.CLASSES)
        _write_backbone(cache)
    for solver, what in (("sgd", f"{how_many:,} steps of sgd"), ("lbfgs", "lbfgs, one strength")):
        megabytes: dict[int, list[float]] = {small: [], large: []}

        def fit(count: int, solver: str = solver, megabytes: dict[int, list[float]] = megabytes) -> float:
            place = folder / f"{count}"
            spent, peak = _in_new_process(_fit_and_watch, place / "cache", place / "out", solver, how_many)
            megabytes[count].append(peak)
            return spent

        contenders = {"large": functools.partial(fit, large), "small": functools.partial(fit, small)}
        figures = measure.turns(contenders, _few(options), warm=False)
        case, reference = f"{what} on {large:,} images", f"on {small:,}"
        yield Result(SUITE, case, "s", figures["large"], reference, figures["small"])
        yield Result(SUITE, f"{case}, memory", "MB", megabytes[large], reference, megabytes[small])


# To forget a file that was read, and to tell which memory no file backs, only Linux can be asked.
CASES = (steps, sweeping, command_, streaming, *((from_disk, growth) if sys.platform == "linux" else ()))


def _problem(cache: Cache, settings: TrainSettings, held_back: int) -> Problem:
    """All images train but the last `held_back`, which validate."""
    from train.stream import Images

    rows = np.arange(len(cache))
    training, validation = Images(cache, rows[: len(rows) - held_back]), Images(cache, rows[len(rows) - held_back :])
    return Problem(training, validation, settings, "/CPU:0")


def _of(problem: Problem, **settings: Any) -> Problem:
    return replace(problem, settings=replace(problem.settings, **settings))


def _solve(problem: Problem) -> Progress:
    return _exhaust(solvers.solve(problem))


def _exhaust(progress: Iterator[Progress]) -> Progress:
    """The last one."""
    return deque(progress, 1).pop()


def _best_strength(problem: Problem) -> float:
    """The L2 with which the validation images get the least cross entropy."""
    found = {l2: _solve(_of(problem, solver="lbfgs", l2=l2, class_weights="none")).validation for l2 in STRENGTHS}
    return min(found, key=lambda l2: found[l2].cross_entropy)  # type: ignore[union-attr]


def _few(options: Options) -> int:
    """Turns of what takes many seconds each: a gigabyte, or a new process, which has to import TensorFlow."""
    return -(-options.repeats // 2)


def _write_backbone(folder: Path) -> None:
    """The built-in network beside the bottlenecks, for the classifier that is exported."""
    from extract import backbone, serving

    serving.save(backbone.load(backbone.DEFAULT, None), folder / store.BACKBONE)


def _in_new_process(work: Callable[..., Any], *arguments: object) -> Any:
    """What `work` returns there. Nothing that this process has traced or allocated helps or counts."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def _fit(cache_dir: Path, output_dir: Path) -> float:
    """Seconds of `python -m train` with all defaults, TensorFlow's import left out."""
    from train import run

    command.import_tensorflow()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return measure.seconds(lambda: run.train(TrainSettings(cache_dir, output_dir)))()


def _fit_and_watch(cache_dir: Path, output_dir: Path, solver: str, how_many: int) -> tuple[float, float]:
    """Seconds of a fit, and the most memory that it took, MB, mapped files left out: those the system can drop."""
    from train import run

    command.import_tensorflow()
    settings = TrainSettings(
        cache_dir, output_dir, solver=solver, how_many_training_steps=how_many, l2=0.01, class_weights="none"
    )
    before, peak, ended = _anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.005):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        spent = measure.seconds(lambda: run.fit(settings))()
    ended.set()
    watcher.join()
    return spent, max(peak, _anonymous()) - before


def _anonymous() -> float:
    """Memory of this process that no file backs, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1e3
