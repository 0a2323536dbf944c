"""The service beside `extract` over the same photos, beside its own network in process, and beside a plain service."""

from __future__ import annotations

import contextlib
import functools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks import measure, networks, photos
from benchmarks.clients import Clients, Load, clients
from benchmarks.extract import GPU_FACTOR, Extraction
from benchmarks.measure import Options, Result
from cache import head as head_files
from cache.calibration import Calibration
from cache.errors import UserError
from cache.head import Head
from cache.layout import HEAD
from extract import backbones
from extract.engines import devices
from extract.service import network
from extract.service.settings import ServeSettings

SUITE = "serve"
PHOTOS = 600  # in a turn on a CPU; on a GPU as many more as in `extract`
PEER_PHOTOS = 192
CLIENTS = 64  # connections with one photo each
IN_A_REQUEST = 32
LARGE_CLIENTS = 8  # connections with IN_A_REQUEST photos each
IDLE_PHOTOS = 40
HALF_LOAD_PHOTOS = 300
HEADS, CLASSES = 1000, 10
NPY = "application/x-npy"
NOTE = f"note: the service shares this machine's processors with its {CLIENTS} clients"


def throughput(options: Options) -> Iterator[Result]:
    """Photos as fast as they are answered, one by one and many at once."""
    print(NOTE)
    sample, peer_sample = _sample(options, PHOTOS), photos.files(photos.sample(options, options.scaled(PEER_PHOTOS, 8)))
    auto = Extraction(options.scratch, networks.both(options.scratch)[0], sample, "auto")
    files = photos.files(sample)
    with contextlib.ExitStack() as running:
        asking = running.enter_context(clients())
        port, _ = running.enter_context(_service(_cache_dir(options), [_classifier(options)]))
        peer, _ = running.enter_context(_peer(_classifier(options)))
        one = Load(port, ["/v1/bottlenecks"], files, NPY, connections=CLIENTS)
        many = Load(port, ["/v1/bottlenecks"], files, NPY, IN_A_REQUEST, LARGE_CLIENTS)
        labels = Load(port, ["/v1/classify/classifier"], files, connections=CLIENTS)
        plain = Load(peer, ["/predict"], peer_sample, connections=CLIENTS)
        figures = measure.turns(
            {
                "one": lambda: _rate(asking, one),
                "extract": measure.rate(len(files), auto.run),
                "many": lambda: _rate(asking, many),
                "labels": lambda: _rate(asking, labels),
                "peer": lambda: _rate(asking, plain),
            },
            options.repeats,
        )
    extract = "extract of the same photos", figures["extract"]
    case = f"{CLIENTS} clients, 1 photo a request"
    yield Result(SUITE, case, "images/s", figures["one"], *extract, target=0.8)
    case = f"{LARGE_CLIENTS} clients, {IN_A_REQUEST} photos a request"
    yield Result(SUITE, case, "images/s", figures["many"], *extract, target=0.9)
    reference = "SavedModel in a plain service", figures["peer"]
    case = f"{CLIENTS} clients, labels of 1 photo"
    yield Result(SUITE, case, "images/s", figures["labels"], *reference, target=3.0)


def latency(options: Options) -> Iterator[Result]:
    """How long one photo takes on an idle service, and on one with half the load that it can bear."""
    files = photos.files(photos.sample(options, options.scaled(HALF_LOAD_PHOTOS, 8)))
    idle_files = photos.files(photos.sample(options, options.scaled(IDLE_PHOTOS, 8)))
    tails: list[float] = []
    halves: list[float] = []
    with contextlib.ExitStack() as running:
        asking = running.enter_context(clients())
        port, _ = running.enter_context(_service(_cache_dir(options), [_classifier(options)]))
        settings = ServeSettings(cache_dir=_cache_dir(options))
        loaded = network.load(settings, network.find(settings), running)
        contents = [Path(file).read_bytes() for file in idle_files]
        largest, engine = max(loaded.ladder.items())
        images = tf.stack([loaded.decode(contents[0])] * largest)

        def alone() -> float:
            return statistics.median(_seconds(_bottleneck, loaded, content) for content in contents)

        def batches() -> float:
            return 2 * statistics.median(_seconds(lambda: engine.start(images)()) for _ in range(5))

        paths = ["/v1/classify/classifier"]
        idle, full = Load(port, paths, idle_files), Load(port, paths, files, connections=CLIENTS)
        most = max(_rate(asking, full) for _ in range(2))
        half = Load(port, paths, files, connections=CLIENTS, rate=most / 2)

        def half_load() -> float:
            latencies = asking.run(half).latencies
            halves.append(statistics.median(latencies))
            tails.append(float(np.quantile(latencies, 0.99)))
            return tails[-1]

        figures = measure.turns(
            {
                "idle": lambda: statistics.median(asking.run(idle).latencies),
                "alone": alone,
                "half": half_load,
                "batches": batches,
            },
            options.repeats,
        )
    in_process = "decoding and network in process", figures["alone"]
    yield Result(SUITE, "median of 1 photo, idle", "s", figures["idle"], *in_process, target=1 / 1.5)
    case = "99th percentile at half load"
    median = "median at half load", halves[-options.repeats :]
    yield Result(SUITE, case, "s", figures["half"], *median)
    yield Result(SUITE, case, "s", figures["half"], f"two batches of {largest}", figures["batches"], target=1.0)


def many_heads(options: Options) -> Iterator[Result]:
    """One backbone with many heads, each request for another one, beside one head."""
    sample = photos.files(_sample(options, PHOTOS))
    folders = _heads(options, options.scaled(HEADS, 2))
    with contextlib.ExitStack() as running:
        asking = running.enter_context(clients())
        single, _ = running.enter_context(_service(_cache_dir(options), folders[:1]))
        several, _ = running.enter_context(_service(_cache_dir(options), folders))
        one = Load(single, [f"/v1/classify/{folders[0].name}"], sample, connections=CLIENTS)
        many = Load(several, [f"/v1/classify/{folder.name}" for folder in folders], sample, connections=CLIENTS)
        figures = measure.turns(
            {"many": lambda: _rate(asking, many), "one": lambda: _rate(asking, one)}, options.repeats
        )
    case = f"{len(folders):,} heads of {CLASSES} classes"
    yield Result(SUITE, case, "images/s", figures["many"], "one head", figures["one"], target=0.95)


def start(options: Options) -> Iterator[Result]:
    """From the command to the first request that would be answered."""

    def once() -> float:
        with _service(_cache_dir(options), [_classifier(options)]) as (_, seconds):
            return seconds

    figures = measure.turns({"start": once}, options.half_repeats, warm_up=False)
    yield Result(SUITE, "start to ready", "s", figures["start"])


CASES = (throughput, latency, many_heads, start)


def _sample(options: Options, count: int):  # type: ignore[no-untyped-def]
    factor = sum(GPU_FACTOR for name in devices.choose("auto") if name.startswith("GPU")) or 1
    return photos.sample(options, options.scaled(count * factor, least=8))


def _rate(asking: Clients, load: Load) -> float:
    return len(load.photos) / asking.run(load).seconds


def _seconds(work, *arguments) -> float:  # type: ignore[no-untyped-def]
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _bottleneck(loaded: network.Network, content: bytes) -> np.ndarray:
    return loaded.ladder[1].start(tf.constant(loaded.decode(content)[np.newaxis]))()


def _cache_dir(options: Options) -> Path:
    return options.scratch / "served"


@functools.cache
def _classifier(options: Options) -> Path:
    """A classifier of the photos, exported by a training in the folder that it returns."""
    sample = photos.sample(options, options.scaled(PHOTOS, least=60))
    output = options.scratch / "classifier"
    cached = ["--cache_dir", str(_cache_dir(options))]
    measure.command([sys.executable, "-m", "extract", "--image_dir", str(sample.image_dir), *cached])
    measure.command([sys.executable, "-m", "train", *cached, "--output_dir", str(output)])
    return output


def _heads(options: Options, count: int) -> list[Path]:
    """Folders with heads of the same backbone, and random weights: the speed does not depend on them."""
    _classifier(options)
    settings = ServeSettings(cache_dir=_cache_dir(options))
    backbone = network.find(settings).backbone
    assert backbone is not None
    generator, nothing = np.random.default_rng(0), np.zeros(0)
    calibration = Calibration(nothing.astype(np.int64), nothing.astype(np.int64), nothing)
    folders = []
    for number in range(count):
        weights = generator.normal(0, 0.1, (backbone.dimension, CLASSES)).astype(np.float32)
        labels = [f"class {label}" for label in range(CLASSES)]
        head = Head(backbone, labels, weights, np.zeros(CLASSES, np.float32), 1.0, calibration, None, 0, [])
        folders.append(options.scratch / "heads" / f"head-{number:04}")
        folders[-1].mkdir(parents=True)
        head_files.write(folders[-1] / HEAD, head)
    return folders


def _service(cache_dir: Path, heads: Sequence[Path]) -> contextlib.AbstractContextManager[tuple[int, float]]:
    """The service with its defaults."""
    flags = ["--cache_dir", str(cache_dir), "--module", backbones.DEFAULT, "--port", "0"]
    return _listening(["extract.serve", *flags, "--head", *map(str, heads)])


def _peer(classifier: Path) -> contextlib.AbstractContextManager[tuple[int, float]]:
    return _listening(["benchmarks.peer", str(classifier / "latest" / "saved_model")])


@contextlib.contextmanager
def _listening(module: list[str]) -> Iterator[tuple[int, float]]:
    """A module as a process of its own: its port, and the seconds until it was ready. Raises UserError if it fails."""
    began, lines = time.perf_counter(), []
    process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"open http://\S+:(\d+)/", line):
                yield int(found[1]), time.perf_counter() - began
                break
        else:
            raise UserError(f"python -m {module[0]} has ended early: {''.join(lines).strip()}")
    finally:
        process.terminate()
        process.communicate()
