"""What the default fit is worth: test accuracy over data sets and splits, beside scikit-learn's and the tutorial's."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator

import numpy as np

import cache as bottlenecks
from benchmarks.measure import Options, Result
from cache.reader import Cache
from extract import backbone, sample
from extract.run import extract
from extract.settings import Settings
from train.settings import TrainSettings

SUITE = "accuracy"
SPLITS = 5
STRENGTHS = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 13))  # of L2; for scikit-learn C = 1 / (N L2)
# What is left of each class to train on: all, an eighth, or less and less from class to class.
KINDS = ("all", "an eighth", "unequal classes")
NEVER_BELOW = 0.995  # of scikit-learn's accuracy: half a point


def accuracies(options: Options) -> Iterator[Result]:
    """Each data set, whole, small and unequal, is split at random: 80% train, 10% validate, 10% test."""
    for name, cache in _caches(options):
        for kind in KINDS:
            found: dict[str, list[float]] = {"default": [], "sgd": [], "sweep": [], "scikit-learn": []}
            for seed in range(options.scaled(SPLITS)):
                training, validation, test = _split(cache, kind, np.random.default_rng(seed))
                found["scikit-learn"].append(_scikit_learn(cache, training, validation, test))
                for solver, ours in (("lbfgs", "default"), ("sgd", "sgd"), ("sweep", "sweep")):
                    found[ours].append(_ours(options, cache, solver, training, validation, test))
            means = {contender: [100 * float(np.mean(values))] for contender, values in found.items()}
            case = f"{name}, {kind}"
            best = "scikit-learn, best of 11 strengths on validation"
            yield Result(SUITE, f"{case}: default", "%", means["default"], best, means["scikit-learn"], NEVER_BELOW)
            yield Result(SUITE, f"{case}: default", "%", means["default"], "sgd, the tutorial's", means["sgd"], 1.0)
            yield Result(SUITE, f"{case}: sweep", "%", means["sweep"], best, means["scikit-learn"])


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
    """Rows of the index that train, validate and test. Unequal classes are so in all three; an eighth is of the
    training images alone."""
    order = generator.permutation(len(cache))
    label_ids = cache.label_ids[order]
    if kind == "unequal classes":
        share = np.linspace(1, 0.1, len(cache.labels))[label_ids]
        order = order[generator.random(len(order)) < share]
    tenth = len(order) // 10
    test, validation, training = order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]
    return (training[: len(training) // 8] if kind == "an eighth" else training), validation, test


def _ours(
    options: Options, cache: Cache, solver: str, training: np.ndarray, validation: np.ndarray, test: np.ndarray
) -> float:
    from train import evaluate, solvers
    from train.stream import Images

    settings = TrainSettings(options.scratch, options.scratch, solver=solver)
    together = Images(cache, np.concatenate([training, validation]))
    problem = solvers.Problem(Images(cache, training), Images(cache, validation), settings, "/CPU:0", together)
    last = deque(solvers.solve(problem), 1).pop()
    evaluation = evaluate.evaluate(last.head, Images(cache, test))
    assert evaluation is not None
    return evaluation.accuracy


def _scikit_learn(cache: Cache, training: np.ndarray, validation: np.ndarray, test: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression

    x, y, vectors = cache.bottlenecks(training).astype(np.float32), cache.label_ids, cache.bottlenecks
    best = (-1.0, 0.0)
    for l2 in STRENGTHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits that end at max_iter
            fitted = LogisticRegression(C=1 / (l2 * len(x)), max_iter=1000).fit(x, y[training])
        validated = fitted.score(vectors(validation).astype(np.float32), y[validation])
        if validated > best[0]:
            best = validated, fitted.score(vectors(test).astype(np.float32), y[test])
    return best[1]
