"""What the service measures of itself, for Prometheus and for the verdict."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from extract import stages
from extract.engines.nvml import Gpus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counters and histograms of one service. The stages are those of `stages`."""

    def __init__(self, on_batch: Callable[[int, float], None]):
        self._registry = registry = CollectorRegistry()
        self._on_batch = on_batch
        counter = partial(Counter, registry=registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=registry)
        self.requests = counter("retrain_requests", "Requests answered", ["endpoint", "status"])
        self.images = counter("retrain_images", "Images that went through the network")
        self.rejections = counter("retrain_rejections", "Requests and images refused", ["reason"])
        self.request_seconds = seconds("retrain_request_seconds", "From a request's arrival to its answer")
        self.queueing = seconds(
            "retrain_queue_seconds", "From an image's arrival to the start of its batch, decoding included"
        )
        self.decoding = seconds("retrain_decode_seconds", "Decoding and resizing an image")
        self.network = seconds("retrain_network_seconds", "From the start of a batch to its bottlenecks")
        self.batches = Histogram("retrain_batch_images", "Images in a batch", buckets=_IMAGES, registry=registry)
        self._seconds = {stages.DECODING: 0.0, stages.NETWORK: 0.0}

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge that is read when it is asked for."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def watch_gpus(self, gpus: Gpus, names: list[str]) -> None:
        """Adds the use and the memory of each GPU, as far as the driver reports them."""
        use = Gauge(
            "retrain_gpu_use_ratio", "Share of the last second in which it ran", ["gpu"], registry=self._registry
        )
        memory = Gauge("retrain_gpu_memory_bytes", "Memory in use", ["gpu"], registry=self._registry)

        def latest(name: str, read: Callable[[object], float | None]) -> Callable[[], float]:
            def value() -> float:
                found = [read(reading) for reading in gpus.latest if reading.name == name]
                return float("nan") if not found or found[0] is None else found[0]

            return value

        for name in names:
            use.labels(name).set_function(latest(name, lambda r: None if r.use is None else r.use / 100))  # type: ignore[attr-defined]
            memory.labels(name).set_function(latest(name, lambda r: r.memory and r.memory[0]))  # type: ignore[attr-defined]

    def waited(self, stage: str, seconds: float) -> None:
        """Adds to the time for which the devices, or images for them, waited for a stage. Of one thread only."""
        self._seconds[stage] += seconds

    def done(self, images: int, seconds: float) -> None:
        """Counts a batch that came so long after the one before it, or after its own start."""
        self.images.inc(images)
        self._on_batch(images, seconds)

    def verdict(self, setup: stages.Setup) -> str:
        """Which stage holds up the others, and what would help."""
        if not sum(self._seconds.values()):
            return "no load yet: nothing has waited"
        return stages.verdict(self._seconds, setup)

    def text(self) -> bytes:
        """All of it in Prometheus's format."""
        return generate_latest(self._registry)
