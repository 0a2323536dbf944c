"""Many heads at once by gradient descent: learning rates by strengths of L2 by class weights, on the same batches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from cache.errors import UserError
from train.data import batches
from train.data.batches import Block, Images
from train.data.schedule import Schedule
from train.random_streams import RandomStream
from train.solvers import head
from train.solvers.head import Head
from train.solvers.problem import Problem, Progress, State, Trial
from train.solvers.score import Score

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STRENGTHS = (0.0, 1e-5, 1e-4, 1e-3)
WEIGHTINGS = ("balanced", "none")
POINTS = 20  # of the learning curve: each takes all heads through all validation images
FEWEST = 4  # heads that go on to the end


class _Layer(NamedTuple):
    """K heads side by side, the C classes of one head adjacent."""

    weights: tf.Tensor | np.ndarray  # float32 [D, K C]
    biases: tf.Tensor | np.ndarray  # float32 [K C]


class _Choices(NamedTuple):
    """In what K heads differ."""

    rates: np.ndarray  # float32 [K]
    l2: np.ndarray  # float32 [K]
    class_weights: np.ndarray  # float32 [C, K], of an image of each class in each head's gradient


class _Sums(NamedTuple):
    """Over some images, for each of K heads."""

    hits: tf.Tensor  # int64 [K]: the images whose top-1 class is their own
    losses: tf.Tensor  # float64 [K]: their cross entropies


_Descend: TypeAlias = Callable[[_Layer, _Choices, Block], tuple[_Layer, _Sums]]


def grid() -> list[Trial]:
    """The 64 heads, not yet fitted."""
    choices = itertools.product(RATES, STRENGTHS, WEIGHTINGS)
    return [Trial(l2, rate, weighting, None, None, False) for rate, l2, weighting in choices]


def sweep(problem: Problem, state: State | None, trials: Sequence[Trial] | None = None) -> Iterator[Progress]:
    """Fits all heads of `trials` on the same batches, as one layer of their K C outputs; yields about POINTS times.

    Head k has weights W_k [D, C], biases b_k [C], a learning rate, a strength l2_k and class weights s_k [C]. It
    minimises

        mean_i(s_k[y_i] * loss(x_i, y_i)) + l2_k / 2 * sum(W_k**2)    loss(x, y) = -log softmax(x @ W_k + b_k)[y]

    where i runs over bottlenecks x_i [D] and label ids y_i, drawn such that each class is as likely as any other. For
    "balanced", s_k is 1. For "none", s_k[c] = N_c * G / N undoes the balance of the draws: N_c of the N images are of
    class c, and G classes have any. The steps are those of `sgd`.

    Successive halving (Jamieson & Talwalkar, 2016): after points 1, 2, 4 and 8 the better half goes on. A head of a
    small learning rate is no loss: it follows the path that a larger rate takes in fewer steps, and the result is the
    head of any point with the least cross entropy on the validation images. Raises UserError if all heads diverge.
    """
    settings, images = problem.settings, problem.training
    trials = grid() if trials is None else trials
    dimension, classes = images.cache.backbone.dimension, len(images.cache.labels)
    steps, interval = settings.how_many_training_steps, max(1, settings.how_many_training_steps // POINTS)
    if state is None:
        generator = np.random.default_rng([settings.seed, RandomStream.INITIAL_WEIGHTS])
        done, contest = 0, _begin(trials, head.initial(dimension, classes, generator))
    else:
        done, contest = int(state["step"]), _resume(trials, state)
    choices, validation_passes = _choices(trials, images), batches.passes(problem.validation, problem.device)
    schedule = Schedule(images, settings.train_batch_size, balanced=True, seed=settings.seed)
    calls = list(schedule.calls(done, steps, [interval], points=1))
    drawn = schedule.batches(done, [ends[-1] for ends in calls])
    blocks = batches.blocks(images, drawn, problem.device, schedule.run)
    for (done,), block in zip(calls, blocks, strict=True):
        with tf.device(problem.device):
            descend = _graph(dimension, classes, block.bottlenecks.dtype)
            contest.layer, sums = descend(contest.layer, _take(choices, contest.alive), block)
            if done % interval and done != steps:
                continue
            scores = _scores(contest.layer, next(validation_passes), len(contest.alive))
        leader = contest.judge(scores)
        accuracy, cross_entropy = (float(sum_[leader]) / settings.train_batch_size for sum_ in sums)
        if done % interval == 0 and (done // interval).bit_count() == 1:  # after point 1, 2, 4, 8, ...
            contest.halve()
        yield Progress(
            done, steps, accuracy, cross_entropy, scores[leader], contest.best, contest.grid(), contest.state(done)
        )


@dataclass(eq=False)
class _Contest:
    """The heads of T trials, of which K still train."""

    trials: Sequence[Trial]
    layer: _Layer  # of the K heads
    alive: np.ndarray  # int64 [K], places in trials
    validation: np.ndarray  # float64 [T, 2]: each head's accuracy and cross entropy at its best point; NaN: none yet
    best: Head  # of all heads and points
    best_trial: int

    def judge(self, scores: Sequence[Score]) -> int:
        """Takes the validation of the K heads at a new point; returns the place of the best of them.

        Raises UserError if all have diverged, now and before.
        """
        self.layer = _Layer(*map(np.asarray, self.layer))
        now = np.array([(score.accuracy, score.cross_entropy) for score in scores])
        now[~np.isfinite(now[:, 1])] = np.nan
        if np.isnan(now).all() and np.isnan(self.validation).all():
            raise UserError("all heads of the sweep have diverged; use --solver lbfgs")
        leader = int(np.argmin(np.where(np.isnan(now[:, 1]), np.inf, now[:, 1])))
        if now[leader, 1] < np.nanmin(self.validation[:, 1], initial=np.inf):
            self.best, self.best_trial = Head(*self._of(np.array([leader]))), int(self.alive[leader])
        is_better = ~(self.validation[self.alive, 1] <= now[:, 1])  # also where there was none
        self.validation[self.alive[is_better]] = now[is_better]
        return leader

    def halve(self) -> None:
        """Drops the worse half, down to FEWEST."""
        if len(self.alive) > FEWEST:
            order = np.argsort(self.validation[self.alive, 1], kind="stable")  # NaN last
            kept = np.sort(order[: max(FEWEST, len(self.alive) // 2)])
            self.layer, self.alive = self._of(kept), self.alive[kept]

    def grid(self) -> list[Trial]:
        """The trials with their validation; NaN where they diverged."""
        return [
            replace(
                trial,
                validation_accuracy=accuracy,
                validation_cross_entropy=cross_entropy,
                chosen=number == self.best_trial,
            )
            for number, (trial, (accuracy, cross_entropy)) in enumerate(
                zip(self.trials, self.validation.tolist(), strict=True)
            )
        ]

    def state(self, step: int) -> State:
        return {
            "step": np.array(step),
            "weights": self.layer.weights,
            "biases": self.layer.biases,
            "alive": self.alive,
            "validation": self.validation.copy(),
            "best_weights": self.best.weights,
            "best_biases": self.best.biases,
            "best_trial": np.array(self.best_trial),
        }

    def _of(self, heads: np.ndarray) -> _Layer:
        """Some of the K heads, side by side as before."""
        weights, biases, classes = *self.layer, len(self.best.biases)
        chosen = weights.reshape(len(weights), -1, classes)[:, heads], biases.reshape(-1, classes)[heads]
        return _Layer(chosen[0].reshape(len(weights), -1), chosen[1].reshape(-1))


def _begin(trials: Sequence[Trial], first: Head) -> _Contest:
    layer = _Layer(np.tile(first.weights, len(trials)), np.tile(first.biases, len(trials)))
    return _Contest(trials, layer, np.arange(len(trials)), np.full((len(trials), 2), np.nan), first, 0)


def _resume(trials: Sequence[Trial], state: State) -> _Contest:
    layer, best = _Layer(state["weights"], state["biases"]), Head(state["best_weights"], state["best_biases"])
    return _Contest(trials, layer, state["alive"], state["validation"].copy(), best, int(state["best_trial"]))


def _choices(trials: Sequence[Trial], images: Images) -> _Choices:
    rates, l2 = (np.array([getattr(trial, name) for trial in trials], np.float32) for name in ("learning_rate", "l2"))
    counts = np.bincount(images.label_ids, minlength=len(images.cache.labels))
    each_image_alike = counts * np.count_nonzero(counts) / len(images)
    columns = [np.ones(len(counts)) if trial.class_weights == "balanced" else each_image_alike for trial in trials]
    return _Choices(rates, l2, np.stack(columns, axis=1).astype(np.float32))


def _take(choices: _Choices, heads: np.ndarray) -> _Choices:
    return _Choices(choices.rates[heads], choices.l2[heads], choices.class_weights[:, heads])


def _scores(layer: _Layer, blocks: Iterator[tuple[tf.Tensor, tf.Tensor]], heads: int) -> list[Score]:
    """The score of each head on all images of the blocks."""
    count, hits, losses = 0, np.zeros(heads, np.int64), np.zeros(heads)
    step = max(1, batches.BLOCK_BYTES // (4 * len(layer.biases)))  # images whose logits are no larger than a block
    for bottlenecks, label_ids in blocks:
        for begin in range(0, len(label_ids), step):
            part = slice(begin, begin + step)
            sums = _add_up(layer, bottlenecks[part], label_ids[part], tf.constant(heads))
            hits, losses = hits + sums.hits.numpy(), losses + sums.losses.numpy()
        count += len(label_ids)
    return [Score(count, hit / count, loss / count) for hit, loss in zip(hits.tolist(), losses.tolist(), strict=True)]


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _add_up(layer: _Layer, bottlenecks: tf.Tensor, label_ids: tf.Tensor, heads: tf.Tensor) -> _Sums:
    """Over a block: bottlenecks [B, D] and label ids int32 [B]."""
    logits = head.logits(*layer, bottlenecks)
    labels = tf.repeat(label_ids, heads)  # once for each head: the logits of an image's heads are adjacent
    logits = tf.reshape(logits, [tf.size(labels), tf.size(layer.biases) // heads])
    losses, _ = head.loss(logits, labels)
    hits = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), labels)
    hits, losses = (tf.reshape(value, [-1, heads]) for value in (hits, tf.cast(losses, tf.float64)))
    return _Sums(tf.math.count_nonzero(hits, axis=0), tf.reduce_sum(losses, axis=0))


@functools.lru_cache(4)
def _graph(dimension: int, classes: int, dtype: tf.DType) -> _Descend:
    """The graph of all steps of a block, for any number of heads; the sums are those of the last batch."""

    @tf.function(
        autograph=False,
        input_signature=[
            _Layer(tf.TensorSpec([dimension, None]), tf.TensorSpec([None])),
            _Choices(tf.TensorSpec([None]), tf.TensorSpec([None]), tf.TensorSpec([classes, None])),
            Block(
                tf.TensorSpec([None, dimension], dtype),
                tf.TensorSpec([None, None], tf.int64),
                tf.TensorSpec([None, None], tf.int32),
            ),
        ],
    )
    def descend(layer: _Layer, choices: _Choices, block: Block) -> tuple[_Layer, _Sums]:
        bottlenecks, places, label_ids = block
        steps, size, heads = tf.shape(places)[0], tf.shape(places)[1], tf.shape(choices.rates)[0]
        decay = tf.repeat(1 - choices.rates * choices.l2, classes)
        scale = choices.class_weights * choices.rates / tf.cast(size, tf.float32)

        def step(k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, ...]:
            batch = tf.cast(tf.gather(bottlenecks, places[k]), tf.float32)
            logits = tf.reshape(head.logits(weights, biases, batch), [size * heads, classes])
            _, error = head.loss(logits, tf.repeat(label_ids[k], heads))
            error = tf.reshape(error, [size, heads, classes]) * tf.gather(scale, label_ids[k])[..., tf.newaxis]
            error = tf.reshape(error, [size, heads * classes])
            weights = decay * weights - tf.matmul(batch, error, transpose_a=True)
            return k + 1, weights, biases - tf.reduce_sum(error, axis=0)

        start = tf.constant(0), *layer
        shapes = tuple(tensor.shape for tensor in start)
        _, *reached = tf.while_loop(lambda k, *_: k < steps, step, start, shape_invariants=shapes)
        layer = _Layer(*reached)
        return layer, _add_up(layer, tf.gather(bottlenecks, places[steps - 1]), label_ids[steps - 1], heads)

    return descend
