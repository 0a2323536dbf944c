"""The backbone on the devices of this machine, and where its bottlenecks belong in the cache.

Loading a backbone imports TensorFlow and takes seconds, so it happens only when something is missing.
"""

from __future__ import annotations

import functools
import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache import files, layout, process
from cache.errors import CacheError, UserError
from cache.layout import BackboneInfo
from cache.photos import Photos
from cache.store import Store, read_info
from extract import backbones
from extract.settings import Settings

if TYPE_CHECKING:
    from extract.backbones import Backbone
    from extract.engines import Engine


class Runner:
    """What an extraction runs the backbone with. Errors in flags are raised before the backbone is loaded."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._cache_dir = Path(settings.cache_dir)
        size = "x".join(map(str, settings.image_size)) if settings.image_size else "its own size"
        self._identity = f"{backbones.identity(settings.module)} at {size}"
        self._is_one_backbone = layout.directories(self._cache_dir) == [self._cache_dir]
        self.engine = functools.cache(self._build_engine)  # compiled once for all augmentations

    def find_store(self) -> Store | None:
        """The plain bottlenecks of this module, found without loading the backbone; None if they are not complete.

        Raises CacheError when `cache_dir` is itself the folder of another module.
        """
        for directory in layout.directories(self._cache_dir):
            try:
                info = read_info(directory)
            except CacheError:
                if self._is_one_backbone:
                    raise
                continue  # if it is this module's, filling it says so
            if info.identity == self._identity:
                return Store(directory, info) if layout.has_backbone(directory) else None
        if self._is_one_backbone:
            raise self._made_by_another()
        return None

    @cached_property
    def loaded_store(self) -> Store:
        """The plain bottlenecks of the backbone, which is loaded now and saved into the cache if it is not there.

        Raises UserError when the folder cannot be written, CacheError when `cache_dir` is itself the folder of another
        backbone.
        """
        info = self.info
        from extract.backbones import serving

        directory = self._cache_dir / f"{backbones.short_name(self.settings.module)}-{info.fingerprint}"
        if self._is_one_backbone:
            if read_info(self._cache_dir).fingerprint != info.fingerprint:
                raise self._made_by_another()
            directory = self._cache_dir
        files.make_writable(directory, "--cache_dir")
        if not layout.has_backbone(directory):
            serving.save(self.backbone, directory / layout.BACKBONE)
        return Store(directory, info)

    @cached_property
    def info(self) -> BackboneInfo:
        """What describes the backbone, which is loaded now."""
        backbone = self.backbone
        from extract import decode

        height, width = backbone.image_size
        what = f"{backbone.weights_digest} {height}x{width} {decode.PREPROCESSING}"
        return BackboneInfo(
            module=self.settings.module,
            identity=self._identity,
            fingerprint=hashlib.sha256(what.encode()).hexdigest()[:16],
            image_height=height,
            image_width=width,
            preprocessing=decode.PREPROCESSING,
            dimension=backbone.dimension,
        )

    def check_made(self, plain: Store) -> None:
        """Raises UserError if the backbone of this name is no longer the one that made the `plain` bottlenecks."""
        if self.loaded_store.directory != plain.directory:
            raise UserError(
                f"{self.settings.module} is no longer the network that made {plain.directory}; give another --cache_dir"
            )

    @cached_property
    def devices(self) -> list[str]:
        """The names of the devices that run the backbone, such as ["GPU:0", "GPU:1"]."""
        process.import_tensorflow()
        from extract.engines import devices

        return devices.choose(self.settings.devices)

    @cached_property
    def backbone(self) -> Backbone:
        """Raises UserError for a device or an engine that this machine does not have, before it loads anything."""
        devices = self.devices
        from extract import engines

        engines.choose(self.settings.engine, devices)
        return backbones.load(self.settings.module, self.settings.image_size, self.settings.show_bar)

    def read_fingerprints(self, photos: Photos, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the photos at `positions` (int64 [M]): the positions of the readable ones (int64 [K]), and the
        fingerprints of their bytes (uint64 [K])."""
        process.import_tensorflow()
        from extract import batches

        return batches.fingerprints(photos, positions, self.settings.threads)

    def _build_engine(self, precision: str) -> Engine:
        backbone, devices = self.backbone, self.devices
        from extract import engines

        name = engines.choose(self.settings.engine, devices)
        return engines.build(name, backbone, devices, precision=precision, batch_size=self.settings.batch_size)

    def _made_by_another(self) -> CacheError:
        made_by, module = read_info(self._cache_dir).module, self.settings.module
        other = f"{made_by} in another version, image size or preprocessing" if made_by == module else made_by
        return CacheError(
            f"{self._cache_dir} holds bottlenecks of {other}, not of {module} as it is asked for; give another "
            "--cache_dir, or the folder above this one"
        )
