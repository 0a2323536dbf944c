"""The network of an extraction, loaded when there is something to run it on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cache import command, store
from extract import target
from extract.settings import Settings

if TYPE_CHECKING:
    from extract.fill import Filled


@dataclass(frozen=True)
class Loaded:
    """What the network makes, where that goes, and how it is run."""

    made_by: store.Module
    directory: Path  # its folder in the cache
    fill: Callable[..., Filled]  # (made_by, directory, images, missing, known, distortion)


def load(settings: Settings) -> Loaded:
    """Loads the backbone and makes its folder in the cache ready."""
    command.import_tensorflow()
    from extract import backbone, devices, engines, fill

    names = devices.choose(settings.devices)
    engine_name = engines.choose(settings.engine, names)
    network = backbone.load(settings.module, settings.image_size)
    made_by, directory = target.prepare(settings, network)
    # Compiled once for all versions.
    build = functools.cache(partial(engines.build, engine_name, network, names, batch_size=settings.batch_size))
    return Loaded(made_by, directory, partial(fill.fill, settings, names, build))
