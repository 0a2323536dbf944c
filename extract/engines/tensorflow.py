"""TensorFlow as the engine, on GPUs or the CPU."""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf

from cache.errors import UserError
from extract.backbones import Backbone
from extract.engines.engine import Engine, Fetch, of_pixels, pad


def build(backbone: Backbone, devices: list[str], batch_size: int) -> Engine:
    """A copy of the backbone on each of `devices`; a batch of up to len(devices) * `batch_size` is split among them.

    If that exhausts a device's memory, the engine warns and goes on with half as many images at once. `start` raises
    UserError if the memory cannot hold even a single image.
    """
    return _TensorFlow(backbone, devices, batch_size)


class _TensorFlow(Engine):
    name = "tensorflow"
    in_flight = 2  # one batch runs, and one waits behind it

    def __init__(self, backbone: Backbone, devices: list[str], batch_size: int) -> None:
        self.batch_size = batch_size
        self._images_at_once = batch_size
        self._devices = devices
        self._strategy = strategy = _strategy(devices)
        forward = of_pixels(backbone)

        @tf.function(autograph=False)
        def step(images: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return strategy.experimental_local_results(strategy.run(forward, args=(images,)))

        self._step = step

    @property
    def images_at_once(self) -> int:
        return self._images_at_once

    def start(self, images: tf.Tensor) -> Fetch:
        while True:
            size = len(self._devices) * self._images_at_once
            try:
                fetches = [self._start(images, first, size) for first in range(0, len(images), size)]
            except tf.errors.OpError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve()
            else:
                return lambda: np.concatenate([fetch() for fetch in fetches])

    def _start(self, images: tf.Tensor, first: int, size: int) -> Fetch:
        # On the CPU, because otherwise the first GPU would get the images of all.
        with tf.device("CPU:0"):
            some = images[first : first + size]
            parts = tf.split(pad(some, size), len(self._devices))
        replicated = self._strategy.experimental_distribute_values_from_function(
            lambda context: parts[context.replica_id_in_sync_group]
        )
        results = self._step(replicated)
        return lambda: np.concatenate([part.numpy() for part in results])[: len(some)]

    def _halve(self) -> None:
        """Halves the batches, with a warning. Raises UserError if they already are of one image."""
        memory, before = f"the memory of {' or '.join(self._devices)}", self._images_at_once
        if before == 1:
            raise UserError(
                f"{memory} cannot hold the network with a single image; use a smaller --module, or other --devices"
            )
        self._images_at_once = before // 2
        warnings.warn(f"{memory} cannot hold {before} images at once: going on with {before // 2}", stacklevel=1)


def _strategy(devices: list[str]) -> tf.distribute.Strategy:
    """Places a replica of the backbone on each of `devices`."""
    if len(devices) == 1:
        return tf.distribute.OneDeviceStrategy(f"/{devices[0]}")
    return tf.distribute.MirroredStrategy([f"/{name}" for name in devices])


def _is_out_of_memory(error: tf.errors.OpError) -> bool:
    """cuDNN has errors of its own for this, such as "No algorithm worked", which state the cause within the text."""
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return True
    return any(cause in error.message.lower() for cause in ("out of memory", "resource_exhausted", "alloc_failed"))
