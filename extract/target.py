"""Where a module's bottlenecks lie in a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cache import columns, command, store
from cache.errors import CacheError
from extract import backbone
from extract.settings import Distortion, Settings

if TYPE_CHECKING:
    from extract.backbone import Backbone


def find(settings: Settings) -> Path | None:
    """The folder of this module in the cache, told without loading the module; None where there is none.

    Raises CacheError when `cache_dir` is itself another module's folder.
    """
    cache_dir, identity = Path(settings.cache_dir), _identity(settings)
    found = next((d for d in store.directories(cache_dir) if store.module_of(d).identity == identity), None)
    if found is None and store.directories(cache_dir) == [cache_dir]:
        raise _made_by_another(cache_dir, settings)
    return found


def is_complete(directory: Path) -> bool:
    """Whether the network lies beside its bottlenecks, so that the trainer can export a classifier."""
    return (directory / store.BACKBONE / "saved_model.pb").exists()


def prepare(settings: Settings, network: Backbone) -> tuple[store.Module, Path]:
    """Makes the folder of `network` in the cache ready; returns what describes the network, and the folder.

    Raises UserError when it cannot be written, CacheError when `cache_dir` is itself another network's folder.
    """
    from extract import decode, serving

    height, width = network.image_size
    made_by = store.Module(
        module=settings.module,
        identity=_identity(settings),
        fingerprint=_fingerprint(network, decode.PREPROCESSING),
        image_height=height,
        image_width=width,
        preprocessing=decode.PREPROCESSING,
        dimension=network.dimension,
    )
    cache_dir = Path(settings.cache_dir)
    directory = cache_dir / f"{backbone.short_name(settings.module)}-{made_by.fingerprint}"
    if store.directories(cache_dir) == [cache_dir]:
        if store.module_of(cache_dir).fingerprint != made_by.fingerprint:
            raise _made_by_another(cache_dir, settings)
        directory = cache_dir
    command.make_writable(directory, "--cache_dir")
    if not is_complete(directory):
        serving.save(network, directory / store.BACKBONE)
    return made_by, directory


def version(directory: Path, plain: store.Module, distortion: Distortion) -> tuple[store.Module, Path]:
    """What describes a distorted version of the bottlenecks that `plain` made in `directory`; and its folder.

    The folder's name says how it was made, so that no two kinds of distortions ever meet in one.
    """
    made_by = store.distorted_module(plain, str(distortion))
    return made_by, directory / store.DISTORTED / f"{distortion.version}-{made_by.fingerprint}"


def other_versions(directory: Path, plain: store.Module, settings: Settings) -> list[Path]:
    """The folders of the distorted versions that were made in another way than `settings` say, or were begun so."""
    found = []
    for folder in store.begun_versions(directory):
        number = store.version_of(folder)
        if number and folder != version(directory, plain, settings.distortion(number))[1]:
            found.append(folder)
    return found


def drop(folder: Path) -> None:
    """Deletes a distorted version's folder, at once for all readers; what a kill leaves of it, a later run sweeps."""
    hidden = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{columns.TEMPORARY}")
    with contextlib.suppress(FileNotFoundError):  # another extraction was faster
        os.rename(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)  # or sweeps it


def _made_by_another(directory: Path, settings: Settings) -> CacheError:
    made_by = store.module_of(directory).module
    other = f"{made_by} in another version, image size or preprocessing" if made_by == settings.module else made_by
    return CacheError(
        f"{directory} holds bottlenecks of {other}, not of {settings.module} as it is asked for; give another "
        "--cache_dir, or the folder above this one"
    )


def _identity(settings: Settings) -> str:
    size = "x".join(map(str, settings.image_size)) if settings.image_size else "its own size"
    return f"{backbone.identity(settings.module)} at {size}"


def _fingerprint(network: Backbone, preprocessing: str) -> str:
    """What makes two bottlenecks comparable, in 16 hexadecimal digits."""
    height, width = network.image_size
    return hashlib.sha256(f"{network.weights_digest} {height}x{width} {preprocessing}".encode()).hexdigest()[:16]
