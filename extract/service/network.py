"""The backbone for the service: found in the cache or by name, loaded, and compiled for a ladder of batch sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import layout, process, reader
from cache.errors import UserError
from cache.layout import BackboneInfo
from cache.reader import Cache
from cache.store import read_info
from extract import backbones, stages
from extract.runner import Runner
from extract.service.settings import ServeSettings

if TYPE_CHECKING:
    from extract.engines import Engine
    from extract.engines.nvml import Gpus


@dataclass(frozen=True)
class Found:
    """What a cache says of the backbone, before anything is loaded."""

    module: str
    image_size: tuple[int, int] | None  # None: the module's own
    directory: Path | None  # of its bottlenecks; None: the cache has none
    backbone: BackboneInfo | None  # that made them


def find(settings: ServeSettings) -> Found:
    """The backbone that `settings` mean. Raises UserError where the cache has several and none is named."""
    cache_dir = settings.cache_dir
    infos = {directory: read_info(directory) for directory in layout.directories(cache_dir)}
    fitting = {d: info for d, info in infos.items() if settings.module in (None, info.module)}
    if len(fitting) > 1:
        names = ", ".join(f"{info.module} ({directory.name})" for directory, info in fitting.items())
        raise UserError(f"{cache_dir} has bottlenecks of several backbones: {names}; give --module, or one's folder")
    if not fitting:
        return Found(settings.module or backbones.DEFAULT, None, None, None)
    [(directory, info)] = fitting.items()
    size = None if info.identity.endswith("its own size") else (info.image_height, info.image_width)
    return Found(info.module, size, directory, info)


@dataclass(frozen=True, eq=False)
class Network:
    """A backbone that is compiled and ready to run."""

    backbone: BackboneInfo
    ladder: dict[int, Engine]  # by images in a batch, ascending powers of two
    decode: Callable[[bytes], np.ndarray]  # an image file to uint8 [H, W, 3]; raises tf.errors.InvalidArgumentError
    gpus: Gpus
    gpu_names: list[str]
    setup: stages.Setup
    ran: str  # engine, precision and devices, in words
    directory: Path | None  # in the cache; None: it has none for this backbone
    cache: Cache | None  # of bottlenecks by this backbone


def load(settings: ServeSettings, found: Found, open_until_the_end: contextlib.ExitStack) -> Network:
    """Loads the backbone. Raises UserError, also where it is no longer the one that made the bottlenecks."""
    extraction = settings.extraction(found.module, found.image_size)
    runner = Runner(extraction)
    import tensorflow as tf

    from extract import engines
    from extract.decode import preprocess
    from extract.engines import devices, nvml

    tf.get_logger().setLevel("ERROR")  # it takes the shapes of the ladder, each traced once, for a mistake
    names, info = runner.devices, runner.info
    if found.backbone and found.backbone.fingerprint != info.fingerprint:
        raise UserError(
            f"{found.module} is no longer the network that made {found.directory}; give another --cache_dir, or "
            "another --module"
        )
    # A training needs the backbone in the cache.
    directory = runner.loaded_store.directory if settings.corrections else found.directory
    precision = open_until_the_end.enter_context(devices.running_in(settings.precision, names))
    gpus = open_until_the_end.enter_context(nvml.watching(names))
    name = engines.choose(settings.engine, names)

    def build(batch_size: int | None) -> Engine:
        return engines.build(name, runner.backbone, names, precision=precision, batch_size=batch_size)

    largest = build(settings.batch_size)
    sizes = [1 << power for power in range((largest.batch_size - 1).bit_length())]
    built = [*(build(size) for size in sizes if size < largest.batch_size), largest]
    shape = info.image_height, info.image_width

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def pixels(encoded: tf.Tensor) -> tf.Tensor:
        return preprocess(encoded, *shape)

    concrete = pixels.get_concrete_function()

    def decode(content: bytes) -> np.ndarray:
        with tf.device("CPU:0"):
            return concrete(tf.constant(content)).numpy()

    return Network(
        info,
        {len(names) * engine.batch_size: engine for engine in built},
        decode,
        gpus,
        [name for name in names if name.startswith("GPU:")],
        stages.Setup(
            gpus=sum(name.startswith("GPU") for name in names),
            cores=process.cores(),
            threads=extraction.threads,
            faster_precision=precision == "float32" and devices.precision("auto", names) != "float32",
            faster_engine=name != "openvino" and names == ["CPU:0"],
        ),
        f"{name} in {precision} on {', '.join(names)}",
        directory,
        reader.open(found.directory) if found.directory and (found.directory / layout.INDEX).exists() else None,
    )
