"""Photos to bottlenecks on disk: ours beside Keras's own way, and beside the bound that decoding and network set."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np

from benchmarks import measure, networks, photos
from benchmarks.measure import Contender, Options, Result
from benchmarks.networks import Network
from cache.errors import UserError
from extract import decode, devices, engines, fill, target
from extract.backbone import Backbone
from extract.engines import Engine
from extract.images import Images
from extract.settings import Settings

SUITE = "extract"
KERAS_BATCH = 32
HELP_SECONDS = 0.3

# The photos that one turn of each takes, so that all last a few seconds: (ours, Keras).
PHOTOS = {"EfficientNet-Lite0": (400, 128), "Inception V3": (160, 48)}
# Of the ratio to Keras: with the engine that auto takes, and with TensorFlow.
TARGETS = {"EfficientNet-Lite0": (4.0, 1.8), "Inception V3": (4.0, 2.5)}


def end_to_end(options: Options) -> Iterator[Result]:
    """The backbone is loaded and compiled beforehand, as Keras's model is."""
    for network in networks.both(options.scratch):
        ours_count, keras_count = (options.scaled(count, least=8) for count in PHOTOS[network.name])
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


CASES = (end_to_end, start)


class Extraction:
    """Runs `fill`, the loop of an extraction, into a new cache each time, by an engine that is compiled once."""

    def __init__(self, scratch: Path, network: Network, images: Images, engine: str):
        self.names = devices.choose("auto")
        self.engine_name = engines.choose(engine, self.names)
        self._network, self._images = network, images
        self._settings = Settings(str(images.image_dir), str(scratch / "prepared"), network.module_name)
        self._made_by, _ = target.prepare(self._settings, network.backbone)
        self._scratch = scratch
        self._compiled: tuple[Engine, int] | None = None  # with its batch size

    def run(self) -> None:
        arguments = self._settings, self.names, self.engine_name, self._network.backbone, self._made_by
        everything = np.arange(len(self._images))
        with tempfile.TemporaryDirectory(dir=self._scratch) as directory, self._compiled_once(), _silent():
            failed = fill.fill(*arguments, Path(directory), self._images, everything)
        if failed:
            raise UserError(
                f"{next(iter(failed.values())).path} cannot be read; give --image_dir without broken photos"
            )

    def decode(self) -> None:
        """What `run` waits for, without the network."""
        images, settings = self._images, self._settings
        _, batch_size = self._engine()
        for _ in decode.batches(
            images.image_dir, images.paths, self._network.backbone.image_size, batch_size, settings.threads
        ):
            pass

    def forward(self) -> None:
        """The network on as many images, without decoding."""
        engine, batch_size = self._engine()
        images = networks.random_images(self._network, batch_size)
        batches = itertools.repeat((None, images), -(-len(self._images) // batch_size))
        with devices.running_in("auto", self.names):
            for _ in engines.run(engine, batches):
                pass

    def _engine(self) -> tuple[Engine, int]:
        if self._compiled is None:
            self.run()
        assert self._compiled is not None
        return self._compiled

    def _compiled_once(self) -> contextlib.AbstractContextManager:
        """`fill` compiles the network on each call, once in a run of hours; in a run of seconds it would count."""
        compile_ = getattr(engines, self.engine_name)

        def lend(network: Backbone, devices_or_precision: Any, batch_size: int) -> Engine:
            if self._compiled is None:
                self._compiled = compile_(network, devices_or_precision, batch_size), batch_size
            return self._compiled[0]

        return mock.patch.object(engines, self.engine_name, lend)


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


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without progress bars and lines meant for a user."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
