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
from train.stream import Block, Images

LONGEST = 400  # steps in one call of the graph: so long Ctrl-C and the progress bar wait
_PLACE_BYTES = 12  # of an image in a batch: its place and its class
_DRAWN = 100  # steps at most whose batches come from one generator


def sgd(problem: Problem, state: State | None, compiled: bool | None = None) -> Iterator[Progress]:
    """Yields every `eval_step_interval` and every `intermediate_store_frequency` steps, and after the last.

    Step k takes the same batch whatever came before and however the steps are cut into calls, so that a run that was
    interrupted ends as it would have. Raises UserError when the cross entropy stops being finite.

    `compiled` by XLA; None: where that is known to win, on processors. The benchmarks measure it.
    """
    compiled = "GPU" not in problem.device if compiled is None else compiled
    settings, images = problem.settings, problem.training
    steps, interval, rate = settings.how_many_training_steps, settings.eval_step_interval, settings.learning_rate
    dimension, classes = images.cache.module.dimension, len(images.cache.labels)
    if state is None:
        done, start = 0, head.initial(dimension, classes, np.random.default_rng([settings.seed, 0]))
    else:
        done, start = int(state["step"]), Head(state["weights"], state["biases"])
    intervals = [interval, *([settings.intermediate_store_frequency] if settings.intermediate_store_frequency else [])]
    plan = list(calls(done, steps, intervals, longest(images, settings.train_batch_size), _points(problem)))
    lasts = [ends[-1] for ends in plan]
    most_points, most_steps = max(map(len, plan), default=0), int(np.diff([done, *lasts]).max(initial=0))
    # Not only the places: of a set that is not resident, each batch brings its bottlenecks.
    drawn = (_filled(places, most_steps) for places in batches(problem, settings.train_batch_size, done, lasts))
    blocks = stream.blocks(images, drawn, problem.device, run_of(images, settings.train_batch_size))
    whole = stream.passes(problem.validation, problem.device)
    with tf.device(problem.device):
        weights, biases = tf.constant(start.weights), tf.constant(start.biases)
    for ends, block, held_out in zip(plan, blocks, _validation(problem, plan, most_points), strict=True):
        with tf.device(problem.device):
            dtypes = block.bottlenecks.dtype, held_out.bottlenecks.dtype
            weights, biases, *points = _descend(dimension, classes, *dtypes, compiled)(
                weights,
                biases,
                np.float32(rate),
                np.float32(settings.l2 or 0.0),
                _filled(np.array(ends, np.int32) - done, most_points),
                np.int32(len(ends)),
                *(block.bottlenecks, block.places, block.label_ids),
                *(held_out.bottlenecks, held_out.places, held_out.label_ids),
            )
        for step, *layer, trained, validated in zip(ends, *(tensor.numpy() for tensor in points), strict=False):
            reached, training = Head(*layer), _score(trained, block.places.shape[1])
            if not np.isfinite(training.cross_entropy):
                raise UserError(
                    f"the cross entropy is no longer finite after {step} steps; lower --learning_rate, it is {rate:g}"
                )
            if step == steps or not all(step % every for every in intervals):
                size = held_out.places.shape[1]
                validation = _score(validated, size) if size else score(reached, next(whole), problem.device)
                now = {"step": np.array(step), "weights": reached.weights, "biases": reached.biases}
                yield Progress(step, steps, training.accuracy, training.cross_entropy, validation, reached, (), now)
        done = ends[-1]


def batches(problem: Problem, batch_size: int, begin: int, ends: Iterable[int]) -> Iterator[np.ndarray]:
    """For each call that ends before step `ends`, the places of its batches in `by_class`, int64 [K, B].

    The batches of some steps are drawn at once: of a set that is not resident, as many as fill the shuffle buffer.
    """
    seed, images = problem.settings.seed, problem.training
    at_once, run = _at_once(images, batch_size), run_of(images, batch_size)

    @functools.lru_cache(2)
    def drawn(number: int) -> np.ndarray:
        generator = np.random.default_rng([seed, 1, number])
        return stream.draw(images, generator, (at_once, batch_size), problem.settings.balanced, run)

    for end in ends:
        parts = []
        while begin < end:
            number, inside = divmod(begin, at_once)
            parts.append(drawn(number)[inside : inside + end - begin])
            begin += len(parts[-1])
        yield np.concatenate(parts)


def run_of(images: Images, batch_size: int) -> int:
    """How many images that lie one behind the other `batches` draws together."""
    return stream.run_of(images, _at_once(images, batch_size) * batch_size)


def _at_once(images: Images, batch_size: int) -> int:
    return min(_DRAWN, longest(images, batch_size))


def longest(images: Images, batch_size: int) -> int:
    """How many steps one call may have: those whose bottlenecks fill the shuffle buffer, of a set that has one."""
    if stream.is_resident(images):
        return LONGEST
    return max(1, min(_DRAWN, stream.SHUFFLE_BYTES // (images.row_bytes * batch_size)))


def calls(done: int, steps: int, intervals: Sequence[int], longest: int, points: int) -> Iterator[list[int]]:
    """For each call of the graph the steps after which its head is wanted: multiples of `intervals`, and its last.

    A call has at most `longest` steps, which end with a multiple of that, and `points` such heads.
    """
    ends: list[int] = []
    while done < steps:
        done = min(steps, *((done // every + 1) * every for every in (longest, *intervals)))
        ends.append(done)
        if done == steps or done % longest == 0 or len(ends) == points:
            yield ends
            ends = []


def _points(problem: Problem) -> int:
    """How many heads one call may leave, so that they fit into a block's memory, and what they are validated on."""
    images = problem.validation
    layer = 4 * (images.cache.module.dimension + 1) * len(images.cache.labels)
    each = _PLACE_BYTES if stream.is_resident(images) else images.row_bytes
    return max(1, stream.BLOCK_BYTES // max(layer, problem.settings.validation_batch_size * each))


def _validation(problem: Problem, plan: Sequence[Sequence[int]], points: int) -> Iterable[Block]:
    """For each call of the graph class-balanced draws for its points; none where the whole set is asked for."""
    images, settings = problem.validation, problem.settings
    if settings.validation_batch_size == -1 or not len(images):
        none = np.empty((points, 0), np.int64)
        bottlenecks = stream.on(problem.device, np.zeros((1, images.cache.module.dimension), np.float32))
        return [Block(bottlenecks, none, none.astype(np.int32))] * len(plan)

    def draw(step: int) -> np.ndarray:
        generator = np.random.default_rng([settings.seed, 2, step])
        return stream.draw(images, generator, (settings.validation_batch_size,))

    drawn = (_filled(np.stack([draw(step) for step in ends]), points) for ends in plan)
    return stream.blocks(images, drawn, problem.device)


def _score(sums: np.ndarray, count: int) -> Score:
    """From the hits and the summed cross entropy, [2], of a batch."""
    hits, losses = sums.tolist()
    return Score(count, hits / count, losses / count)


def _filled(array: np.ndarray, length: int) -> np.ndarray:
    """At least so long, its last entry repeated: XLA compiles again for each new shape."""
    return np.pad(array, [(0, max(0, length - len(array)))] + [(0, 0)] * (array.ndim - 1), mode="edge")


@functools.lru_cache(4)
def _descend(
    dimension: int, classes: int, dtype: tf.DType, held_out_dtype: tf.DType, compiled: bool
) -> Callable[..., tuple[tf.Tensor, ...]]:
    """The graph of the steps of a `stream.Block` in one call: calling it costs more than a small step does.

    It takes weights [D, C], biases [C], the learning rate, the strength of L2, `ends` int32 [P] and how many of them
    count, the block, and one of P held out batches. It returns the new weights and biases, and after each step of
    `ends` weights [P, D, C], biases [P, C], and of that step's batch and of the one held out the hits and the summed
    cross entropy, both [P, 2].
    """

    @tf.function(
        autograph=False,
        jit_compile=compiled,
        input_signature=[
            tf.TensorSpec([dimension, classes]),
            tf.TensorSpec([classes]),
            tf.TensorSpec([]),
            tf.TensorSpec([]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([None, dimension], dtype),
            tf.TensorSpec([None, None], tf.int64),
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None, dimension], held_out_dtype),
            tf.TensorSpec([None, None], tf.int64),
            tf.TensorSpec([None, None], tf.int32),
        ],
    )
    def descend(
        weights: tf.Tensor,
        biases: tf.Tensor,
        rate: tf.Tensor,
        l2: tf.Tensor,
        ends: tf.Tensor,
        count: tf.Tensor,
        *blocks: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        block, held_out = Block(*blocks[:3]), Block(*blocks[3:])
        scale = rate / tf.cast(tf.shape(block.places)[1], tf.float32)
        decay = 1 - rate * l2

        # Between the steps the weights lie as [C, D]: with few classes the products take half the time that way.
        def scores(weights: tf.Tensor, biases: tf.Tensor, block: Block, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            drawn = tf.cast(tf.gather(block.bottlenecks, block.places[k]), tf.float32)
            return drawn, tf.transpose(tf.matmul(weights, drawn, transpose_b=True)) + biases

        def step(k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, ...]:
            drawn, reached = scores(weights, biases, block, k)
            error = scale * head.loss(reached, block.label_ids[k])[1]
            weights = decay * weights - tf.matmul(error, drawn, transpose_a=True)
            return k + 1, weights, biases - tf.reduce_sum(error, axis=0)

        def add_up(weights: tf.Tensor, biases: tf.Tensor, block: Block, k: tf.Tensor) -> tf.Tensor:
            (_, reached), labels = scores(weights, biases, block, k), block.label_ids[k]
            hits = tf.cast(head.hits(reached, labels), tf.float32)
            return tf.stack([hits, tf.reduce_sum(head.loss(reached, labels)[0])])

        def until_point(
            p: tf.Tensor, k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor, *points: tf.TensorArray
        ) -> tuple[object, ...]:
            k, weights, biases = tf.while_loop(lambda k, *_: k < ends[p], step, (k, weights, biases))
            sums = add_up(weights, biases, block, k - 1), add_up(weights, biases, held_out, p)
            found = tf.transpose(weights), biases, *sums
            written = [array.write(p, value) for array, value in zip(points, found, strict=True)]
            return p + 1, k, weights, biases, *written

        shapes = [dimension, classes], [classes], [2], [2]
        points = [tf.TensorArray(tf.float32, tf.size(ends), element_shape=shape) for shape in shapes]
        start = tf.constant(0), tf.constant(0), tf.transpose(weights), biases, *points
        _, _, weights, biases, *points = tf.while_loop(lambda p, *_: p < count, until_point, start)
        return tf.transpose(weights), biases, *(array.stack() for array in points)

    return descend
