"""The head: where it starts, and the gradient of its loss."""

import numpy as np
import pytest
import tensorflow as tf

from train.solvers import head


def test_the_head_starts_as_the_tutorials():
    start = head.initial(300, 40, np.random.default_rng(0))
    assert start.weights.dtype == start.biases.dtype == np.float32
    assert not start.biases.any()
    assert np.abs(start.weights).max() <= 0.002
    # A normal cut off at two standard deviations keeps a standard deviation of 0.8796 of them.
    assert start.weights.std() == pytest.approx(0.0008796, rel=0.02)
    assert abs(start.weights.mean()) < 5 * 0.00088 / np.sqrt(start.weights.size)


def test_the_gradient_of_a_block_is_that_of_the_loss():
    generator = np.random.default_rng(2)
    scores = tf.constant(generator.normal(size=(9, 4)), tf.float32)
    label_ids = tf.constant(generator.integers(4, size=9), tf.int32)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        picked = tf.gather(tf.nn.log_softmax(scores), label_ids, batch_dims=1)
        total = -tf.reduce_sum(picked)
    losses, error = head.loss(scores, label_ids)
    np.testing.assert_allclose(losses, -picked, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(error, tape.gradient(total, scores), rtol=1e-5, atol=1e-6)
