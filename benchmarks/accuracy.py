"""What the default fit is worth: test accuracy over data sets and splits, beside scikit-learn's and the tutorial's."""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

import cache as bottlenecks
from benchmarks.measure import Options, Result
from cache.reader import Cache
from extract import backbone, sample
from extract.run import extract
from extract.settings import Settings
from train.settings import TrainSettings

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

SUITE = "accuracy"
SPLITS = 5
STRENGTHS = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 13))  # of L2; for scikit-learn C = 1 / (N L2)
# What is left: everything; an eighth of the training images; an eighth of these and of the validation images; of each
# class less than of the one before.
KINDS = ("all", "an eighth", "an eighth of both", "unequal classes")
NEVER_BELOW = 0.995  # of scikit-learn's accuracy: half a point
CHOSEN = "scikit-learn, best of 11 strengths on validation"
REFITTED = "the same, refitted on validation, too"


def accuracies(options: Options) -> Iterator[Result]:
    """Each data set, whole, small and unequal, is split at random: 80% train, 10% validate, 10% test."""
    for name, cache in _caches(options):
        for kind in KINDS:
            found: defaultdict[str, list[float]] = defaultdict(list)
            for seed in range(options.scaled(SPLITS)):
                training, validation, test = _split(cache, kind, np.random.default_rng(seed))
                for contender, accuracy in _of_split(options, cache, training, validation, test):
                    found[contender].append(100 * accuracy)
            means = {contender: [float(np.mean(values))] for contender, values in found.items()}
            case = f"{name}, {kind}"
            for ours, reference, target in (
                ("default", CHOSEN, NEVER_BELOW),
                ("default", REFITTED, NEVER_BELOW),
                ("default", "sgd, the tutorial's", 1.0),
                ("--no_refit", CHOSEN, None),
                ("sweep", CHOSEN, None),
            ):
                yield Result(SUITE, f"{case}: {ours}", "%", means[ours], reference, means[reference], target)


CASES = (accuracies,)


def _caches(options: Options) -> Iterator[tuple[str, Cache]]:
    """The digits that a package carries, and the folder of --image_dir."""
    folders = {"digits": options.scratch / "digits"}
    sample.write(folders["digits"])
    if options.photos and options.photos != folders["digits"]:
        folders[options.photos.name] = options.photos
    for name, folder in folders.items():
        done = extract(Settings(str(folder), str(options.scratch / f"cache of {name}"), backbone.DEFAULT))
        yield name, bottlenecks.open(done.directory)


def _split(cache: Cache, kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the index that train, validate and test. Unequal classes are so in all three."""
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


def _of_split(
    options: Options, cache: Cache, training: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Each contender's test accuracy."""
    from train import evaluate, solvers
    from train.stream import Images

    together = np.concatenate([training, validation])
    for solver, name in (("lbfgs", "default"), ("sgd", "sgd, the tutorial's"), ("sweep", "sweep")):
        settings = TrainSettings(options.scratch, options.scratch, solver=solver)
        parts = Images(cache, training), Images(cache, validation)
        problem = solvers.Problem(*parts, settings, "/CPU:0", Images(cache, together))
        last = deque(solvers.solve(problem), 1).pop()
        for ours, head in ((name, last.head), ("--no_refit", last.head_before_refit)):
            if head:
                evaluation = evaluate.evaluate(head, Images(cache, test))
                assert evaluation is not None
                yield ours, evaluation.accuracy

    vectors, labels = cache.bottlenecks(np.arange(len(cache))).astype(np.float32), cache.label_ids
    fits = [_fit(vectors[training], labels[training], 1 / (l2 * len(training))) for l2 in STRENGTHS]
    best = max(fits, key=lambda fit: fit.score(vectors[validation], labels[validation]))
    yield CHOSEN, best.score(vectors[test], labels[test])
    yield REFITTED, _fit(vectors[together], labels[together], best.C).score(vectors[test], labels[test])


def _fit(vectors: np.ndarray, label_ids: np.ndarray, c: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that end at max_iter
        return LogisticRegression(C=c, max_iter=1000).fit(vectors, label_ids)
