"""A request on its way through the service: its body, within the limits, and whether anybody still waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from extract.service.refused import Refused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from extract.service.admission import Ticket
    from extract.service.service import Service

_MOMENT = 2.0  # seconds


class Call:
    """One request. Its methods raise Refused for what is above the limits."""

    def __init__(self, service: Service, request: Request, arrived: float):
        self.service = service
        self.request = request
        self.arrived = arrived  # time.monotonic
        self.deadline = arrived + service.settings.deadline_seconds
        self.images = 0
        self.bytes = 0
        self.ticket: Ticket | None = None
        self._is_read = False  # whether the whole body has come
        self._watching: asyncio.Task[None] | None = None
        self.on_gone: Callable[[], object] = lambda: None  # called when the client has closed the connection

    @property
    def length(self) -> int:
        """The bytes that the body has according to its header; 0 if it does not say."""
        text = self.request.headers.get("content-length", "0")
        if not text.isdecimal():
            raise Refused(400, "the header Content-Length is no number", "malformed")
        return int(text)

    @property
    def content_type(self) -> str:
        """The media type, in small letters, without its parameters."""
        return self.request.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def body(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self._chunks()])

    async def files(self) -> list[tuple[str, bytes]]:
        """The files of a multipart body, in order: their names, and their contents."""
        settings = self.service.settings
        parser = MultiPartParser(
            self.request.headers,
            self._chunks(),
            max_files=settings.max_images,
            max_fields=settings.max_images,
            max_part_size=settings.max_image_mb << 20,
        )
        parser.spool_max_size = settings.max_request_mb << 20  # in memory, which admission has counted; never on disk
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if "Too many" in error.message:
                raise Refused(413, f"more parts than --max_images {settings.max_images}", "images") from None
            raise Refused(400, f"no multipart body: {error.message}", "malformed") from None
        uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return [(upload.filename or "", await upload.read()) for upload in uploads]

    def take_images(self, count: int) -> None:
        """Counts the images of this request."""
        settings = self.service.settings
        if count > settings.max_images:
            raise Refused(413, f"{count} images in one request are above --max_images {settings.max_images}", "images")
        if self.ticket and count > self.ticket.images:
            self.ticket.take(images=count - self.ticket.images)
        self.images = count

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        most = self.service.settings.max_request_mb << 20
        try:
            async for chunk in self.request.stream():
                self.bytes += len(chunk)
                if self.bytes > most:
                    raise too_large(self.service.settings.max_request_mb)
                if self.ticket and self.bytes > self.ticket.bytes:
                    self.ticket.take(bytes=self.bytes - self.ticket.bytes)
                if chunk:
                    yield chunk
        except ClientDisconnect:
            raise GoneError from None
        self._is_read = True
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self.on_gone()

    async def is_read(self) -> bool:
        """Whether the whole body has come, after a moment in which the rest of it is read and thrown away.

        Most clients send all of a body before they look for an answer. A connection that is closed while they do takes
        the answer with it.
        """
        if not self._is_read:
            with contextlib.suppress(TimeoutError, ClientDisconnect):
                # RuntimeError: all had come before, and whoever read it has stopped at its last piece.
                async with asyncio.timeout(_MOMENT):
                    with contextlib.suppress(RuntimeError):
                        async for _ in self.request.stream():
                            pass
                self._is_read = True
        return self._is_read

    def end(self) -> None:
        if self._watching:
            self._watching.cancel()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.arrived


class GoneError(Exception):
    """The client has closed the connection."""


def too_large(most_mb: int) -> Refused:
    return Refused(413, f"the body is above --max_request_mb {most_mb}", "request_bytes")
