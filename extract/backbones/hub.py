"""Modules of TensorFlow Hub."""

from __future__ import annotations

from extract.backbones.download import timeout, unreachable


def download(handle: str) -> str:
    """The folder of a hub module, which is downloaded unless hub's own cache has it.

    Raises UnreachableError if the download fails.
    """
    import tensorflow as tf
    import tensorflow_hub as hub

    try:
        with timeout():
            folder: str = hub.resolve(handle)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise unreachable(handle, error, "set TFHUB_CACHE_DIR to a cache that has it") from error
    return folder
