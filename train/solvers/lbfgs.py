"""Multinomial logistic regression with L2, along a path of strengths, of which the validation photos choose one."""

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

from cache.console import print
from train.data import batches
from train.data.batches import Images, Passes
from train.solvers import head
from train.solvers.head import Head
from train.solvers.problem import Problem, Progress, State, Trial
from train.solvers.score import score

# From so strong that a head hardly does more than tell the classes apart, to next to nothing. Each fit starts where the
# last one ended.
PATH = tuple(10.0 ** (-exponent / 2) for exponent in range(2, 13))
UNCHOSEN = 1e-3  # the strength if there are no validation photos to choose one
PATIENCE = 2  # strengths in a row that are no better, after which weaker ones are not tried
_GRADIENT = 1e-5  # A fit has converged when no part of the gradient is larger,
_DECREASE = 1e-9  # or when an iteration gains less, relatively: what is left is the rounding of float32.
_ITERATIONS = 300  # of one strength, at most
_EVALUATIONS = 2 * _ITERATIONS  # of the objective, at most: most iterations need one, a line search may take several
_LIMIT = 1  # SciPy's status for a fit that reached one of these two limits


def lbfgs(problem: Problem, state: State | None) -> Iterator[Progress]:
    """For each strength l2, minimises over the weights W [D, C] and the biases b [C]

        sum_i(s[y_i] * loss(x_i, y_i)) / N + l2 / 2 * sum(W**2)    loss(x, y) = -log softmax(x @ W + b)[y]

    over all N bottlenecks x_i [D] of the training images, with label ids y_i. The class weights s [C] are 1, or
    balanced: s[c] = N / (G * N_c), where N_c images are of class c, and G classes have any. With X [N, D], one-hot
    labels Y [N, C], P = softmax(X @ W + b) [N, C] and E = s[y] * (P - Y) / N [N, C], the gradient is

        X.T @ E + l2 * W    [D, C], for W
        E.sum(axis=0)       [C], for b

    That is scikit-learn's LogisticRegression(C=1 / (N * l2)). Yields at each iteration of L-BFGS (Liu & Nocedal, 1989),
    which is SciPy's. Chosen is the fit with the least cross entropy on the validation photos, which on few of them is
    less noisy than the accuracy; with --class_weights balanced, classes count alike in it. Finally, with
    `problem.training_and_validation`, the chosen fit is repeated on these images.
    """
    chosen, state = yield from _choose(problem, state)
    if problem.training_and_validation is not None:
        yield from _refit(problem, problem.training_and_validation, chosen, state)


def _choose(problem: Problem, state: State | None) -> Generator[Progress, None, tuple[Head, State]]:
    """All fits to the training images. Returns the best head and the state that the fits end with."""
    objective = _Objective(problem, problem.training)
    validation = batches.passes(problem.validation, problem.device)
    if state is None:
        zero = objective.start
        state = {"step": np.array(0), "trials": np.zeros((0, 4)), "last": zero, "best": zero}
    while (settings := _next(problem, objective, state["trials"])) is not None:
        for progress in _fit(problem, objective, validation, state, *settings):
            yield progress
        state = progress.state
    return objective.head(state["best"]), state


def _refit(problem: Problem, images: Images, chosen: Head, state: State) -> Iterator[Progress]:
    """The iterations of the chosen fit on training and validation images. Interrupted here, a run repeats this fit.

    As in scikit-learn's LogisticRegressionCV, C stays the same: an image weighs as much against the penalty as before.
    """
    objective, trials = _Objective(problem, images), state["trials"]
    before = step = int(state["step"])
    l2, balanced = float(trials[_best(trials), 0]), bool(trials[_best(trials), 1])
    l2 *= len(problem.training) / len(images)
    for iterate in objective.minimise(objective.flat(chosen), l2, balanced):
        # At a minimum there may be no iteration, and yet this is a step: its head was not validated.
        step = max(step + (not iterate.is_last), before + 1)
        head_so_far, steps = (objective.head(iterate.flat), step) if iterate.is_last else (chosen, None)
        curve = iterate.accuracy, iterate.cross_entropy
        yield Progress(step, steps, *curve, None, head_so_far, _grid(trials), state, head_before_refit=chosen)


def _next(problem: Problem, objective: _Objective, trials: np.ndarray) -> tuple[float, bool] | None:
    """The next fit's strength, and whether its classes are balanced, after `trials` [T, 4]; None after the last fit.

    First comes the path, until PATIENCE. Then, if --class_weights is left out and would make a difference, the other
    weighting at the best strength.
    """
    settings = problem.settings
    path = (settings.l2,) if settings.l2 is not None else PATH if len(problem.validation) else (UNCHOSEN,)
    done, best = int(np.count_nonzero(trials[:, 1] == settings.balanced)), _best(trials)
    if done < len(trials):
        return None
    if done < len(path) and done - 1 - best < PATIENCE:
        return path[done], settings.balanced
    if settings.class_weights is None and len(problem.validation) and objective.weightings_differ:
        return float(trials[best, 0]), not settings.balanced
    return None


def _fit(
    problem: Problem, objective: _Objective, validation: Passes, state: State, l2: float, balanced: bool
) -> Iterator[Progress]:
    """The iterations of one fit. Its trial is in the state and the grid of the last one only."""
    class_weights = _comparison_weights(problem, problem.validation)
    step, is_on_path = int(state["step"]), balanced == problem.settings.balanced
    for iterate in objective.minimise(state["last" if is_on_path else "best"], l2, balanced):
        reached = objective.head(iterate.flat)
        validated = score(reached, next(validation), problem.device, class_weights)
        step += not iterate.is_last  # the last one repeats the one before it
        now = dict(state)
        if iterate.is_last:
            figures = [validated.accuracy, validated.cross_entropy] if validated else [np.nan, np.nan]
            trials = np.vstack([state["trials"], [l2, balanced, *figures]])
            now = {"step": np.array(step), "trials": trials, "last": iterate.flat, "best": state["best"]}
            if _best(trials) == len(trials) - 1:
                now["best"] = iterate.flat
        best = reached if not len(now["trials"]) else objective.head(now["best"])
        goes_on = problem.training_and_validation is not None or _next(problem, objective, now["trials"]) is not None
        curve = iterate.accuracy, iterate.cross_entropy
        yield Progress(step, None if goes_on else step, *curve, validated, best, _grid(now["trials"]), now)


def _balanced_weights(images: Images) -> np.ndarray:
    """The class weights with which all classes count alike, 1 on average over the images, float64 [C]."""
    counts = np.bincount(images.label_ids, minlength=len(images.cache.labels))
    return len(images) / max(1, int(np.count_nonzero(counts))) / np.maximum(counts, 1)


def _comparison_weights(problem: Problem, images: Images) -> np.ndarray:
    """Class weights used when reporting and comparing cross entropy (not in the fit), float64 [C]."""
    weights = _balanced_weights(images)
    return weights if problem.settings.class_weights == "balanced" else np.ones(len(weights))


def _best(trials: np.ndarray) -> int:
    """The place of the best of `trials` [T, 4] (l2, balanced, validation accuracy, validation cross entropy)."""
    return 0 if np.isnan(trials[:, 3]).all() else int(np.nanargmin(trials[:, 3]))


def _grid(trials: np.ndarray) -> list[Trial]:
    grid, best = [], _best(trials)
    for number, (l2, balanced, accuracy, cross_entropy) in enumerate(trials.tolist()):
        is_validated, weighting = not np.isnan(cross_entropy), "balanced" if balanced else "none"
        figures = (accuracy, cross_entropy) if is_validated else (None, None)
        grid.append(Trial(l2, None, weighting, figures[0], figures[1], chosen=number == best))
    return grid


@dataclass(frozen=True, eq=False)
class _Iterate:
    flat: np.ndarray  # float64 [D C + C], the argument of the objective
    accuracy: float  # on the images of the fit
    cross_entropy: float  # there, with `_comparison_weights`
    is_last: bool = False  # it repeats the one before it


class _Objective:
    """The objective of `lbfgs` and its gradient, as a function of one flat array, as SciPy wants it.

    The array holds W and the biases b' = b + mean(X) @ W for bottlenecks from which their mean is subtracted. No
    strength of L2 acts on biases, so the minimum is the same; but a mean far from zero, as features after a ReLU have
    it, takes L-BFGS many iterations more.
    """

    def __init__(self, problem: Problem, images: Images):
        self._device, self._passes = problem.device, batches.passes(images, problem.device)
        self._shape = images.cache.backbone.dimension, len(images.cache.labels)
        self._count = len(images)
        self._balanced_weights = _balanced_weights(images)
        self._comparison_weights = _comparison_weights(problem, images)
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
        """Each iterate, while a thread computes the next one; then the last one again. Warns unless it converged."""
        class_weights = self._balanced_weights if balanced else np.ones(self._shape[1])
        iterates: queue.SimpleQueue[_Iterate | None] = queue.SimpleQueue()
        self._stopped.clear()

        slots = threading.Semaphore(2)  # unread iterates, which are large if there are many classes

        def report(intermediate_result: OptimizeResult) -> None:
            slots.acquire()
            iterates.put(_Iterate(intermediate_result.x.copy(), self._accuracy, self._cross_entropy))

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
            fitting.add_done_callback(lambda _: iterates.put(None))
            try:
                last = None
                while (iterate := iterates.get()) is not None:
                    yield iterate
                    slots.release()
                    last = iterate
                _warn_unless_converged(fitting.result(), l2)
                at_minimum = _Iterate(fitting.result().x, self._accuracy, self._cross_entropy)
                yield replace(last or at_minimum, is_last=True)
            finally:  # a caller that stops early does not wait for the minimum
                self._stopped.set()
                slots.release()

    def _value(self, flat: np.ndarray, l2: float, class_weights: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient, float64 [D C + C]. Notes the accuracy and the cross entropy to report."""
        weights, _ = self._split(flat)
        sums, weights_gradient, biases_gradient = np.zeros(3), np.zeros(self._shape), np.zeros(self._shape[1])
        reached = self.head(flat)
        with tf.device(self._device):
            for bottlenecks, label_ids in next(self._passes):
                if self._stopped.is_set():
                    raise InterruptedError
                block_sums, block_weights_gradient, block_biases_gradient = _add_up(
                    reached.weights, reached.biases, class_weights, self._comparison_weights, bottlenecks, label_ids
                )
                sums += block_sums.numpy()
                weights_gradient += block_weights_gradient.numpy()
                biases_gradient += block_biases_gradient.numpy()
        mean_loss, self._cross_entropy, self._accuracy = (sums / self._count).tolist()
        biases_gradient /= self._count
        # By the chain rule: b = b' - mean(X) @ W depends on W, too.
        weights_gradient = weights_gradient / self._count - np.outer(self._mean, biases_gradient) + l2 * weights
        value = mean_loss + l2 / 2 * np.sum(weights**2)
        return value, np.concatenate([weights_gradient.reshape(-1), biases_gradient])

    def _split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return flat[: -self._shape[1]].reshape(self._shape), flat[-self._shape[1] :]


def _warn_unless_converged(result: OptimizeResult, l2: float) -> None:
    if not result.success:
        reason = "" if result.status == _LIMIT else ", and no further step makes it better"
        print(
            f"warning: L2 {l2:.2g} has not converged in {result.nit} iterations{reason}; a stronger --l2 converges "
            "sooner",
            file=sys.stderr,
        )


@tf.function(autograph=False, reduce_retracing=True)
def _add_up(
    weights: tf.Tensor,
    biases: tf.Tensor,
    class_weights: tf.Tensor,
    comparison_weights: tf.Tensor,
    bottlenecks: tf.Tensor,
    label_ids: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sums over a block: (cross entropy by `class_weights` [C], cross entropy by `comparison_weights` [C], images whose
    top-1 class is their own) float64 [3], and the first one's gradient with respect to the weights float32 [D, C] and
    the biases float64 [C].

    Line searches would take rounding of float32 sums for slopes: everything but the matrix products is in float64.
    """
    bottlenecks = tf.cast(bottlenecks, tf.float32)
    logits = tf.cast(head.logits(weights, biases, bottlenecks), tf.float64)
    losses, error = head.loss(logits, label_ids)
    weights_of_images = tf.gather(class_weights, label_ids)
    error *= weights_of_images[:, tf.newaxis]
    weights_gradient = tf.matmul(bottlenecks, tf.cast(error, tf.float32), transpose_a=True)
    hits = tf.cast(head.hits(logits, label_ids), tf.float64)
    minimised = tf.tensordot(weights_of_images, losses, 1)
    compared = tf.tensordot(tf.gather(comparison_weights, label_ids), losses, 1)
    return tf.stack([minimised, compared, hits]), weights_gradient, tf.reduce_sum(error, axis=0)
