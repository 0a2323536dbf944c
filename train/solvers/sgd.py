"""Plain gradient descent on batches drawn at random, as the tutorial does it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from cache.errors import UserError
from train.data import batches, schedule
from train.data.batches import Block
from train.data.schedule import Schedule
from train.random_streams import RandomStream
from train.solvers import head
from train.solvers.head import Head
from train.solvers.problem import Problem, Progress, State
from train.solvers.score import Score, score

_PLACE_BYTES = 12  # of an image in a batch: its place and its class


class _Layer(NamedTuple):
    weights: tf.Tensor  # float32 [D, C]
    biases: tf.Tensor  # float32 [C]


class _Points(NamedTuple):
    """The layer after P steps, and its sums over a batch: how many images it classifies right, and cross entropy."""

    weights: tf.Tensor  # float32 [P, D, C]
    biases: tf.Tensor  # float32 [P, C]
    training: tf.Tensor  # float32 [P, 2], on the step's own batch
    validation: tf.Tensor  # float32 [P, 2], on validation images


# (layer, learning rate, l2, steps after which points are wanted int32 [P], how many of these count, batches, validation
# batches) -> (layer after the last step, points)
_Descend: TypeAlias = Callable[
    [_Layer, np.float32, np.float32, np.ndarray, np.int32, Block, Block], tuple[_Layer, _Points]
]


def sgd(problem: Problem, state: State | None, compiled: bool | None = None) -> Iterator[Progress]:
    """Minimises over the weights W [D, C] and the biases b [C]

        mean_i(loss(x_i, y_i)) + l2 / 2 * sum(W**2)    loss(x, y) = -log softmax(x @ W + b)[y]

    where i runs over bottlenecks x_i [D] and label ids y_i, drawn such that each class is as likely as any other, or
    each photo (`TrainSettings.balanced`). A step takes a batch X [B, D] of B such draws, with one-hot labels Y [B, C]
    and P = softmax(X @ W + b) [B, C]:

        W <- W - rate * (X.T @ (P - Y) / B + l2 * W)
        b <- b - rate * mean over the batch of (P - Y)

    Yields every `eval_step_interval` and every `intermediate_store_frequency` steps, and after the last. Raises
    UserError when the cross entropy stops being finite.

    `compiled` by XLA; None: where that is known to win, on processors. The benchmarks measure it.
    """
    compiled = "GPU" not in problem.device if compiled is None else compiled
    settings, images = problem.settings, problem.training
    steps, rate, l2 = settings.how_many_training_steps, settings.learning_rate, settings.l2 or 0.0
    dimension, classes = images.cache.backbone.dimension, len(images.cache.labels)
    if state is None:
        generator = np.random.default_rng([settings.seed, RandomStream.INITIAL_WEIGHTS])
        done, start = 0, head.initial(dimension, classes, generator)
    else:
        done, start = int(state["step"]), Head(state["weights"], state["biases"])
    intervals = [every for every in (settings.eval_step_interval, settings.intermediate_store_frequency) if every]
    drawn = Schedule(images, settings.train_batch_size, settings.balanced, settings.seed)
    calls = list(drawn.calls(done, steps, intervals, _most_points(problem)))
    lasts = [ends[-1] for ends in calls]
    most_points, most_steps = max(map(len, calls), default=0), int(np.diff([done, *lasts]).max(initial=0))
    # Padded before the bottlenecks are gathered: a set that is not resident brings those of each batch.
    padded = (_padded(places, most_steps) for places in drawn.batches(done, lasts))
    blocks = batches.blocks(images, padded, problem.device, drawn.run)
    validation_blocks = _validation_blocks(problem, calls, most_points)
    validation_passes = batches.passes(problem.validation, problem.device)
    with tf.device(problem.device):
        layer = _Layer(tf.constant(start.weights), tf.constant(start.biases))
    for ends, block, validation_block in zip(calls, blocks, validation_blocks, strict=True):
        with tf.device(problem.device):
            dtypes = block.bottlenecks.dtype, validation_block.bottlenecks.dtype
            ends_in_call = _padded(np.array(ends, np.int32) - done, most_points)
            layer, points = _graph(dimension, classes, *dtypes, compiled)(
                layer, np.float32(rate), np.float32(l2), ends_in_call, np.int32(len(ends)), block, validation_block
            )
        arrays = [tensor.numpy() for tensor in points]
        for step, weights, biases, training_sums, validation_sums in zip(ends, *arrays, strict=False):
            reached, training = Head(weights, biases), _score(training_sums, block.places.shape[1])
            if not np.isfinite(training.cross_entropy):
                raise UserError(
                    f"the cross entropy is no longer finite after {step} steps; lower --learning_rate, it is {rate:g}"
                )
            if step == steps or not all(step % every for every in intervals):
                size = validation_block.places.shape[1]
                validation = (
                    _score(validation_sums, size) if size else score(reached, next(validation_passes), problem.device)
                )
                now = {"step": np.array(step), "weights": weights, "biases": biases}
                yield Progress(step, steps, training.accuracy, training.cross_entropy, validation, reached, (), now)
        done = ends[-1]


def _most_points(problem: Problem) -> int:
    """How many points one call may have, so that their heads, or what validates them, fit into a block's memory."""
    images = problem.validation
    layer_bytes = 4 * (images.cache.backbone.dimension + 1) * len(images.cache.labels)
    image_bytes = _PLACE_BYTES if batches.is_resident(images) else images.row_bytes
    return max(1, batches.BLOCK_BYTES // max(layer_bytes, problem.settings.validation_batch_size * image_bytes))


def _validation_blocks(problem: Problem, calls: Sequence[Sequence[int]], most_points: int) -> Iterable[Block]:
    """For each call, class-balanced draws for its points; empty batches if all validation images serve each point."""
    images, settings = problem.validation, problem.settings
    if settings.validation_batch_size == -1 or not len(images):
        none = np.empty((most_points, 0), np.int64)
        no_bottlenecks = np.zeros((1, images.cache.backbone.dimension), np.float32)
        block = Block(batches.to_device(no_bottlenecks, problem.device), none, none.astype(np.int32))
        return [block] * len(calls)

    def draw(step: int) -> np.ndarray:
        generator = np.random.default_rng([settings.seed, RandomStream.VALIDATION_BATCHES, step])
        return schedule.draw(images, generator, (settings.validation_batch_size,))

    padded = (_padded(np.stack([draw(step) for step in ends]), most_points) for ends in calls)
    return batches.blocks(images, padded, problem.device)


def _score(sums: np.ndarray, count: int) -> Score:
    """From one point's sums, [2], over a batch of `count` images."""
    hits, losses = sums.tolist()
    return Score(count, hits / count, losses / count)


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Repeats the last entry up to that length: XLA compiles again for each new shape."""
    return np.pad(array, [(0, max(0, length - len(array)))] + [(0, 0)] * (array.ndim - 1), mode="edge")


@functools.lru_cache(4)
def _graph(dimension: int, classes: int, dtype: tf.DType, validation_dtype: tf.DType, compiled: bool) -> _Descend:
    """The graph of all steps of a block in one call: calling it costs more than a small step does."""

    def block_spec(dtype: tf.DType) -> Block:
        places, label_ids = tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None, None], tf.int32)
        return Block(tf.TensorSpec([None, dimension], dtype), places, label_ids)

    @tf.function(
        autograph=False,
        jit_compile=compiled,
        input_signature=[
            _Layer(tf.TensorSpec([dimension, classes]), tf.TensorSpec([classes])),
            tf.TensorSpec([]),
            tf.TensorSpec([]),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([], tf.int32),
            block_spec(dtype),
            block_spec(validation_dtype),
        ],
    )
    def descend(
        layer: _Layer,
        rate: tf.Tensor,
        l2: tf.Tensor,
        ends: tf.Tensor,
        count: tf.Tensor,
        block: Block,
        validation_block: Block,
    ) -> tuple[_Layer, _Points]:
        scale = rate / tf.cast(tf.shape(block.places)[1], tf.float32)
        decay = 1 - rate * l2

        # Between the steps the weights lie as [C, D]: with few classes the products take half the time that way.
        def scores(weights: tf.Tensor, biases: tf.Tensor, block: Block, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            bottlenecks = tf.cast(tf.gather(block.bottlenecks, block.places[k]), tf.float32)
            return bottlenecks, tf.transpose(tf.matmul(weights, bottlenecks, transpose_b=True)) + biases

        def step(k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, ...]:
            bottlenecks, logits = scores(weights, biases, block, k)
            error = scale * head.loss(logits, block.label_ids[k])[1]
            weights = decay * weights - tf.matmul(error, bottlenecks, transpose_a=True)
            return k + 1, weights, biases - tf.reduce_sum(error, axis=0)

        def sums(weights: tf.Tensor, biases: tf.Tensor, block: Block, k: tf.Tensor) -> tf.Tensor:
            (_, logits), labels = scores(weights, biases, block, k), block.label_ids[k]
            hits = tf.cast(head.hits(logits, labels), tf.float32)
            return tf.stack([hits, tf.reduce_sum(head.loss(logits, labels)[0])])

        def until_point(
            p: tf.Tensor, k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor, *points: tf.TensorArray
        ) -> tuple[object, ...]:
            k, weights, biases = tf.while_loop(lambda k, *_: k < ends[p], step, (k, weights, biases))
            point = _Points(
                tf.transpose(weights),
                biases,
                sums(weights, biases, block, k - 1),
                sums(weights, biases, validation_block, p),
            )
            written = [array.write(p, value) for array, value in zip(points, point, strict=True)]
            return p + 1, k, weights, biases, *written

        shapes = [dimension, classes], [classes], [2], [2]
        arrays = [tf.TensorArray(tf.float32, tf.size(ends), element_shape=shape) for shape in shapes]
        start = tf.constant(0), tf.constant(0), tf.transpose(layer.weights), layer.biases, *arrays
        _, _, weights, biases, *arrays = tf.while_loop(lambda p, *_: p < count, until_point, start)
        return _Layer(tf.transpose(weights), biases), _Points(*(array.stack() for array in arrays))

    return descend
