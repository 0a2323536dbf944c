"""The head: a softmax layer on bottlenecks, its loss and the loss's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True, eq=False)
class Head:
    """A softmax layer of C classes on bottlenecks of D values: P(c | x) = softmax(x @ weights + biases)[c]."""

    weights: np.ndarray  # float32 [D, C]
    biases: np.ndarray  # float32 [C]


def initial(dimension: int, classes: int, generator: np.random.Generator) -> Head:
    """The tutorial's first head: weights from N(0, 0.001^2) truncated at two standard deviations, biases zero."""
    weights = generator.standard_normal((dimension, classes))
    while (outside := np.abs(weights) > 2).any():
        weights[outside] = generator.standard_normal(np.count_nonzero(outside))
    return Head((weights * 0.001).astype(np.float32), np.zeros(classes, np.float32))


def logits(weights: tf.Tensor, biases: tf.Tensor, bottlenecks: tf.Tensor) -> tf.Tensor:
    """float32 [B, C] from bottlenecks [B, D], which may be float16."""
    return tf.matmul(tf.cast(bottlenecks, tf.float32), weights) + biases


def loss(scores: tf.Tensor, label_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The cross entropy of each image and its gradient with respect to the image's logits.

        loss_i = -log softmax(z_i)[y_i]    d loss_i / d z_i = softmax(z_i) - one_hot(y_i)

    `scores` z [B, C], `label_ids` y int32 [B]. Returns [B], in nats, and [B, C], both of the dtype of `scores`.
    TensorFlow's one kernel for both is no faster, takes no float64 on GPUs, and is not deterministic there.
    """
    log_probabilities = tf.nn.log_softmax(scores)
    labels = tf.one_hot(label_ids, tf.shape(scores)[1], dtype=scores.dtype)
    return -tf.reduce_sum(labels * log_probabilities, axis=1), tf.exp(log_probabilities) - labels


def hits(scores: tf.Tensor, label_ids: tf.Tensor) -> tf.Tensor:
    """How many images have their own class as the top-1 class: an int64 scalar."""
    return tf.math.count_nonzero(tf.equal(tf.argmax(scores, axis=1, output_type=tf.int32), label_ids))
