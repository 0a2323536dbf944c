"""How good a head is, in two numbers: cheap enough for every point of a learning curve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import tensorflow as tf

from train import head
from train.head import Head


@dataclass(frozen=True)
class Score:
    """On `count` > 0 images."""

    count: int
    accuracy: float  # the share of images whose top-1 class is theirs
    cross_entropy: float  # mean, in nats


def score(scored: Head, blocks: Iterable[tuple[tf.Tensor, tf.Tensor]], device: str) -> Score | None:
    """On blocks of bottlenecks [m, D] and label ids int32 [m]; None where these are no images."""
    count, hits, total = 0, 0, 0.0
    with tf.device(device):
        for bottlenecks, label_ids in blocks:
            part = _add_up(scored.weights, scored.biases, bottlenecks, label_ids)
            count, hits, total = count + len(label_ids), hits + int(part[0]), total + float(part[1])
    return Score(count, hits / count, total / count) if count else None


@tf.function(autograph=False, reduce_retracing=True)
def _add_up(
    weights: tf.Tensor, biases: tf.Tensor, bottlenecks: tf.Tensor, label_ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Over a block: the images whose top-1 class is theirs, and the cross entropy summed up."""
    scores = head.logits(weights, biases, bottlenecks)
    losses, _ = head.loss(scores, label_ids)
    return head.hits(scores, label_ids), tf.reduce_sum(tf.cast(losses, tf.float64))
