"""Photos to bottlenecks on disk: ours beside Keras's own loader, and beside what decoding and the backbone allow."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras

from benchmarks import measure, networks, photos, synthetic
from benchmarks.measure import Contender, Options, Result
from benchmarks.networks import Network
from cache import index as indexes
from cache import layout
from cache.errors import UserError
from cache.photos import Photos
from cache.store import Store
from extract import engines
from extract.batches import batches
from extract.compute import compute
from extract.engines import devices
from extract.runner import Runner
from extract.settings import Settings
from extract.sources.folder import list_photos

SUITE = "extract"
KERAS_BATCH = 32
HELP_SECONDS = 0.3  # target
FILES = 1_000_000
NOTHING_TO_DO_MB = 1000  # target
# Photos in a turn on a CPU, (ours, Keras): so many that each turn takes a few seconds.
PHOTOS = {"EfficientNet-Lite0": (1500, 320), "Inception V3": (320, 96)}
GPU_FACTOR = 40  # times as many for each GPU, if the folder has them; the numbers above are a batch or two for a GPU
# Targets of the ratio to Keras: with the engine that `auto` chooses, and with TensorFlow.
TARGETS = {"EfficientNet-Lite0": (4.0, 1.8), "Inception V3": (4.0, 2.5)}


def end_to_end(options: Options) -> Iterator[Result]:
    """Whole extractions. The backbone is loaded and compiled beforehand, and so is Keras's model."""
    factor = sum(GPU_FACTOR for name in devices.choose("auto") if name.startswith("GPU")) or 1
    for network in networks.both(options.scratch):
        ours_count, keras_count = (options.scaled(count * factor, least=8) for count in PHOTOS[network.name])
        sample, keras_sample = photos.sample(options, ours_count), photos.sample(options, keras_count)
        auto = Extraction(options.scratch, network, sample, "auto")
        plain = Extraction(options.scratch, network, sample, "tensorflow")
        contenders: dict[str, Contender] = {
            "auto": measure.rate(len(sample), auto.run),
            "tensorflow": measure.rate(len(sample), plain.run),
            "Keras": measure.rate(len(keras_sample), functools.partial(_keras, keras_sample, network)),
            "decoding": measure.rate(len(sample), auto.decode),
            "network": measure.rate(len(sample), auto.forward),
        }
        if auto.engine.name == "tensorflow":
            del contenders["tensorflow"]
        figures = measure.turns(contenders, options.repeats)
        reference = "image_dataset_from_directory, predict"
        for engine, target in zip(("auto", "tensorflow"), TARGETS[network.name], strict=True):
            if engine in figures:
                case = f"{network.name}, --engine {engine}"
                yield Result(SUITE, case, "images/s", figures[engine], reference, figures["Keras"], target=target)
        yield Result(SUITE, f"{network.name}, decoding alone", "images/s", figures["decoding"])
        yield Result(SUITE, f"{network.name}, network alone", "images/s", figures["network"])
        speeds = zip(figures["decoding"], figures["network"], strict=True)
        # A GPU runs the backbone while the CPU decodes; on a CPU alone, each takes cores from the other.
        if auto.runner.devices[0].startswith("GPU"):
            name, bound = "min(decoding, network)", [min(decoding, forward) for decoding, forward in speeds]
        else:
            name = "1 / (1/decoding + 1/network)"
            bound = [1 / (1 / decoding + 1 / forward) for decoding, forward in speeds]
        case = f"{network.name}, --engine auto"
        yield Result(SUITE, case, "images/s", figures["auto"], name, bound, target=0.9)


def start(options: Options) -> Iterator[Result]:
    """The time of a command that only prints its help."""
    command = [sys.executable, "-m", "extract", "-h"]
    work = measure.seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    figures = measure.turns({"ours": work}, 2 * options.repeats)
    yield Result(SUITE, "python -m extract -h", "s", figures["ours"], target=HELP_SECONDS)


def nothing_to_do(options: Options) -> Iterator[Result]:
    """A run over an unchanged folder, beside a walk through it that reads the size and mtime of each file."""
    count = options.scaled(FILES, least=100)
    folder = options.scratch / "nothing_to_do"
    _write_files(folder / "files", count)
    settings = Settings(str(folder / "files"), str(folder / "cache"))
    store, listed = Runner(settings).loaded_store, list_photos(folder / "files")
    # A cache that names these files. The backbone never saw them: their bottlenecks are made up.
    synthetic.write(store.directory, 1000, store.backbone)
    synthetic.write_index(store.directory, listed.label_ids, store.backbone)
    index = replace(
        indexes.read(store.directory)[1],
        image_dir=str(listed.image_dir.resolve()),
        labels=listed.labels,
        paths=listed.paths,
        sizes=listed.sizes,
        mtimes=listed.mtimes,
        listed=listed.listed,
    )
    indexes.write(store.directory, store.backbone, index)
    index_written = (store.directory / layout.INDEX).stat().st_mtime_ns
    flags = ["--image_dir", settings.image_dir, "--cache_dir", settings.cache_dir]
    megabytes: list[float] = []

    def ours() -> float:
        spent, peak = measure.command([sys.executable, "-m", "extract", *flags])
        megabytes.append(peak)
        return spent

    walk = f"import os\nfor _, _, _, fd in os.fwalk({settings.image_dir!r}):\n for e in os.scandir(fd): e.stat()"
    figures = measure.turns(
        {"ours": ours, "walk": lambda: measure.command([sys.executable, "-c", walk])[0]}, options.half_repeats
    )
    assert (store.directory / layout.INDEX).stat().st_mtime_ns == index_written, "there was something to do"
    case = f"nothing to do, {count:,} files"
    yield Result(SUITE, case, "s", figures["ours"], "os.scandir and stat", figures["walk"])
    yield Result(SUITE, f"{case}, memory", "MB", megabytes, target=NOTHING_TO_DO_MB)
    shutil.rmtree(folder)


CASES = (end_to_end, start, nothing_to_do)


class Extraction:
    """Extractions of the same photos, each into a new folder, with an engine that is compiled once."""

    def __init__(self, scratch: Path, network: Network, sample: Photos, engine: str):
        settings = Settings(str(sample.image_dir), str(scratch / "prepared"), network.module, engine=engine)
        self.runner = Runner(settings)
        self._network, self._sample, self._scratch = network, sample, scratch
        with devices.running_in("auto", self.runner.devices) as precision:
            # An extraction takes hours and compiles once. In a turn of seconds, compiling would count too much.
            self.engine = self.runner.engine(precision)

    @property
    def _batch_size(self) -> int:
        return self.engine.batch_size * len(self.runner.devices)

    def run(self) -> None:
        """Decodes, runs the backbone and writes. Raises UserError for a photo that cannot be read."""
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory, _silent():
            store = Store(Path(directory), self.runner.loaded_store.backbone)
            work = store.missing(self._sample, self.runner.read_fingerprints)
            compute(self.runner, store, work)
        if work.rejected:
            path = next(iter(work.rejected.values())).path
            raise UserError(f"{path} cannot be read; give --image_dir without broken photos")

    def decode(self) -> None:
        """The decoding of `run` alone."""
        for _ in batches(
            self._sample.image_dir,
            self._sample.paths,
            self._network.backbone.image_size,
            batch_size=self._batch_size,
            threads=self.runner.settings.threads,
        ):
            pass

    def forward(self) -> None:
        """The backbone alone, on as many random images in memory."""
        with devices.running_in("auto", self.runner.devices):
            images = networks.random_images(self._network, self._batch_size)
            feed = itertools.repeat((None, images), math.ceil(len(self._sample) / self._batch_size))
            for _ in engines.run(self.engine, feed):
                pass


def _keras(sample: Photos, network: Network) -> None:
    """Keras's loader and `predict`, as its guides show. The vectors stay in memory."""
    with _silent():
        dataset = keras.utils.image_dataset_from_directory(
            sample.image_dir,
            labels=None,
            image_size=network.backbone.image_size,
            batch_size=KERAS_BATCH,
            shuffle=False,
        )
        network.model.predict(dataset, verbose=0)


def _write_files(folder: Path, count: int) -> None:
    """Makes `count` empty files in as many class folders as a synthetic cache has classes."""
    for number in range(synthetic.CLASSES):
        (folder / f"class {number}").mkdir(parents=True)
    for number in range(count):
        (folder / f"class {number % synthetic.CLASSES}" / f"photo-{number:09}.jpg").touch()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides the progress bars and lines that are meant for a user."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
