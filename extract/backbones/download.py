"""What the kinds of modules that are downloaded have in common."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from cache.errors import UserError, first_line
from extract.backbones.names import DEFAULT

SECONDS = 30.0  # without a byte, after which a download has failed


class UnreachableError(UserError):
    """A module that is in no local cache and cannot be downloaded."""


def unreachable(module: str, error: Exception, remedy: str) -> UnreachableError:
    """The error for a module whose download failed with `error`."""
    return UnreachableError(
        f"{module} cannot be downloaded ({first_line(error)}): use --module {DEFAULT}, which is built in, "
        f"or the path of a SavedModel downloaded elsewhere, or {remedy}"
    )


@contextlib.contextmanager
def timeout() -> Iterator[None]:
    """Limits how long a download may wait for its next bytes to SECONDS. Without it, it would wait forever."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
