"""The softmax layer that is trained: one matrix and a bias per class, its loss and the loss's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Head:
    """A trained layer: class c of a bottleneck x scores x . weights[:, c] + biases[c]."""

    weights: np.ndarray  # float32 [D, C]
    biases: np.ndarray  # float32 [C]


def initial(dimension: int, classes: int, generator: np.random.Generator) -> Head:
    """Where the tutorial starts: weights from a normal of standard deviation 0.001, cut off at two; biases zero."""
    weights = generator.standard_normal((dimension, classes))
    while (outside := np.abs(weights) > 2).any():
        weights[outside] = generator.standard_normal(np.count_nonzero(outside))
    return Head((weights * 0.001).astype(np.float32), np.zeros(classes, np.float32))


def logits(weights: tf.Tensor, biases: tf.Tensor, bottlenecks: tf.Tensor) -> tf.Tensor:
    """float32 [B, C] from bottlenecks [B, D], which may be float16."""
    return tf.matmul(tf.cast(bottlenecks, tf.float32), weights) + biases


def loss(scores: tf.Tensor, label_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The cross entropy of each image [B], in nats, and its derivative for the scores [B, C], both of `scores`' dtype.

    The derivative has a closed form, softmax - one hot. TensorFlow's one kernel for both is no faster, takes no float64
    on GPUs, and is not deterministic there.
    """
    logs = tf.nn.log_softmax(scores)
    labels = tf.one_hot(label_ids, tf.shape(scores)[1], dtype=scores.dtype)
    return -tf.reduce_sum(labels * logs, axis=1), tf.exp(logs) - labels


def hits(scores: tf.Tensor, label_ids: tf.Tensor) -> tf.Tensor:
    """The number of images whose top-1 class is theirs, an int64 scalar."""
    return tf.math.count_nonzero(tf.equal(tf.argmax(scores, axis=1, output_type=tf.int32), label_ids))
