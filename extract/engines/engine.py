"""What an engine is, how batches go through it, and what the engines share."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from extract.backbones import Backbone

Fetch = Callable[[], "np.ndarray"]  # waits for the bottlenecks of a batch, float32 [n, D]
Tag = TypeVar("Tag")


class Engine(abc.ABC):
    """Runs a backbone."""

    name: str
    batch_size: int  # images for each device
    in_flight: int  # batches that may be started before the first is fetched

    @property
    def images_at_once(self) -> int:
        """Images on each device: `batch_size`, or less if the device's memory could not hold that many."""
        return self.batch_size

    @abc.abstractmethod
    def start(self, images: tf.Tensor) -> Fetch:
        """Starts a batch, uint8 [n, height, width, 3], where n is at most `batch_size` for each device."""


def run(engine: Engine, batches: Iterable[tuple[Tag, tf.Tensor]]) -> Iterator[tuple[Tag, np.ndarray]]:
    """Yields each batch's tag and bottlenecks, float32 [n, D], in order, while the devices run the next batches."""
    started: deque[tuple[Tag, Fetch]] = deque()
    for tag, images in batches:
        started.append((tag, engine.start(images)))
        if len(started) == engine.in_flight:
            yield _fetch_oldest(started)
    while started:
        yield _fetch_oldest(started)


def _fetch_oldest(started: deque[tuple[Tag, Fetch]]) -> tuple[Tag, np.ndarray]:
    tag, fetch = started.popleft()
    return tag, fetch()


def of_pixels(backbone: Backbone) -> Callable[[tf.Tensor], tf.Tensor]:
    """The backbone as a function of pixels, uint8 [N, H, W, 3], to be traced."""
    import tensorflow as tf

    return lambda images: backbone.features(tf.cast(images, tf.float32) / 255)


def pad(images: tf.Tensor, size: int) -> tf.Tensor:
    """Appends black images up to `size` in all.

    A GPU would compile and tune anew for any other shape. Besides, kernels that are chosen by the batch size would
    round a bottleneck differently depending on the images beside it.
    """
    import tensorflow as tf

    missing = size - len(images)
    return tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]) if missing else images
