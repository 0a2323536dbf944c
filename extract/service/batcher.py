"""Images to bottlenecks: decoded on all cores, and run in batches of what is there when a device is free.

Nothing waits for a batch to fill. While the devices work on a batch, more images gather; so batches grow with the load,
and an image that comes alone is run alone.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from extract.engines import Engine, Fetch
from extract.service.metrics import Metrics
from extract.service.refused import DeadError, Refused

STUCK = 10.0  # times as long as the slowest batch so far: the device will not come back
_LEAST_STUCK = 10.0  # seconds that any batch may take: a machine may pause


@dataclass(eq=False)
class _Item:
    content: bytes  # of an image file; emptied once it is decoded
    answer: asyncio.Future[np.ndarray]  # float32 [D]
    deadline: float  # on the clock time.monotonic
    arrived: float
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))  # uint8 [H, W, 3], once decoded

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.answer.done() or time.monotonic() > self.deadline


@dataclass(frozen=True, eq=False)
class _Running:
    fetch: Fetch
    rung: int
    items: Sequence[_Item]
    started: float


class Batcher:
    """Runs images of any number of requests through one network. `submit` is for the thread of the event loop."""

    def __init__(
        self,
        engines: Mapping[int, Engine],  # the ladder: by the images that each takes at once
        decode: Callable[[bytes], np.ndarray],  # raises tf.errors.InvalidArgumentError for what is no image
        threads: int,
        metrics: Metrics,
        on_death: Callable[[str], None],  # called once, in the thread of the event loop
    ):
        self._engines = dict(sorted(engines.items()))
        self._rungs = list(self._engines)
        self._decode = decode
        self._metrics = metrics
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(threads, "decode")
        self._decoding = 0
        self._ready: deque[_Item] = deque()
        self._unanswered: set[_Item] = set()  # of the thread of the event loop
        self._changed = threading.Condition()
        self._is_closed = False
        self.death: str | None = None
        self._slots = threading.Semaphore(max(engine.in_flight for engine in engines.values()))
        # An engine for smaller batches may bear fewer of them at once.
        self._slots_of = {rung: threading.Semaphore(engine.in_flight) for rung, engine in engines.items()}
        self._running: queue.SimpleQueue[_Running | None] = queue.SimpleQueue()
        self._current: _Running | None = None  # the one that is waited for
        self._slowest = 0.0  # seconds of a batch, from its start or the end of the one before
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("start batches", self._start), ("fetch batches", self._fetch))
        ]

    def open(self) -> None:
        """Runs a black image through each rung of the ladder, so that all is compiled, and then takes images."""
        height, width, channels = self._decode_shape()
        for rung, engine in self._engines.items():
            began = time.monotonic()
            engine.start(tf.zeros([rung, height, width, channels], tf.uint8))()
            self._slowest = max(self._slowest, time.monotonic() - began)
        for thread in self._threads:
            thread.start()

    def _decode_shape(self) -> tuple[int, int, int]:
        picture = tf.io.encode_png(tf.zeros([1, 1, 3], tf.uint8)).numpy()
        return self._decode(picture).shape

    def submit(self, content: bytes, deadline: float) -> asyncio.Future[np.ndarray]:
        """The bottleneck of an image file, float32 [D], to await; cancel it when nobody waits any more.

        It raises Refused where the image cannot be decoded or is not done by `deadline` (time.monotonic), DeadError
        where the engine has failed.
        """
        answer: asyncio.Future[np.ndarray] = self._loop.create_future()
        if self.death:
            answer.set_exception(DeadError(self.death))
            return answer
        item = _Item(content, answer, deadline, time.monotonic())
        self._unanswered.add(item)
        with self._changed:
            self._decoding += 1
        self._pool.submit(self._decoded, item)
        return answer

    @property
    def images(self) -> int:
        """How many images wait to be decoded or run."""
        return self._decoding + len(self._ready)

    def close(self) -> None:
        """Stops the threads once the batches that run are done. What still waits gets no answer."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def seconds_stuck(self) -> float:
        """For how long the current batch has exceeded what is allowed; 0 or less if it has not."""
        current = self._current
        if current is None:
            return 0.0
        return time.monotonic() - current.started - max(_LEAST_STUCK, STUCK * self._slowest)

    def die(self, reason: str) -> None:
        """Answers nothing from now on. Called in the thread of the event loop."""
        if self.death:
            return
        self.death = reason
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        for item in list(self._unanswered):  # wherever each is: no thread may ever come back to it
            self._settle(item, DeadError(reason))
        self._on_death(reason)

    def _decoded(self, item: _Item) -> None:
        """Decodes an item, in a thread of the pool, and makes it ready."""
        began, error = time.monotonic(), None
        try:
            if item.is_over:
                error = _too_late()
            else:
                item.pixels = self._decode(item.content)
                self._metrics.decoding.observe(time.monotonic() - began)
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as caught:
            error = Refused(422, f"the image cannot be decoded: {_first_words(caught)}", "image")
        except Exception as caught:  # such as too little memory: this image alone has failed
            error = Refused(500, f"the image cannot be decoded: {_first_words(caught)}", "decoding")
        item.content = b""
        with self._changed:
            self._decoding -= 1
            if error is None:
                self._ready.append(item)
            self._changed.notify()
        if error is not None:
            self._call(self._settle, item, error)

    def _start(self) -> None:
        """Starts batch after batch: as many images as are ready, up to the largest rung, as soon as there is a slot."""
        while True:
            began = time.monotonic()
            self._slots.acquire()
            if self._ready:
                self._metrics.waited("the network", time.monotonic() - began)
            items = self._take()
            if items is None:
                self._running.put(None)
                return
            rung = self._rungs[bisect_left(self._rungs, len(items))]
            images = tf.constant(np.stack([item.pixels for item in items]))
            self._slots_of[rung].acquire()
            started = time.monotonic()
            self._running.put(_Running(self._engines[rung].start(images), rung, items, started))
            self._metrics.batches.observe(len(items))
            for item in items:
                self._metrics.queueing.observe(started - item.arrived)

    def _take(self) -> list[_Item] | None:
        """What is ready, once anything is; None when the batcher is closed."""
        while True:
            with self._changed:
                began = time.monotonic()
                was_decoding = self._decoding > 0
                while not self._ready and not self._is_closed:
                    self._changed.wait()
                if was_decoding:
                    self._metrics.waited("decoding", time.monotonic() - began)
                if self._is_closed:
                    return None
                count = min(len(self._ready), self._rungs[-1])
                items = [self._ready.popleft() for _ in range(count)]
            live = []
            for item in items:
                if item.is_over:
                    self._call(self._settle, item, _too_late())
                else:
                    live.append(item)
            if live:
                return live

    def _fetch(self) -> None:
        """Waits for the batches in the order of their starts, and hands out their bottlenecks."""
        last = 0.0
        while (running := self._running.get()) is not None:
            self._current = running
            vectors = running.fetch()
            self._current = None
            self._slots_of[running.rung].release()
            self._slots.release()
            now = time.monotonic()
            seconds = now - max(last, running.started)
            last = now
            self._slowest = max(self._slowest, seconds)
            self._metrics.network.observe(now - running.started)
            self._call(self._hand_out, running.items, vectors, seconds)

    def _hand_out(self, items: Sequence[_Item], vectors: np.ndarray, seconds: float) -> None:
        for item, vector in zip(items, vectors, strict=True):
            self._settle(item, vector)
        self._metrics.done(len(items), seconds)

    def _settle(self, item: _Item, result: np.ndarray | Exception) -> None:
        self._unanswered.discard(item)
        if item.answer.done():
            return
        if isinstance(result, Exception):
            item.answer.set_exception(result)
        else:
            item.answer.set_result(result)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Runs one of the two threads. Whatever ends it ends the service: the devices' state is unknown."""
        try:
            work()
        except Exception as error:
            self._call(self.die, f"the network failed: {_first_words(error)}")

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


def _too_late() -> Refused:
    return Refused(503, "not done by --deadline_seconds; send fewer at once, or try again later", "deadline", 1)


def _first_words(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
