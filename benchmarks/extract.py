"""Photos to bottlenecks on disk: ours beside Keras's own way, and beside the bound that decoding and network set."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from benchmarks import measure, networks, photos, synthetic
from benchmarks.measure import Contender, Options, Result
from benchmarks.networks import Network
from cache import store
from cache.errors import UserError
from extract import backbone, decode, devices, engines, fill, target
from extract.images import Images, list_images
from extract.settings import Settings

SUITE = "extract"
KERAS_BATCH = 32
HELP_SECONDS = 0.3
FILES = 1_000_000
NOTHING_TO_DO_MB = 1000
# The photos that one turn of each takes on a processor, so that all last a few seconds: (ours, Keras). For each GPU it
# is so many times as many, if the folder has them: fewer would be a batch or two.
GPU = 40
PHOTOS = {"EfficientNet-Lite0": (1500, 320), "Inception V3": (320, 96)}
# Of the ratio to Keras: with the engine that auto takes, and with TensorFlow.
TARGETS = {"EfficientNet-Lite0": (4.0, 1.8), "Inception V3": (4.0, 2.5)}


def end_to_end(options: Options) -> Iterator[Result]:
    """The backbone is loaded and compiled beforehand, as Keras's model is."""
    times = sum(GPU for name in devices.choose("auto") if name.startswith("GPU")) or 1
    for network in networks.both(options.scratch):
        ours_count, keras_count = (options.scaled(count * times, least=8) for count in PHOTOS[network.name])
        images = photos.sample(options, ours_count)
        auto = Extraction(options.scratch, network, images, "auto")
        plain = Extraction(options.scratch, network, images, "tensorflow")
        few = photos.sample(options, keras_count)
        contenders: dict[str, Contender] = {
            "auto": measure.rate(len(images), auto.run),
            "tensorflow": measure.rate(len(images), plain.run),
            "Keras": measure.rate(len(few), functools.partial(_keras, few, network)),
            "decoding": measure.rate(len(images), auto.decode),
            "network": measure.rate(len(images), auto.forward),
        }
        if auto.engine_name == "tensorflow":
            del contenders["tensorflow"]
        figures = measure.turns(contenders, options.repeats)
        reference = "image_dataset_from_directory, predict"
        for engine, aim in zip(("auto", "tensorflow"), TARGETS[network.name], strict=True):
            if engine in figures:
                case = f"{network.name}, --engine {engine}"
                yield Result(SUITE, case, "images/s", figures[engine], reference, figures["Keras"], aim)
        case = f"{network.name}, decoding alone"
        yield Result(SUITE, case, "images/s", figures["decoding"])
        case = f"{network.name}, network alone"
        yield Result(SUITE, case, "images/s", figures["network"])
        pairs = zip(figures["decoding"], figures["network"], strict=True)
        # On a GPU both go on at once; on a processor each takes cores from the other.
        on_gpu = auto.names[0].startswith("GPU")
        bound = [min(pair) if on_gpu else 1 / sum(1 / speed for speed in pair) for pair in pairs]
        case = f"{network.name}, --engine auto"
        name = "min(decoding, network)" if on_gpu else "1 / (1/decoding + 1/network)"
        yield Result(SUITE, case, "images/s", figures["auto"], name, bound, 0.9)


def start(options: Options) -> Iterator[Result]:
    """What every command costs before it does anything."""
    command = [sys.executable, "-m", "extract", "-h"]
    work = measure.seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    figures = measure.turns({"ours": work}, 2 * options.repeats)
    yield Result(SUITE, "python -m extract -h", "s", figures["ours"], target=HELP_SECONDS)


def nothing_to_do(options: Options) -> Iterator[Result]:
    """A run over an unchanged folder, beside walking through it and asking for each file's size and time."""
    count = options.scaled(FILES, least=100)
    folder = options.scratch / "nothing_to_do"
    _write_files(folder / "files", count)
    settings = Settings(str(folder / "files"), str(folder / "cache"), backbone.DEFAULT)
    made_by, directory = target.prepare(settings, backbone.load(backbone.DEFAULT))
    images = list_images(folder / "files")
    synthetic.write(directory, 1000, made_by)
    synthetic.write_index(directory, images.label_ids, made_by)
    view = {name: getattr(images, name) for name in ("labels", "paths", "sizes", "mtimes")}
    index = replace(store.read_index(directory)[1], image_dir=str(images.image_dir.resolve()), **view)
    store.write_index(directory, made_by, index)
    flags = ["--image_dir", settings.image_dir, "--cache_dir", settings.cache_dir]
    written = (directory / store.INDEX).stat().st_mtime_ns
    megabytes: list[float] = []

    def ours() -> float:
        spent, peak = measure.command([sys.executable, "-m", "extract", *flags])
        megabytes.append(peak)
        return spent

    walk = f"import os\nfor _, _, _, fd in os.fwalk({settings.image_dir!r}):\n for e in os.scandir(fd): e.stat()"
    figures = measure.turns(
        {"ours": ours, "walk": lambda: measure.command([sys.executable, "-c", walk])[0]}, -(-options.repeats // 2)
    )
    assert (directory / store.INDEX).stat().st_mtime_ns == written, "there was something to do"
    case = f"nothing to do, {count:,} files"
    yield Result(SUITE, case, "s", figures["ours"], "os.scandir and stat", figures["walk"])
    yield Result(SUITE, f"{case}, memory", "MB", megabytes, target=NOTHING_TO_DO_MB)
    shutil.rmtree(folder)


CASES = (end_to_end, start, nothing_to_do)


class Extraction:
    """Runs `fill`, the loop of an extraction, into a new cache each time, by an engine that is compiled once."""

    def __init__(self, scratch: Path, network: Network, images: Images, engine: str):
        self.names = devices.choose("auto")
        self.engine_name = engines.choose(engine, self.names)
        self._network, self._images = network, images
        self._settings = Settings(str(images.image_dir), str(scratch / "prepared"), network.module_name)
        self._made_by, _ = target.prepare(self._settings, network.backbone)
        self._scratch = scratch
        # `fill` compiles the network on each call, once in a run of hours; in a run of seconds it would count.
        build = functools.partial(engines.build, self.engine_name, network.backbone, self.names)
        self._engine = functools.cache(build)

    def run(self) -> None:
        arguments = self._settings, self.names, self._engine, self._made_by
        everything = np.arange(len(self._images))
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory, _silent():
            filled = fill.fill(*arguments, Path(directory), self._images, everything)
        if filled.rejected:
            raise UserError(
                f"{next(iter(filled.rejected.values())).path} cannot be read; give --image_dir without broken photos"
            )

    def decode(self) -> None:
        """What `run` waits for, without the network."""
        images, settings = self._images, self._settings
        at_once = self._engine(devices.precision("auto", self.names)).batch_size * len(self.names)
        for _ in decode.batches(
            images.image_dir, images.paths, self._network.backbone.image_size, at_once, settings.threads
        ):
            pass

    def forward(self) -> None:
        """The network on as many images, without decoding."""
        with devices.running_in("auto", self.names) as precision:
            engine = self._engine(precision)
            at_once = engine.batch_size * len(self.names)
            images = networks.random_images(self._network, at_once)
            batches = itertools.repeat((None, images), -(-len(self._images) // at_once))
            for _ in engines.run(engine, batches):
                pass


def _keras(images: Images, network: Network) -> None:
    """The way that Keras's guides show, vectors kept in memory."""
    with _silent():
        dataset = keras.utils.image_dataset_from_directory(
            images.image_dir,
            labels=None,
            image_size=network.backbone.image_size,
            batch_size=KERAS_BATCH,
            shuffle=False,
        )
        network.model.predict(dataset, verbose=0)


def _write_files(folder: Path, count: int) -> None:
    """`count` tiny files in as many classes as a made-up cache has."""
    for number in range(synthetic.CLASSES):
        (folder / f"class {number}").mkdir(parents=True)
    for number in range(count):
        (folder / f"class {number % synthetic.CLASSES}" / f"photo-{number:09}.jpg").touch()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without progress bars and lines meant for a user."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
