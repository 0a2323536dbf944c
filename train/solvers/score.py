"""How good a head is, in two numbers: cheap enough for every point of a learning curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from train.solvers import head
from train.solvers.head import Head


@dataclass(frozen=True)
class Score:
    """On `count` > 0 images."""

    count: int
    accuracy: float  # the share of images whose top-1 class is their own
    cross_entropy: float  # mean, in nats


def score(
    scored: Head,
    blocks: Iterable[tuple[tf.Tensor, tf.Tensor]],
    device: str,
    class_weights: np.ndarray | None = None,
) -> Score | None:
    """The score on blocks of bottlenecks [m, D] and label ids int32 [m]; None if they hold no image.

    The cross entropy is that of each image times the entry of `class_weights` [C] for its class, which is 1 on average
    over the images.
    """
    count, hits, total = 0, 0, 0.0
    class_weights = np.ones(len(scored.biases)) if class_weights is None else class_weights
    with tf.device(device):
        for bottlenecks, label_ids in blocks:
            block_hits, block_total = _add_up(scored.weights, scored.biases, class_weights, bottlenecks, label_ids)
            count, hits, total = count + len(label_ids), hits + int(block_hits), total + float(block_total)
    return Score(count, hits / count, total / count) if count else None


@tf.function(autograph=False, reduce_retracing=True)
def _add_up(
    weights: tf.Tensor, biases: tf.Tensor, class_weights: tf.Tensor, bottlenecks: tf.Tensor, label_ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums over a block: images whose top-1 class is their own, and weighted cross entropies."""
    scores = head.logits(weights, biases, bottlenecks)
    losses, _ = head.loss(scores, label_ids)
    weights_of_images = tf.gather(class_weights, label_ids)
    return head.hits(scores, label_ids), tf.tensordot(weights_of_images, tf.cast(losses, tf.float64), 1)
