"""Decode, forward, write: the images that the cache is missing, each stage ahead of the next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cache import store
from cache.errors import UserError
from cache.shard import Rows
from extract import decode, devices, engines
from extract.backbone import Backbone
from extract.images import Images
from extract.monitor import Monitor
from extract.settings import Settings

ANOTHER_TRY = -1  # a time of modification that no file has: the next run reads the image again


def fill(
    settings: Settings,
    names: list[str],
    engine_name: str,
    network: Backbone,
    made_by: store.Module,
    directory: Path,
    images: Images,
    missing: np.ndarray,
) -> dict[int, store.Rejected]:
    """Commits the bottlenecks of `missing` (int64 [M], into `images`); returns those that could not be read.

    `names` are the devices that run `network`, by the engine `engine_name`.

    Raises UserError when the cache cannot be written or a bottleneck cannot be stored.
    """
    if not len(missing):
        return {}
    batch_size = settings.batch_size or (256 if names[0].startswith("GPU") else 32)
    rejected: dict[int, store.Rejected] = {}
    monitor = Monitor()

    def decoded() -> Iterator[tuple[decode.Batch, tf.Tensor]]:
        paths, at_once = images.paths.take(missing), batch_size * len(names)
        batches = decode.batches(images.image_dir, paths, network.image_size, at_once, settings.threads)
        for batch in monitor.waiting("decoding", batches):
            if isinstance(batch, decode.Batch):
                yield batch, batch.images
            else:
                for unreadable in batch:
                    position = int(missing[unreadable.position])
                    rejected[position] = _rejected(images, position, unreadable)
                bar.update(len(batch))

    with (
        devices.running_in(settings.precision, names) as precision,
        tqdm(total=len(missing), unit=" images", desc="extract") as bar,
    ):
        if engine_name == "openvino":
            engine = engines.openvino(network, precision, batch_size)
        else:
            engine = engines.tensorflow(network, names, batch_size)
        attributes = {**made_by.attributes(), "precision": precision, "engine": engine.name}
        with store.Writer(directory, attributes) as writer:
            for batch, features in monitor.waiting("the network", engines.run(engine, decoded())):
                with monitor.clock("writing"):
                    taken = missing[batch.positions]
                    vectors = _narrow(features, settings.dtype, images, taken)
                    facts = images.paths.take(taken), images.sizes[taken], images.mtimes[taken]
                    writer.append(Rows(vectors, *facts, batch.fingerprints))
                bar.update(len(taken))
    print(
        f"{monitor.verdict(len(missing))} ({engine.name} in {precision} on {', '.join(names)}, batches of {batch_size})"
    )
    return rejected


def _narrow(features: np.ndarray, dtype: str, images: Images, taken: np.ndarray) -> np.ndarray:
    """float32 [n, D] as they are stored, in `dtype`. Raises UserError where a value does not fit."""
    with np.errstate(over="ignore"):
        vectors = features.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        path = images.image_dir / images.paths[int(taken[bad[0]])]
        if np.isfinite(features[bad]).all():
            raise UserError(f"the bottleneck of {path} has values too large for float16; use --dtype float32")
        raise UserError(f"the bottleneck of {path} is not finite; use --precision float32, or another --module")
    return vectors


def _rejected(images: Images, position: int, unreadable: decode.Unreadable) -> store.Rejected:
    mtime = ANOTHER_TRY if unreadable.passing else int(images.mtimes[position])
    return store.Rejected(images.paths[position], int(images.sizes[position]), mtime, unreadable.reason)
