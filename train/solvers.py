"""How the softmax layer is fitted. A solver is a generator: it trains, and yields its Progress now and then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from cache.errors import UserError
from train import head, stream
from train.head import Head
from train.stream import Images


@dataclass(frozen=True)
class Progress:
    """The state after `step` steps; accuracy and cross entropy are those of the last training batch."""

    step: int
    head: Head
    accuracy: float
    cross_entropy: float


def sgd(
    start: Head,
    images: Images,
    generator: np.random.Generator,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    interval: int,
) -> Iterator[Progress]:
    """Plain gradient descent on class-balanced batches, as the tutorial does it.

    Yields every `interval` steps and after the last. Raises UserError when the cross entropy stops being finite.
    """
    weights, biases = tf.constant(start.weights), tf.constant(start.biases)
    rate = tf.constant(learning_rate, tf.float32)
    largest = max(1, stream.BLOCK_BYTES // (stream.row_bytes(images.cache) * batch_size))
    done = 0
    for block in stream.draws(images, generator, batch_size, _lengths(steps, interval, largest)):
        weights, biases, accuracy, cross_entropy = _descend(
            weights, biases, rate, block.bottlenecks, block.places, block.label_ids
        )
        done += len(block.places)
        if not np.isfinite(cross_entropy):
            raise UserError(
                f"the cross entropy is no longer finite after {done} steps; lower --learning_rate, "
                f"it is {learning_rate:g}"
            )
        if done % interval == 0 or done == steps:
            yield Progress(done, Head(weights.numpy(), biases.numpy()), float(accuracy), float(cross_entropy))


@tf.function(autograph=False, reduce_retracing=True)
def _descend(
    weights: tf.Tensor,
    biases: tf.Tensor,
    rate: tf.Tensor,
    bottlenecks: tf.Tensor,
    places: tf.Tensor,
    label_ids: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """The K steps of a `stream.Block` in one call: calling the graph costs more than a small step does.

    Returns the new weights and biases, and the last batch's accuracy and cross entropy after its step.
    """

    def step(k: tf.Tensor, weights: tf.Tensor, biases: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = tf.gather(bottlenecks, places[k])
        for_weights, for_biases = head.gradient(weights, biases, batch, label_ids[k])
        return k + 1, weights - rate * for_weights, biases - rate * for_biases

    count = tf.shape(places)[0]
    _, weights, biases = tf.while_loop(lambda k, *_: k < count, step, (tf.constant(0), weights, biases))
    scores = head.logits(weights, biases, tf.gather(bottlenecks, places[-1]))
    losses, _ = head.loss(scores, label_ids[-1])
    return weights, biases, head.accuracy(scores, label_ids[-1]), tf.reduce_mean(losses)


def _lengths(steps: int, interval: int, largest: int) -> Iterator[int]:
    """The sizes of blocks that add up to `steps`, none above `largest`, one ending at each multiple of `interval`."""
    done = 0
    while done < steps:
        length = min(interval - done % interval, largest, steps - done)
        yield length
        done += length
