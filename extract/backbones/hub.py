"""Modules of TensorFlow Hub.

The library tensorflow_hub downloads too, but it takes an archive that ends too early for a whole one, shows no
progress, and waits ten minutes for the lock of a download that was killed. So this does it instead where modules are
sent over HTTP, into the same folders: what is in hub's cache serves both.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import tempfile
import urllib.parse
from pathlib import Path

from cache import files
from cache.errors import UserError
from extract.backbones.download import timeout, unreachable

_REMEDY = "set TFHUB_CACHE_DIR to a cache that has it"
_CHINA = "https://hub.tensorflow.google.cn/"  # hub's mirror in China, which answers no questions for archives
_CHINA_ARCHIVES = "https://gcs.tensorflow.google.cn/tfhub-modules/"


def download(handle: str, show_bar: bool) -> str:
    """The folder of a hub module, which is downloaded unless hub's own cache has it.

    Raises UnreachableError if the download fails. Then nothing is left that a later run would take for the module.
    """
    cache = os.environ.get("TFHUB_CACHE_DIR") or os.path.join(tempfile.gettempdir(), "tfhub_modules")
    load_format = os.environ.get("TFHUB_MODEL_LOAD_FORMAT") or "AUTO"
    if handle.startswith("gs://") or "://" in cache or load_format not in ("AUTO", "COMPRESSED"):
        return _resolve(handle)
    try:
        folder = Path(cache) / hashlib.sha1(handle.encode()).hexdigest()
        files.sweep([folder.parent], f"{'?' * len(folder.name)}.*")  # of all handles
        is_there = _holds_something(folder)
    except (OSError, ValueError) as error:
        raise unreachable(handle, error, _REMEDY) from error
    if not is_there:
        _fetch(handle, folder, show_bar)
    return str(folder)


def _fetch(handle: str, folder: Path, show_bar: bool) -> None:
    """Downloads a module into `folder`. Raises UnreachableError."""
    import http.client
    import urllib.error

    from extract.backbones import archive  # and with it what only a download needs

    try:
        with timeout():
            archive.fetch(_address(handle), folder, show_bar)
    except archive.CutOffError as error:
        raise unreachable(handle, error, "run again") from error
    except archive.ForeignError as error:
        raise unreachable(handle, error, "give the address of a TensorFlow Hub module") from error
    except (OSError, ValueError, http.client.HTTPException, UserError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise unreachable(handle, reason if isinstance(reason, Exception) else error, _REMEDY) from error
    _describe(handle, folder)


def _resolve(handle: str) -> str:
    """The place of a module according to the library itself; `gs://...` if it is remote and stays there."""
    import tensorflow as tf
    import tensorflow_hub as hub

    try:
        with timeout():
            place: str = hub.resolve(handle)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise unreachable(handle, error, _REMEDY) from error
    return place


def _holds_something(folder: Path) -> bool:
    """By which the library knows that a module was downloaded: it renames the folder once all is in it."""
    return folder.is_dir() and any(folder.iterdir())


def _address(handle: str) -> str:
    """The URL of a module's archive."""
    if handle.startswith(_CHINA):
        return f"{_CHINA_ARCHIVES}{handle.removeprefix(_CHINA)}.tar.gz"
    parts = urllib.parse.urlsplit(handle)
    question = [*urllib.parse.parse_qsl(parts.query), ("tf-hub-format", "compressed")]
    return parts._replace(query=urllib.parse.urlencode(question)).geturl()


def _describe(handle: str, folder: Path) -> None:
    """Writes beside `folder` what is in it, as the library does. Only people read that: its name is a checksum."""
    text = f"Module: {handle}\nDownload Time: {datetime.datetime.now()}"
    with contextlib.suppress(UserError):
        files.write(folder.with_name(f"{folder.name}.descriptor.txt"), text.encode())
