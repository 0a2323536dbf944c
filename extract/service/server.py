"""The web server: a socket, signals, and connections that must not stay open for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cache.errors import UserError, first_line

_HEADER_SECONDS = 15.0  # in which a request's headers must be there, from its connection or from its first byte
_KEEP_ALIVE_SECONDS = 60  # between two requests on one connection


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the address is taken or is none of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(2048)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {first_line(error)}; choose another --port or --host"
        ) from None
    return found


def address(listening: socket.socket, host: str) -> str:
    """Where a browser on this machine finds the service."""
    name = "localhost" if host in ("0.0.0.0", "::", "") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/"


class Server(uvicorn.Server):
    """uvicorn's server, which leaves SIGTERM and Ctrl-C to `on_signal`."""

    def __init__(self, app: Any, drain_seconds: float, on_signal: Callable[[], None]):
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, round(drain_seconds)),
            )
        )
        self._on_signal = on_signal

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        kinds = (signal.SIGINT, signal.SIGTERM)
        for kind in kinds:
            loop.add_signal_handler(kind, self._on_signal)
        try:
            yield
        finally:
            for kind in kinds:
                loop.remove_signal_handler(kind)


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, which also closes a connection whose request headers do not come."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait_for_headers()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_headers(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self.transport and not self.transport.is_closing():
            self.transport.close()
