"""Multinomial logistic regression with L2, along a path of strengths, of which the validation images choose one."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from scipy.optimize import OptimizeResult, minimize
from threadpoolctl import threadpool_limits

from train import head, stream
from train.head import Head
from train.score import score
from train.solvers import Problem, Progress, State
from train.stream import Images, Passes
from train.trial import Trial

# From so strong that a head tells classes apart and little more, to next to nothing. Each fit starts where the last
# one ended.
PATH = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 13))
UNCHOSEN = 1e-3  # the strength where no validation image can choose one
PATIENCE = 2  # strengths in a row that are no better, after which weaker ones are not tried
_GRADIENT = 1e-5  # where no part of the gradient is larger, a fit has converged,
_DECREASE = 1e-9  # or where an iteration gains less, relatively: what is left is the rounding of float32
_ITERATIONS = 300  # of one strength, at most
_EVALUATIONS = 2 * _ITERATIONS  # of the objective, at most: most iterations need one, a line search may take several
_LIMIT = 1  # the status with which SciPy says that one of the two was reached


def lbfgs(problem: Problem, state: State | None) -> Iterator[Progress]:
    """Minimises mean cross entropy + l2 / 2 |weights|^2 for each strength l2, with exact gradients over all images.

    That is scikit-learn's LogisticRegression(C=1 / (N l2)). Yields at each iteration of L-BFGS (Liu & Nocedal, 1989),
    which is SciPy's. Chosen is the fit with the least cross entropy on the validation images, which on few of them is
    less noisy than the accuracy; classes count alike in it where that was asked for. Then the validation images have
    done their work, and where they may, train with the others in a last fit.
    """
    chosen, state = yield from _choose(problem, state)
    if problem.together is not None:
        yield from _refit(problem, problem.together, chosen, state)


def _choose(problem: Problem, state: State | None) -> Generator[Progress, None, tuple[Head, State]]:
    """All fits to the training images; returns the best one's head, and the state that they end with."""
    objective = _Objective(problem, problem.training)
    validation = stream.passes(problem.validation, problem.device)
    if state is None:
        zero = objective.start
        state = {"step": np.array(0), "trials": np.zeros((0, 4)), "last": zero, "best": zero}
    while following := _next(problem, objective, state["trials"]):
        for progress in _fit(problem, objective, validation, *following, state):
            yield progress
        state = progress.state
    return objective.head(state["best"]), state


def _refit(problem: Problem, together: Images, chosen: Head, state: State) -> Iterator[Progress]:
    """The iterations of the chosen fit on all images `together`; stopped meanwhile, it begins anew.

    As in scikit-learn's LogisticRegressionCV it is C that stays: an image weighs as much beside the penalty as before.
    """
    objective, trials = _Objective(problem, together), state["trials"]
    before = step = int(state["step"])
    l2, balanced = float(trials[_chosen(trials), 0]), bool(trials[_chosen(trials), 1])
    l2 *= len(problem.training) / len(together)
    for iterate in objective.minimise(objective.flat(chosen), l2, balanced):
        # At a minimum there may be no iteration, and yet nothing that validation images judged.
        step = max(step + (not iterate.is_last), before + 1)
        best, steps = (objective.head(iterate.flat), step) if iterate.is_last else (chosen, None)
        told = iterate.accuracy, iterate.cross_entropy
        yield Progress(step, steps, *told, None, best, _grid(trials), state, chosen)


def _next(problem: Problem, objective: _Objective, trials: np.ndarray) -> tuple[float, bool] | None:
    """The strength of the next fit, and whether all classes count alike in it, after `trials` [T, 4].

    First comes the path, until PATIENCE; then, where neither weighting was asked for and they differ, the other one at
    the best strength.
    """
    settings = problem.settings
    path = (settings.l2,) if settings.l2 is not None else PATH if len(problem.validation) else (UNCHOSEN,)
    done, best = int(np.count_nonzero(trials[:, 1] == settings.balanced)), _chosen(trials)
    if done < len(trials):
        return None
    if done < len(path) and done - 1 - best < PATIENCE:
        return path[done], settings.balanced
    if settings.class_weights is None and len(problem.validation) and objective.weightings_differ:
        return float(trials[best, 0]), not settings.balanced
    return None


def _fit(
    problem: Problem, objective: _Objective, validation: Passes, l2: float, balanced: bool, state: State
) -> Iterator[Progress]:
    """The iterations of one fit; only the last one's state and grid have it in them."""
    importance = _importance(problem, problem.validation)
    step, is_along = int(state["step"]), balanced == problem.settings.balanced
    for iterate in objective.minimise(state["last" if is_along else "best"], l2, balanced):
        reached = objective.head(iterate.flat)
        scored = score(reached, next(validation), problem.device, importance)
        step += not iterate.is_last  # the last one is the one before it once more
        now = dict(state)
        if iterate.is_last:
            found = [scored.accuracy, scored.cross_entropy] if scored else [np.nan, np.nan]
            trials = np.vstack([state["trials"], [l2, balanced, *found]])
            now = {"step": np.array(step), "trials": trials, "last": iterate.flat, "best": state["best"]}
            if _chosen(trials) == len(trials) - 1:
                now["best"] = iterate.flat
        best = reached if not len(now["trials"]) else objective.head(now["best"])
        goes_on = problem.together is not None or _next(problem, objective, now["trials"])
        told = iterate.accuracy, iterate.cross_entropy
        yield Progress(step, None if goes_on else step, *told, scored, best, _grid(now["trials"]), now)


def _balance(images: Images) -> np.ndarray:
    """The importance of an image of each class with which all classes count alike, 1 on average, float64 [C]."""
    counts = np.bincount(images.label_ids, minlength=len(images.cache.labels))
    return len(images) / max(1, int(np.count_nonzero(counts))) / np.maximum(counts, 1)


def _importance(problem: Problem, images: Images) -> np.ndarray:
    """That of an image of each class in the cross entropies that are told and compared, float64 [C]: the same for all
    fits, however these weight the classes."""
    balance = _balance(images)
    return balance if problem.settings.class_weights == "balanced" else np.ones(len(balance))


def _chosen(trials: np.ndarray) -> int:
    """Of trials [T, 4] (l2, balanced, validation accuracy, validation cross entropy), the place of the best."""
    return 0 if np.isnan(trials[:, 3]).all() else int(np.nanargmin(trials[:, 3]))


def _grid(trials: np.ndarray) -> list[Trial]:
    grid, best = [], _chosen(trials)
    for number, (l2, balanced, accuracy, cross_entropy) in enumerate(trials.tolist()):
        scored = (None, None) if np.isnan(cross_entropy) else (accuracy, cross_entropy)
        weighting = "balanced" if balanced else "none"
        grid.append(Trial(l2, None, weighting, scored[0], scored[1], number == best))
    return grid


@dataclass(frozen=True)
class _Iterate:
    flat: np.ndarray  # float64 [D C + C], as the objective takes it
    accuracy: float  # on the training images
    cross_entropy: float  # weighted as `_importance` says
    is_last: bool = False  # then it is the one before it once more


class _Objective:
    """Mean cross entropy + l2 / 2 |weights|^2 and its gradient, as a function of one flat array, as SciPy wants it.

    The biases in the array are those for bottlenecks less their mean. No strength of L2 acts on biases, so the minimum
    is the same; but a mean far from zero, as that of features after a ReLU is, takes L-BFGS many iterations more.
    """

    def __init__(self, problem: Problem, images: Images):
        self._device, self._passes = problem.device, stream.passes(images, problem.device)
        self._shape = images.cache.module.dimension, len(images.cache.labels)
        self._count = len(images)
        self._balance, self._importance = _balance(images), _importance(problem, images)
        counts = np.bincount(images.label_ids)
        self.weightings_differ = len(np.unique(counts[counts > 0])) > 1
        with tf.device(self._device):
            sums = [tf.reduce_sum(tf.cast(block, tf.float32), axis=0).numpy() for block, _ in next(self._passes)]
        self._mean = np.sum(sums, axis=0, dtype=np.float64) / self._count
        self._stopped = threading.Event()
        self._accuracy = self._cross_entropy = np.nan  # at the last evaluation

    @property
    def start(self) -> np.ndarray:
        return np.zeros(self._shape[0] * self._shape[1] + self._shape[1])

    def head(self, flat: np.ndarray) -> Head:
        weights, biases = self._split(flat)
        return Head(weights.astype(np.float32), (biases - self._mean @ weights).astype(np.float32))

    def flat(self, head: Head) -> np.ndarray:
        weights = head.weights.astype(np.float64)
        return np.concatenate([weights.reshape(-1), head.biases + self._mean @ weights])

    def minimise(self, start: np.ndarray, l2: float, balanced: bool) -> Iterator[_Iterate]:
        """The iterates as they come, while the next is computed, and the last one once more."""
        class_weights = self._balance if balanced else np.ones(len(self._balance))
        found: queue.SimpleQueue[_Iterate | None] = queue.SimpleQueue()
        self._stopped.clear()

        slots = threading.Semaphore(2)  # iterates that wait to be looked at, which are large where classes are many

        def report(intermediate_result: OptimizeResult) -> None:
            slots.acquire()
            found.put(_Iterate(intermediate_result.x.copy(), self._accuracy, self._cross_entropy))

        options = {"gtol": _GRADIENT, "ftol": _DECREASE, "maxiter": _ITERATIONS, "maxfun": _EVALUATIONS}
        # SciPy's own arithmetic is on vectors, over which several threads only wait for each other.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(1, "lbfgs") as worker:
            fitting = worker.submit(
                minimize,
                self._value,
                start,
                (l2, class_weights),
                "L-BFGS-B",
                jac=True,
                callback=report,
                options=options,
            )
            fitting.add_done_callback(lambda _: found.put(None))
            try:
                last = None
                while (iterate := found.get()) is not None:
                    yield iterate
                    slots.release()
                    last = iterate
                result = fitting.result()
                if not result.success:
                    stuck = "" if result.status == _LIMIT else ", and no further step makes it better"
                    print(
                        f"warning: L2 {l2:.2g} has not converged in {result.nit} iterations{stuck}; a stronger --l2 "
                        "converges sooner",
                        file=sys.stderr,
                    )
                yield replace(last or _Iterate(result.x, self._accuracy, self._cross_entropy), is_last=True)
            finally:  # a caller that wants no more need not wait for the minimum
                self._stopped.set()
                slots.release()

    def _value(self, flat: np.ndarray, l2: float, class_weights: np.ndarray) -> tuple[float, np.ndarray]:
        weights, _ = self._split(flat)
        sums, for_weights, for_biases = np.zeros(3), np.zeros(self._shape), np.zeros(self._shape[1])
        now = self.head(flat)
        with tf.device(self._device):
            for bottlenecks, label_ids in next(self._passes):
                if self._stopped.is_set():
                    raise InterruptedError
                part = _add_up(now.weights, now.biases, class_weights, self._importance, bottlenecks, label_ids)
                sums += part[0].numpy()
                for_weights += part[1].numpy()
                for_biases += part[2].numpy()
        minimised, self._cross_entropy, self._accuracy = (sums / self._count).tolist()
        for_biases /= self._count
        for_weights = for_weights / self._count - np.outer(self._mean, for_biases) + l2 * weights
        value = minimised + l2 / 2 * np.sum(weights**2)
        return value, np.concatenate([for_weights.reshape(-1), for_biases])

    def _split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: -self._shape[1]].reshape(self._shape), flat[-self._shape[1] :]


@tf.function(autograph=False, reduce_retracing=True)
def _add_up(
    weights: tf.Tensor,
    biases: tf.Tensor,
    class_weights: tf.Tensor,
    importance: tf.Tensor,
    bottlenecks: tf.Tensor,
    label_ids: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """Over a block, summed up: the cross entropy weighted by `class_weights` [C] and by `importance` [C] and the images
    whose top-1 class is theirs, float64 [3], and the gradient of the first.

    What float32 would round in the sums, line searches would take for slopes: all but the products is in float64.
    """
    bottlenecks = tf.cast(bottlenecks, tf.float32)
    scores = tf.cast(head.logits(weights, biases, bottlenecks), tf.float64)
    losses, error = head.loss(scores, label_ids)
    weights_of_images = tf.gather(class_weights, label_ids)
    error *= weights_of_images[:, tf.newaxis]
    for_weights = tf.matmul(bottlenecks, tf.cast(error, tf.float32), transpose_a=True)
    hits = tf.cast(head.hits(scores, label_ids), tf.float64)
    minimised = tf.tensordot(weights_of_images, losses, 1)
    told = tf.tensordot(tf.gather(importance, label_ids), losses, 1)
    return tf.stack([minimised, told, hits]), for_weights, tf.reduce_sum(error, axis=0)
