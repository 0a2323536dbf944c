"""Who runs the network. An engine takes a batch of images and gives back how to fetch its bottlenecks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
import tensorflow as tf

from extract import devices
from extract.backbone import Backbone

Fetch = Callable[[], np.ndarray]  # waits for the bottlenecks of a batch, float32 [n, D]
Engine = Callable[[tf.Tensor], Fetch]  # starts on images, uint8 [n, height, width, 3]
Tag = TypeVar("Tag")

IN_FLIGHT = 2  # batches on the devices at once: one running, one waiting behind it


def tensorflow(backbone: Backbone, names: list[str], batch_size: int) -> Engine:
    """The network on each of the devices `names`, sharing batches of up to len(names) * `batch_size`."""
    strategy = devices.strategy(names)

    @tf.function(autograph=False)
    def step(images: tf.Tensor) -> tf.Tensor:
        def forward(part: tf.Tensor) -> tf.Tensor:
            return backbone.features(tf.cast(part, tf.float32) / 255)

        return strategy.experimental_local_results(strategy.run(forward, args=(images,)))

    def engine(images: tf.Tensor) -> Fetch:
        count = len(images)
        # Every batch full: a shape of its own would be compiled and tuned anew on a GPU, and kernels chosen by the
        # batch's size would round a vector differently depending on which images came with it.
        padding = len(names) * batch_size - count
        parts = tf.split(tf.pad(images, [[0, padding], [0, 0], [0, 0], [0, 0]]), len(names))
        values = strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )
        results = step(values)
        return lambda: np.concatenate([part.numpy() for part in results])[:count]

    return engine


def run(engine: Engine, batches: Iterable[tuple[Tag, tf.Tensor]]) -> Iterator[tuple[Tag, np.ndarray]]:
    """Each batch's tag and bottlenecks, in order; the devices work on the next batch while this one is taken."""
    flying: list[tuple[Tag, Fetch]] = []
    for tag, images in batches:
        flying.append((tag, engine(images)))
        if len(flying) == IN_FLIGHT:
            tag, fetch = flying.pop(0)
            yield tag, fetch()
    for tag, fetch in flying:
        yield tag, fetch()
