"""The operations of the service. Every protocol calls these, and nothing else computes anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cache.layout import BackboneInfo
from cache.reader import Cache
from extract import stages
from extract.service import images
from extract.service.admission import Admission
from extract.service.corrections import Corrections
from extract.service.heads import Heads, Loaded
from extract.service.metrics import Metrics
from extract.service.refused import Refused
from extract.service.settings import ServeSettings
from extract.service.training import Training

if TYPE_CHECKING:
    from extract.engines.nvml import Gpus
    from extract.service.batcher import Batcher
    from extract.service.network import Network

LOADING, READY, DRAINING, DEAD = "loading", "ready", "draining", "dead"
Vectors = list["np.ndarray | Refused"]  # of each image float32 [D], or why there is none


@dataclass(frozen=True, eq=False)
class Answer:
    """What a head says of one image."""

    probabilities: np.ndarray  # float32 [C]
    bottleneck: np.ndarray  # float32 [D]


class Service:
    """One backbone and its heads. Used from the thread of the event loop."""

    def __init__(self, settings: ServeSettings, heads: Heads):
        self.settings = settings
        self.heads = heads
        self.admission = Admission(settings)
        self.metrics = Metrics(self.admission.done)
        self.metrics.watch("retrain_waiting_images", "Images accepted and not answered", lambda: self.admission.images)
        self.metrics.watch("retrain_waiting_bytes", "Bytes of bodies in memory", lambda: self.admission.bytes)
        self.state = LOADING
        self.death: str | None = None  # why the service ends
        self.batcher: Batcher | None = None  # once it is ready
        self.backbone: BackboneInfo | None = None
        self._setup: stages.Setup | None = None
        self._gpus: Gpus | None = None
        self.ran = ""  # engine, precision and devices, in words
        self.directory: Path | None = None  # of the backbone in the cache
        self.cache: Cache | None = None  # None while there are no bottlenecks of photos
        self.corrections = Corrections(settings.corrections) if settings.corrections else None
        self.training = Training(self.corrections, heads) if self.corrections else None

    def begin(self, network: Network, batcher: Batcher) -> None:
        """From now on requests are answered, unless the end has come already."""
        self.backbone, self.batcher = network.backbone, batcher
        self.directory, self.cache = network.directory, network.cache
        self._setup, self._gpus, self.ran = network.setup, network.gpus, network.ran
        if self.state == LOADING:
            self.state = READY

    def verdict(self) -> str:
        """Where the time goes, and what would help."""
        if self._setup is None or self._gpus is None:
            return "nothing has been answered"
        return self.metrics.verdict(replace(self._setup, gpu_use=self._gpus.mean_use()))

    @property
    def ready_backbone(self) -> BackboneInfo:
        """Raises Refused while the service is loading or ending."""
        if self.state == LOADING or self.backbone is None:
            raise Refused(503, "the network is still being loaded; try again", "loading", 2)
        if self.state != READY:
            raise Refused(503, "this service is about to end; try another, or later", self.state, 5)
        return self.backbone

    async def bottlenecks(self, contents: Sequence[bytes], deadline: float) -> Vectors:
        """The bottleneck of each image file, float32 [D], or why there is none. `deadline` is on time.monotonic."""
        _ = self.ready_backbone
        assert self.batcher is not None
        answers: list[asyncio.Future[np.ndarray] | Refused] = []
        try:
            for content in contents:
                problem = self.problem(content)
                answers.append(problem if problem else self.batcher.submit(content, deadline))
            found: Vectors = []
            for answer in answers:
                try:
                    found.append(answer if isinstance(answer, Refused) else await answer)
                except Refused as refused:
                    found.append(refused)
        finally:
            for answer in answers:
                if isinstance(answer, asyncio.Future):
                    answer.cancel()
        for one in found:
            if isinstance(one, Refused):
                self.metrics.rejections.labels(one.reason).inc()
        return found

    async def classify(
        self, name: str, contents: Sequence[bytes], deadline: float
    ) -> tuple[Loaded, list[Answer | Refused]]:
        """What the head `name` says of each image file, or why it says nothing; with the head that answered.

        Raises Refused where there is no such head.
        """
        self.heads.find(name)
        vectors = await self.bottlenecks(contents, deadline)
        loaded = self.heads.find(name)  # which may be a newer one now
        rows = [vector for vector in vectors if not isinstance(vector, Refused)]
        if not rows:
            return loaded, list(vectors)  # type: ignore[arg-type]
        # A matrix product of a few microseconds for each image.
        answers = iter(zip(loaded.head.probabilities(np.stack(rows)), rows, strict=True))
        return loaded, [one if isinstance(one, Refused) else Answer(*next(answers)) for one in vectors]

    def limits(self) -> dict[str, Any]:
        """What a request may hold, for whoever asks."""
        settings = self.settings
        return {
            "max_images": settings.max_images,
            "max_request_mb": settings.max_request_mb,
            "max_image_mb": settings.max_image_mb,
            "max_megapixels": settings.max_megapixels,
            "deadline_seconds": settings.deadline_seconds,
        }

    async def one_bottleneck(self, content: bytes) -> np.ndarray:
        """The bottleneck of one image file, float32 [D], for work that no request waits for. Raises Refused."""
        [found] = await self.bottlenecks([content], time.monotonic() + self.settings.deadline_seconds)
        if isinstance(found, Refused):
            raise found
        return found

    def labels(self) -> list[str]:
        """The classes that the heads and the cache know."""
        known = [label for loaded in self.heads.by_name.values() for label in loaded.head.labels]
        return list(dict.fromkeys([*known, *(self.cache.labels if self.cache else ())]))

    def problem(self, content: bytes) -> Refused | None:
        """Why an image file is not even decoded; None if it is."""
        if len(content) > self.settings.max_image_mb << 20:
            return Refused(413, f"an image of {len(content):,} bytes is above --max_image_mb", "image_bytes")
        try:
            pixels = images.pixels(content)
        except ValueError as error:
            return Refused(422, str(error), "image")
        if pixels > self.settings.max_megapixels * 1_000_000:
            return Refused(413, f"an image of {pixels:,} pixels is above --max_megapixels", "pixels")
        return None
