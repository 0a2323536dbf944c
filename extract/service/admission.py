"""Who may come in: by the images that wait and the bytes that are in memory, before a body is read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from extract.service.refused import Refused
from extract.service.settings import ServeSettings

_LONGEST = 60  # seconds of Retry-After


class Ticket:
    """What one request has taken of the room that there is."""

    def __init__(self, admission: Admission):
        self._admission = admission
        self.images = 0
        self.bytes = 0

    def take(self, images: int = 0, bytes: int = 0) -> None:
        """Takes more. Raises Refused where there is no room."""
        admission = self._admission
        if images and admission.images + images > admission.most_images:
            raise admission.full("images", f"{admission.images} images wait already, of at most --max_waiting")
        if bytes and admission.bytes + bytes > admission.most_bytes:
            raise admission.full("bytes", "too many bytes wait already, of at most --max_waiting_mb")
        self.images += images
        self.bytes += bytes
        admission.images += images
        admission.bytes += bytes


class Admission:
    """The room for requests. Used from the thread of the event loop only."""

    def __init__(self, settings: ServeSettings):
        self.most_images = settings.max_waiting
        self.most_bytes = settings.max_waiting_mb << 20
        self.requests = 0
        self.images = 0
        self.bytes = 0
        self._rate = 0.0  # images a second, while there was work

    @contextlib.contextmanager
    def entering(self, length: int) -> Iterator[Ticket]:
        """A place for a request whose body has `length` bytes, as far as it says so, and at least one image.

        Raises Refused where there is no room.
        """
        ticket = Ticket(self)
        ticket.take(images=1, bytes=length)
        self.requests += 1
        try:
            yield ticket
        finally:
            self.requests -= 1
            self.images -= ticket.images
            self.bytes -= ticket.bytes

    def done(self, images: int, seconds: float) -> None:
        """Learns the rate from a batch that came so long after the one before it, or after its own start."""
        rate = images / max(seconds, 1e-6)
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate

    def full(self, reason: str, message: str) -> Refused:
        seconds = self.images / self._rate if self._rate else 1
        return Refused(429, f"{message}; try again later", reason, min(_LONGEST, max(1, math.ceil(seconds))))
