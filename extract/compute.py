"""Decode, forward, write: the bottlenecks that a store lacks, each stage ahead of the next."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from cache import process
from cache.bar import bar
from cache.console import print
from cache.errors import UserError, first_line
from cache.photos import Photos
from cache.plain_path import plain
from cache.shard import Rows
from cache.store import Store
from cache.work import Work
from extract import engines, stages
from extract.batches import Batch, Unreadable, batches
from extract.engines import devices, nvml
from extract.runner import Runner
from extract.settings import Augmentation
from extract.sources.folder import have_changed
from extract.stages import Clocks

# A trace of everything would fill the memory, and the first batches, which compile and tune, are like no others.
UNTRACED = 10  # batches before the trace, or fewer in a short run
TRACED = 40  # batches

Item = TypeVar("Item")


def compute(runner: Runner, store: Store, work: Work, augmentation: Augmentation | None = None) -> None:
    """Commits the bottlenecks of `work` to `store`, except those that other extractions commit meanwhile.

    With an `augmentation`, the bottlenecks of the photos changed by it. Photos that cannot be read are rejected in
    `work`. Raises UserError when the cache cannot be written or a bottleneck cannot be stored.
    """
    settings, names, photos = runner.settings, runner.devices, work.photos
    title = f"augmentation {augmentation.number} of {settings.augment}" if augmentation else "extract"
    clocks = Clocks()
    with (
        devices.running_in(settings.precision, names) as precision,
        nvml.watching(names) as gpus,
        bar(desc=title, total=len(work.missing), unit=" photos", disable=not settings.show_bar) as progress,
    ):
        with clocks.clock(stages.STARTING):
            engine = runner.engine(precision)
        # The clock of writing runs for the rest of the loop, and for the last commit at its end.
        with clocks.clock(stages.WRITING), store.writer(photos, precision, engine.name) as writer:
            decoded = batches(
                photos.image_dir,
                photos.paths,
                (store.backbone.image_height, store.backbone.image_width),
                batch_size=engine.batch_size * len(names),
                threads=settings.threads,
                pieces=work.pieces(writer.ending),
                augmentation=augmentation,
            )
            readable = _reject_unreadable(clocks.waiting(stages.DECODING, decoded), work, progress)
            computed = engines.run(engine, ((batch, batch.images) for batch in readable))
            computed = clocks.waiting(stages.NETWORK, computed, first=stages.STARTING)
            if settings.trace:
                expected = math.ceil(len(work) / engine.batch_size / len(names))
                computed = _traced(clocks, computed, settings.trace, expected)
            for batch, features in computed:
                kept = np.flatnonzero(~_changed(runner, work, batch))
                at = batch.positions[kept]
                if len(at):
                    vectors = _narrow(features[kept], settings.dtype, photos, at)
                    facts = photos.paths.take(at), photos.sizes[at], photos.mtimes[at]
                    writer.append(Rows(*facts, batch.fingerprints[kept], vectors))
                progress.set_postfix_str(str(gpus), refresh=False)
                progress.total = len(work)
                progress.update(len(batch.positions))
    ran = f"{engine.name} in {precision} on {', '.join(names)}, batches of {engine.images_at_once}"
    prefix = f"{title}: " if augmentation else ""
    print(f"{prefix}{clocks.shares(len(work))} ({ran})")
    setup = stages.Setup(
        gpus=sum(name.startswith("GPU") for name in names),
        cores=process.cores(),
        threads=settings.threads,
        gpu_use=gpus.mean_use(),
        faster_precision=precision == "float32" and devices.precision("auto", names) != "float32",
        faster_engine=engine.name != "openvino" and names == ["CPU:0"],
    )
    print(stages.verdict(clocks.seconds, setup))
    if work.left_out:
        print(f"{work.left_out} photos were done by another extraction meanwhile")


def _reject_unreadable(decoded: Iterable[Batch | list[Unreadable]], work: Work, progress: tqdm) -> Iterator[Batch]:
    """Yields the batches, and rejects the photos in between that could not be decoded."""
    for item in decoded:
        if isinstance(item, Batch):
            yield item
        else:
            for unreadable in item:
                work.reject(unreadable.position, unreadable.reason, unreadable.retry)
            progress.update(len(item))


def _changed(runner: Runner, work: Work, batch: Batch) -> np.ndarray:
    """bool [n]: which photos of a batch are not the files that were listed. These are rejected, for this run.

    Their bottlenecks would be kept as those of the files that were there before, or that are there again.
    """
    changed, touched = have_changed(work.photos, batch.positions)
    if len(places := np.flatnonzero(touched)):
        # A new ctime alone may come of a chmod. What counts is whether the bytes that were decoded are still there.
        readable, fingerprints = runner.read_fingerprints(work.photos, batch.positions[places])
        same = dict(zip(readable.tolist(), fingerprints.tolist(), strict=True))
        for place in places.tolist():
            changed[place] = same.get(int(batch.positions[place])) != int(batch.fingerprints[place])
    for position in batch.positions[changed].tolist():
        work.reject(position, "changed while it was read", retry=True)
    return changed


def _traced(clocks: Clocks, items: Iterable[Item], directory: str, expected: int) -> Iterator[Item]:
    """Yields the `items`, of which `expected` are to come, while TensorFlow's profiler watches some of them."""
    iterator = iter(items)
    yield from itertools.islice(iterator, min(UNTRACED, expected // 4))
    with plain(directory) as path:
        with clocks.clock(stages.TRACING):
            tf.profiler.experimental.start(path)
        try:
            yield from itertools.islice(iterator, TRACED)
        finally:
            try:
                with clocks.clock(stages.TRACING):
                    tf.profiler.experimental.stop()
            except tf.errors.OpError as error:
                # Hours of extraction are worth more than their trace.
                warnings.warn(f"the trace could not be written to {directory}: {first_line(error)}", stacklevel=1)
    yield from iterator


def _narrow(features: np.ndarray, dtype: str, photos: Photos, positions: np.ndarray) -> np.ndarray:
    """Converts bottlenecks, float32 [n, D], to the `dtype` on disk. Raises UserError where a value does not fit."""
    with np.errstate(over="ignore"):
        vectors = features.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(bad):
        path = photos.image_dir / photos.paths[int(positions[bad[0]])]
        if np.isfinite(features[bad]).all():
            raise UserError(f"the bottleneck of {path} has values too large for float16; use --dtype float32")
        raise UserError(f"the bottleneck of {path} is not finite; use --precision float32, or another --module")
    return vectors
