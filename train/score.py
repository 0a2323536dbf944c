"""How good a head is, in two numbers: cheap enough for every point of a learning curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from train import head
from train.head import Head


@dataclass(frozen=True)
class Score:
    """On `count` > 0 images."""

    count: int
    accuracy: float  # the share of images whose top-1 class is theirs
    cross_entropy: float  # mean, in nats


def score(
    scored: Head,
    blocks: Iterable[tuple[tf.Tensor, tf.Tensor]],
    device: str,
    importance: np.ndarray | None = None,
) -> Score | None:
    """On blocks of bottlenecks [m, D] and label ids int32 [m]; None where these are no images.

    `importance` [C] is that of an image of each class in the cross entropy, 1 on average over the images.
    """
    count, hits, total = 0, 0, 0.0
    importance = np.ones(len(scored.biases)) if importance is None else importance
    with tf.device(device):
        for bottlenecks, label_ids in blocks:
            part = _add_up(scored.weights, scored.biases, importance, bottlenecks, label_ids)
            count, hits, total = count + len(label_ids), hits + int(part[0]), total + float(part[1])
    return Score(count, hits / count, total / count) if count else None


@tf.function(autograph=False, reduce_retracing=True)
def _add_up(
    weights: tf.Tensor, biases: tf.Tensor, importance: tf.Tensor, bottlenecks: tf.Tensor, label_ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Over a block: the images whose top-1 class is theirs, and the weighted cross entropy summed up."""
    scores = head.logits(weights, biases, bottlenecks)
    losses, _ = head.loss(scores, label_ids)
    return head.hits(scores, label_ids), tf.tensordot(tf.gather(importance, label_ids), tf.cast(losses, tf.float64), 1)
