"""Decode, forward, write: the images that the cache is missing, each stage ahead of the next."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import tensorflow as tf

from cache import command, store
from cache.bar import bar
from cache.errors import UserError
from cache.shard import Rows
from cache.writer import Writer
from extract import decode, devices, engines, monitor, nvml, share
from extract.engines import Engine
from extract.images import Images
from extract.settings import Distortion, Settings

ANOTHER_TRY = -1  # a time of modification that no file has: the next run reads the image again
# A trace of everything would fill the memory, and the first batches, which compile and tune, are like no others.
UNTRACED = 10  # batches before the trace, or fewer of a short run
TRACED = 40  # batches

Item = TypeVar("Item")


@dataclass(frozen=True)
class Filled:
    """What became of the missing images; the others were done by other extractions."""

    computed: int
    rejected: dict[int, store.Rejected]  # by position in the images: those that could not be read


def fill(
    settings: Settings,
    names: list[str],
    build_engine: Callable[[str], Engine],
    made_by: store.Module,
    directory: Path,
    images: Images,
    missing: np.ndarray,
    known: Iterable[str] = (),
    distortion: Distortion | None = None,
) -> Filled:
    """Commits the bottlenecks of `missing` (int64 [M], into `images`), but for what other extractions do meanwhile.

    `known` are the shards (file names) in which they were looked for before. `names` are the devices that run the
    network; `build_engine` makes the engine for the precision that they get. With a `distortion`, of the images
    distorted so.
    Raises UserError when the cache cannot be written or a bottleneck cannot be stored.
    """
    if not len(missing):
        return Filled(0, {})
    rejected: dict[int, store.Rejected] = {}
    work, clocks = share.Work(images, missing, directory, known), monitor.Monitor()
    title = f"version {distortion.version} of {settings.augment}" if distortion else "extract"

    def decoded() -> Iterator[tuple[decode.Batch, tf.Tensor]]:
        image_size, at_once = (made_by.image_height, made_by.image_width), engine.batch_size * len(names)
        pieces = work.pieces(writer.own_end)
        batches = decode.batches(
            images.image_dir, images.paths, image_size, at_once, settings.threads, pieces, distortion
        )
        for batch in clocks.waiting(monitor.DECODING, batches):
            if isinstance(batch, decode.Batch):
                yield batch, batch.images
            else:
                rejected.update((unreadable.position, _rejected(images, unreadable)) for unreadable in batch)
                shown.update(len(batch))

    with (
        devices.running_in(settings.precision, names) as precision,
        nvml.watching(names) as gpus,
        bar(desc=title, total=len(missing), unit=" images", disable=not settings.show_bar) as shown,
    ):
        with clocks.clock(monitor.STARTING):
            engine = build_engine(precision)
        attributes = {**made_by.attributes(), "precision": precision, "engine": engine.name}
        finished = clocks.waiting(monitor.NETWORK, engines.run(engine, decoded()), first=monitor.STARTING)
        if settings.trace:
            expected = math.ceil(len(missing) / engine.batch_size / len(names))
            finished = _traced(clocks, finished, settings.trace, expected)
        # The rest of the loop, and the last commit at its end.
        with clocks.clock(monitor.WRITING), Writer(directory, attributes) as writer:
            for batch, features in finished:
                taken = batch.positions
                vectors = _narrow(features, settings.dtype, images, taken)
                facts = images.paths.take(taken), images.sizes[taken], images.mtimes[taken]
                writer.append(Rows(*facts, batch.fingerprints, vectors))
                shown.set_postfix_str(str(gpus), refresh=False)
                shown.total = len(missing) - work.left_out
                shown.update(len(taken))
    setup = monitor.Setup(
        gpus=sum(name.startswith("GPU") for name in names),
        cores=command.cores(),
        threads=settings.threads,
        gpu_use=gpus.mean_use(),
        faster_precision=precision == "float32" != devices.precision("auto", names),
        faster_engine=engine.name != "openvino" and names == ["CPU:0"],
    )
    ran = f"{engine.name} in {precision} on {', '.join(names)}, batches of {engine.at_once()}"
    print(f"{title}: " * bool(distortion) + f"{clocks.shares(len(missing) - work.left_out)} ({ran})")
    print(monitor.verdict(clocks.seconds, setup))
    if work.left_out:
        print(f"{work.left_out} images were done by another extraction meanwhile")
    return Filled(len(missing) - work.left_out - len(rejected), rejected)


def _traced(clocks: monitor.Monitor, batches: Iterable[Item], directory: str, expected: int) -> Iterator[Item]:
    """Passes `batches` on, of which `expected` are to come, and has TensorFlow's profiler watch some of them."""
    iterator = iter(batches)
    yield from itertools.islice(iterator, min(UNTRACED, expected // 4))
    with clocks.clock(monitor.TRACING):
        tf.profiler.experimental.start(directory)
    try:
        yield from itertools.islice(iterator, TRACED)
    finally:
        try:
            with clocks.clock(monitor.TRACING):
                tf.profiler.experimental.stop()
        except tf.errors.OpError as error:
            # Hours of extraction are worth more than their trace.
            warnings.warn(f"the trace could not be written to {directory}: {error.message}", stacklevel=1)
    yield from iterator


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


def _rejected(images: Images, unreadable: decode.Unreadable) -> store.Rejected:
    position = unreadable.position
    mtime = ANOTHER_TRY if unreadable.passing else int(images.mtimes[position])
    return store.Rejected(images.paths[position], int(images.sizes[position]), mtime, unreadable.reason)
