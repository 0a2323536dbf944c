"""Plain gradient descent on batches drawn at random, as the tutorial does it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from cache.errors import UserError
from train import head, stream
from train.head import Head
from train.score import Score, score
from train.solvers import Problem, Progress, State
from train.stream import Images

LONGEST = 400  # steps in one call of the graph: so long Ctrl-C and the progress bar wait, a tenth of a second
_DRAWN = 100  # steps whose batches come from one generator


def sgd(problem: Problem, state: State | None) -> Iterator[Progress]:
    """Yields every `eval_step_interval` steps, and after the last.

    Step k takes the same batch whatever came before and however the steps are cut into calls, so that a run that was
    interrupted ends as it would have. Raises UserError when the cross entropy stops being finite.
    """
    settings, images = problem.settings, problem.training
    steps, interval, rate = settings.how_many_training_steps, settings.eval_step_interval, settings.learning_rate
    dimension, classes = images.cache.module.dimension, len(images.cache.labels)
    if state is None:
        done, start = 0, head.initial(dimension, classes, np.random.default_rng([settings.seed, 0]))
    else:
        done, start = int(state["step"]), Head(state["weights"], state["biases"])
    intervals = [interval, *([settings.intermediate_store_frequency] if settings.intermediate_store_frequency else [])]
    most = max(1, stream.BLOCK_BYTES // (4 * (dimension + 1) * classes))  # heads that fit into a block's memory
    plan = list(calls(done, steps, intervals, longest(images, settings.train_batch_size), most))
    whole = stream.passes(problem.validation, problem.device)
    drawn = batches(problem, settings.train_batch_size, done, [ends[-1] for ends in plan])
    with tf.device(problem.device):
        weights, biases = tf.constant(start.weights), tf.constant(start.biases)
    for ends, block in zip(plan, stream.blocks(images, drawn, problem.device), strict=True):
        with tf.device(problem.device):
            descend = _descend(dimension, classes, block.bottlenecks.dtype)
            found = descend(
                weights,
                biases,
                np.float32(rate),
                np.float32(settings.l2 or 0.0),
                block.bottlenecks,
                block.places,
                block.label_ids,
                np.array(ends, np.int32) - done,
            )
        (weights, biases), points = found[:2], [value.numpy() for value in found[2:]]
        for step, *after, accuracy, cross_entropy in zip(ends, *points, strict=True):
            if not np.isfinite(cross_entropy):
                raise UserError(
                    f"the cross entropy is no longer finite after {step} steps; lower --learning_rate, it is {rate:g}"
                )
            if step == steps or not all(step % every for every in intervals):
                reached = Head(*after)
                now = {"step": np.array(step), "weights": reached.weights, "biases": reached.biases}
                validation = _validate(problem, reached, step, whole)
                yield Progress(step, steps, float(accuracy), float(cross_entropy), validation, reached, (), now)
        done = ends[-1]


def batches(problem: Problem, batch_size: int, begin: int, ends: Iterable[int]) -> Iterator[np.ndarray]:
    """For each call that ends before step `ends`, the places of its batches in `by_class`, int64 [K, B]."""
    seed, images = problem.settings.seed, problem.training

    @functools.lru_cache(2)
    def drawn(number: int) -> np.ndarray:
        generator = np.random.default_rng([seed, 1, number])
        return stream.draw(images, generator, (_DRAWN, batch_size), problem.settings.balanced)

    for end in ends:
        parts = []
        while begin < end:
            number, inside = divmod(begin, _DRAWN)
            parts.append(drawn(number)[inside : inside + end - begin])
            begin += len(parts[-1])
        yield np.concatenate(parts)


def longest(images: Images, batch_size: int) -> int:
    """How many steps one call may have, so that their bottlenecks fit into a block."""
    if stream.is_resident(images):
        return LONGEST
    return max(1, min(LONGEST, stream.BLOCK_BYTES // (images.row_bytes * batch_size)))


def calls(done: int, steps: int, intervals: Sequence[int], longest: int, points: int) -> Iterator[list[int]]:
    """For each call of the graph the steps after which its head is wanted: multiples of `intervals`, and its last.

    A call has at most `longest` steps and `points` such heads.
    """
    start, ends = done, []
    while done < steps:
        done = min(steps, start + longest, *((done // interval + 1) * interval for interval in intervals))
        ends.append(done)
        if done in (steps, start + longest) or len(ends) == points:
            yield ends
            start, ends = done, []


def _validate(problem: Problem, reached: Head, step: int, whole: stream.Passes) -> Score | None:
    """On class-balanced draws, or on the whole set."""
    images, batch_size = problem.validation, problem.settings.validation_batch_size
    if batch_size == -1 or not len(images):
        return score(reached, next(whole), problem.device)
    rows, _, _ = images.by_class
    drawn = rows[stream.draw(images, np.random.default_rng([problem.settings.seed, 2, step]), (batch_size,))]
    return score(reached, [(images.bottlenecks(drawn), images.labels_of(drawn))], problem.device)


@functools.lru_cache(4)
def _descend(dimension: int, classes: int, dtype: tf.DType) -> Callable[..., tuple[tf.Tensor, ...]]:
    """The graph of the K steps of a `stream.Block` in one call: calling it costs more than a small step does.

    It takes weights [D, C], biases [C], the learning rate, the strength of L2, the block, and `ends` int32 [P]. It
    returns the new weights and biases, and after each step of `ends` weights [P, D, C], biases [P, C], and the
    accuracy [P] and the cross entropy [P] of that step's batch.
    """

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([dimension, classes]),
            tf.TensorSpec([classes]),
            tf.TensorSpec([]),
            tf.TensorSpec([]),
            tf.TensorSpec([None, dimension], dtype),
            tf.TensorSpec([None, None], tf.int64),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None], tf.int32),
        ],
    )
    def descend(
        weights: tf.Tensor,
        biases: tf.Tensor,
        rate: tf.Tensor,
        l2: tf.Tensor,
        bottlenecks: tf.Tensor,
        places: tf.Tensor,
        label_ids: tf.Tensor,
        ends: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        scale = rate / tf.cast(tf.shape(places)[1], tf.float32)
        decay = 1 - rate * l2

        def batch(k: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.gather(bottlenecks, places[k]), tf.float32)

        def step(k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, ...]:
            drawn = batch(k)
            _, error = head.loss(head.logits(weights, biases, drawn), label_ids[k])
            error *= scale
            weights = decay * weights - tf.matmul(drawn, error, transpose_a=True)
            return k + 1, weights, biases - tf.reduce_sum(error, axis=0)

        def until_point(
            p: tf.Tensor, k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor, *points: tf.TensorArray
        ) -> tuple[object, ...]:
            k, weights, biases = tf.while_loop(lambda k, *_: k < ends[p], step, (k, weights, biases))
            scores, labels = head.logits(weights, biases, batch(k - 1)), label_ids[k - 1]
            accuracy = tf.cast(head.hits(scores, labels), tf.float32) / tf.cast(tf.shape(labels)[0], tf.float32)
            found = weights, biases, accuracy, tf.reduce_mean(head.loss(scores, labels)[0])
            written = [array.write(p, value) for array, value in zip(points, found, strict=True)]
            return p + 1, k, weights, biases, *written

        count = tf.shape(ends)[0]
        points = [tf.TensorArray(tf.float32, count) for _ in range(4)]
        _, _, weights, biases, *points = tf.while_loop(
            lambda p, *_: p < count, until_point, (tf.constant(0), tf.constant(0), weights, biases, *points)
        )
        return weights, biases, *(array.stack() for array in points)

    return descend
