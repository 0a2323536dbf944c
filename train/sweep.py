"""Many heads at once by gradient descent: learning rates by strengths of L2 by weightings, one stream of the data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from cache.errors import UserError
from train import head, sgd, stream
from train.head import Head
from train.score import Score
from train.solvers import Problem, Progress, State
from train.trial import Trial

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STRENGTHS = (0.0, 1e-5, 1e-4, 1e-3)
WEIGHTINGS = ("balanced", "none")
POINTS = 20  # of the learning curve: each takes all heads through all validation images
FEWEST = 4  # heads that go on to the end


def grid() -> list[Trial]:
    """The 64 heads, not yet fitted."""
    choices = itertools.product(RATES, STRENGTHS, WEIGHTINGS)
    return [Trial(l2, rate, weighting, None, None, False) for rate, l2, weighting in choices]


def sweep(problem: Problem, state: State | None, trials: Sequence[Trial] | None = None) -> Iterator[Progress]:
    """Fits all heads of `trials` on the same batches, as one layer of their K C outputs; yields about POINTS times.

    The batches are balanced over the classes; where a head shall count images alike, each image's gradient is weighted
    by how much rarer its class is drawn than it is in the set.

    Successive halving (Jamieson & Talwalkar, 2016): after points 1, 2, 4 and 8 the better half goes on. A head of a
    small learning rate is not missed: it follows the path that one of a larger rate took in fewer steps, and chosen is
    the head of any point with the least cross entropy on the validation images. Raises UserError where there are none,
    and where all heads diverge.
    """
    settings, images = problem.settings, problem.training
    trials = grid() if trials is None else trials
    dimension, classes = images.cache.module.dimension, len(images.cache.labels)
    steps, interval = settings.how_many_training_steps, max(1, settings.how_many_training_steps // POINTS)
    if state is None:
        first = head.initial(dimension, classes, np.random.default_rng([settings.seed, 0]))
        weights, biases = np.tile(first.weights, len(trials)), np.tile(first.biases, len(trials))
        best, number, found = first, 0, np.full((len(trials), 2), np.nan)
        done, alive = 0, np.arange(len(trials))
    else:
        weights, biases, found, alive = (state[name] for name in ("weights", "biases", "found", "alive"))
        best, number, done = Head(state["best_weights"], state["best_biases"]), int(state["number"]), int(state["step"])
    rates, l2 = (np.array([getattr(t, name) for t in trials], np.float32) for name in ("learning_rate", "l2"))
    importance, whole = _importance(images, trials), stream.passes(problem.validation, problem.device)
    plan = list(sgd.calls(done, steps, [interval], sgd.longest(images, settings.train_batch_size), 1))
    balanced = replace(problem, settings=replace(settings, class_weights="balanced"))
    drawn = sgd.batches(balanced, settings.train_batch_size, done, [ends[-1] for ends in plan])
    blocks = stream.blocks(images, drawn, problem.device, sgd.run_of(images, settings.train_batch_size))
    for (done,), block in zip(plan, blocks, strict=True):
        with tf.device(problem.device):
            descend = _descend(dimension, classes, block.bottlenecks.dtype)
            choices = rates[alive], l2[alive], importance[:, alive]
            weights, biases, hits, losses = descend(
                weights, biases, *choices, block.bottlenecks, block.places, block.label_ids
            )
            if done % interval and done != steps:
                continue
            scores = _scores(weights, biases, next(whole), len(alive))
        weights, biases = weights.numpy(), biases.numpy()
        now = np.array([(score.accuracy, score.cross_entropy) for score in scores])
        now[~np.isfinite(now[:, 1])] = np.nan
        if np.isnan(now).all() and np.isnan(found).all():
            raise UserError("all heads of the sweep have diverged; use --solver lbfgs")
        leader = int(np.argmin(np.where(np.isnan(now[:, 1]), np.inf, now[:, 1])))
        if now[leader, 1] < np.nanmin(found[:, 1], initial=np.inf):
            best, number = _heads(weights, biases, [leader], classes), int(alive[leader])
        better = ~(found[alive, 1] <= now[:, 1])  # than none, too
        found[alive[better]] = now[better]
        training = float(hits[leader]) / settings.train_batch_size, float(losses[leader]) / settings.train_batch_size
        if len(alive) > FEWEST and done % interval == 0 and (done // interval).bit_count() == 1:
            kept = np.sort(np.argsort(found[alive, 1], kind="stable")[: max(FEWEST, len(alive) // 2)])  # NaN last
            going_on, alive = _heads(weights, biases, kept, classes), alive[kept]
            weights, biases = going_on.weights, going_on.biases
        reached = {"step": np.array(done), "weights": weights, "biases": biases, "found": found.copy(), "alive": alive}
        reached["number"] = np.array(number)
        reached |= {"best_weights": best.weights, "best_biases": best.biases}
        yield Progress(done, steps, *training, scores[leader], best, _validated(trials, found, number), reached)


def _importance(images: stream.Images, trials: Sequence[Trial]) -> np.ndarray:
    """Of an image of each class in each head's gradient, float32 [C, K]."""
    counts = np.bincount(images.label_ids, minlength=len(images.cache.labels))
    as_they_are = counts * np.count_nonzero(counts) / len(images)
    columns = [np.ones(len(counts)) if trial.class_weights == "balanced" else as_they_are for trial in trials]
    return np.stack(columns, axis=1).astype(np.float32)


def _heads(weights: np.ndarray, biases: np.ndarray, kept: Sequence[int] | np.ndarray, classes: int) -> Head:
    """Some of the heads that lie side by side, side by side as before."""
    chosen = weights.reshape(len(weights), -1, classes)[:, kept], biases.reshape(-1, classes)[kept]
    return Head(chosen[0].reshape(len(weights), -1), chosen[1].reshape(-1))


def _validated(trials: Sequence[Trial], found: np.ndarray, best: int) -> list[Trial]:
    """The trials with their best validation accuracy and cross entropy, `found` [K, 2]; NaN where they diverged.

    The one at `best` is chosen.
    """
    return [
        replace(trial, validation_accuracy=accuracy, validation_cross_entropy=cross_entropy, chosen=number == best)
        for number, (trial, (accuracy, cross_entropy)) in enumerate(zip(trials, found.tolist(), strict=True))
    ]


def _scores(
    weights: tf.Tensor, biases: tf.Tensor, blocks: Iterator[tuple[tf.Tensor, tf.Tensor]], heads: int
) -> list[Score]:
    """Of each head, on all images of the blocks."""
    count, hits, total = 0, np.zeros(heads, np.int64), np.zeros(heads)
    step = max(1, stream.BLOCK_BYTES // (4 * len(biases)))  # images whose scores are no larger than a block
    for bottlenecks, label_ids in blocks:
        for begin in range(0, len(label_ids), step):
            some = slice(begin, begin + step)
            part = _add_up(weights, biases, bottlenecks[some], label_ids[some], tf.constant(heads))
            hits, total = hits + part[0].numpy(), total + part[1].numpy()
        count += len(label_ids)
    return [Score(count, hit / count, loss / count) for hit, loss in zip(hits.tolist(), total.tolist(), strict=True)]


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _add_up(
    weights: tf.Tensor, biases: tf.Tensor, bottlenecks: tf.Tensor, label_ids: tf.Tensor, heads: tf.Tensor | int
) -> tuple[tf.Tensor, tf.Tensor]:
    """For each head, over a block: the images whose top-1 class is theirs, and the summed cross entropy, both [K]."""
    scores = head.logits(weights, biases, bottlenecks)
    each = tf.repeat(label_ids, heads)  # the labels of an image's heads stand together, as its scores do
    scores = tf.reshape(scores, [tf.size(each), tf.size(biases) // heads])
    losses, _ = head.loss(scores, each)
    hit = tf.equal(tf.argmax(scores, axis=1, output_type=tf.int32), each)
    by_head = [tf.reshape(value, [-1, heads]) for value in (hit, tf.cast(losses, tf.float64))]
    return tf.math.count_nonzero(by_head[0], axis=0), tf.reduce_sum(by_head[1], axis=0)


@functools.lru_cache(4)
def _descend(dimension: int, classes: int, dtype: tf.DType) -> Callable[..., tuple[tf.Tensor, ...]]:
    """The graph of the K steps of a `stream.Block` for any number of heads.

    It takes weights [D, heads C] and biases [heads C], the classes of a head side by side; returns the new ones, and of
    the last batch each head's hits and summed cross entropy, both [heads].
    """

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([dimension, None]),
            tf.TensorSpec([None]),
            tf.TensorSpec([None]),
            tf.TensorSpec([None]),
            tf.TensorSpec([classes, None]),
            tf.TensorSpec([None, dimension], dtype),
            tf.TensorSpec([None, None], tf.int64),
            tf.TensorSpec([None, None], tf.int32),
        ],
    )
    def descend(
        weights: tf.Tensor,
        biases: tf.Tensor,
        rates: tf.Tensor,
        l2: tf.Tensor,
        importance: tf.Tensor,
        bottlenecks: tf.Tensor,
        places: tf.Tensor,
        label_ids: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        size, heads = tf.shape(places)[1], tf.shape(rates)[0]
        decay = tf.repeat(1 - rates * l2, classes)
        scale = importance * rates / tf.cast(size, tf.float32)

        def step(k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, ...]:
            drawn = tf.cast(tf.gather(bottlenecks, places[k]), tf.float32)
            scores = tf.reshape(head.logits(weights, biases, drawn), [size * heads, classes])
            _, error = head.loss(scores, tf.repeat(label_ids[k], heads))
            error = tf.reshape(error, [size, heads, classes]) * tf.gather(scale, label_ids[k])[..., tf.newaxis]
            error = tf.reshape(error, [size, heads * classes])
            weights = decay * weights - tf.matmul(drawn, error, transpose_a=True)
            return k + 1, weights, biases - tf.reduce_sum(error, axis=0)

        count = tf.shape(places)[0]
        start = tf.constant(0), weights, biases
        shapes = tuple(tensor.shape for tensor in start)
        _, weights, biases = tf.while_loop(lambda k, *_: k < count, step, start, shape_invariants=shapes)
        last = tf.gather(bottlenecks, places[count - 1])
        return weights, biases, *_add_up(weights, biases, last, label_ids[count - 1], heads)

    return descend
