"""Test accuracy of each solver, over data sets and random splits, beside scikit-learn and the tutorial's solver."""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import cache as bottlenecks
from benchmarks.measure import Options, Result
from cache.reader import Cache
from extract import sample
from extract.run import extract
from extract.settings import Settings
from train.settings import TrainSettings

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

SUITE = "accuracy"
SPLITS = 5
STRENGTHS = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 13))  # of L2; scikit-learn's C is 1 / (N L2)
# What is left of a data set: an eighth of the training photos, an eighth of the training and of the validation photos,
# or classes whose sizes fall from all photos of the first one to a tenth of those of the last one.
KINDS = ("all", "an eighth", "an eighth of both", "unequal classes")
LOWEST_RATIO = 0.995  # of our accuracy to scikit-learn's, a target: half a percentage point below it at most
CHOSEN = "scikit-learn, best of 11 strengths on validation"
REFITTED = "the same, refitted on validation, too"
TUTORIAL = "sgd, the tutorial's"


def accuracies(options: Options) -> Iterator[Result]:
    """The mean over SPLITS random splits of each data set: 80% train, 10% validate, 10% test."""
    for name, cache in _caches(options):
        for kind in KINDS:
            percents: defaultdict[str, list[float]] = defaultdict(list)
            for seed in range(options.scaled(SPLITS)):
                training, validation, test = _split(cache, kind, np.random.default_rng(seed))
                for contender, accuracy in _test_accuracies(options, cache, training, validation, test):
                    percents[contender].append(100 * accuracy)
            means = {contender: [float(np.mean(values))] for contender, values in percents.items()}
            for ours, reference, target in (
                ("default", CHOSEN, LOWEST_RATIO),
                ("default", REFITTED, LOWEST_RATIO),
                ("default", TUTORIAL, 1.0),
                ("--no_refit", CHOSEN, None),
                ("sweep", CHOSEN, None),
            ):
                case = f"{name}, {kind}: {ours}"
                yield Result(SUITE, case, "%", means[ours], reference, means[reference], target=target)


CASES = (accuracies,)


def _caches(options: Options) -> Iterator[tuple[str, Cache]]:
    """Caches of the demo's digits and, if it is given, of the folder of --image_dir, by name."""
    folders = {"digits": options.scratch / "digits"}
    sample.write(folders["digits"])
    if options.photos and options.photos != folders["digits"]:
        folders[options.photos.name] = options.photos
    for name, folder in folders.items():
        result = extract(Settings(str(folder), str(options.scratch / f"cache of {name}")))
        yield name, bottlenecks.open(result.directory)


def _split(cache: Cache, kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the index for training, validation and test. Unequal classes are unequal in all three parts."""
    order = generator.permutation(len(cache))
    label_ids = cache.label_ids[order]
    if kind == "unequal classes":
        share = np.linspace(1, 0.1, len(cache.labels))[label_ids]
        order = order[generator.random(len(order)) < share]
    tenth = len(order) // 10
    test, validation, training = order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]
    if kind.startswith("an eighth"):
        training = training[: len(training) // 8]
    if kind == "an eighth of both":
        validation = validation[: len(validation) // 8]
    return training, validation, test


def _test_accuracies(
    options: Options, cache: Cache, training: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> Iterator[tuple[str, float]]:
    """The test accuracy, 0 to 1, of each contender."""
    from train import solvers
    from train.data.batches import Images
    from train.report import evaluate

    training_and_validation = np.concatenate([training, validation])
    for solver, name in (("lbfgs", "default"), ("sgd", TUTORIAL), ("sweep", "sweep")):
        settings = TrainSettings(options.scratch, options.scratch, solver=solver)
        parts = Images(cache, training), Images(cache, validation)
        problem = solvers.Problem(*parts, settings, "/CPU:0", Images(cache, training_and_validation))
        last = deque(solvers.solve(problem), maxlen=1).pop()
        for ours, head in ((name, last.head), ("--no_refit", last.head_before_refit)):
            if head:
                evaluation = evaluate.evaluate(head, Images(cache, test))
                assert evaluation is not None
                yield ours, evaluation.accuracy

    vectors, label_ids = cache.bottlenecks(np.arange(len(cache))).astype(np.float32), cache.label_ids
    fits = [_fit(vectors[training], label_ids[training], 1 / (l2 * len(training))) for l2 in STRENGTHS]
    best = max(fits, key=lambda fit: fit.score(vectors[validation], label_ids[validation]))
    yield CHOSEN, best.score(vectors[test], label_ids[test])
    refitted = _fit(vectors[training_and_validation], label_ids[training_and_validation], best.C)
    yield REFITTED, refitted.score(vectors[test], label_ids[test])


def _fit(vectors: np.ndarray, label_ids: np.ndarray, c: float) -> LogisticRegression:
    """Fits scikit-learn's logistic regression with L2 of strength 1 / (c N)."""
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fits that end at max_iter
        return LogisticRegression(C=c, max_iter=1000).fit(vectors, label_ids)
