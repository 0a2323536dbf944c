"""A web server on loopback whose answers a test chooses, and archives of modules."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Request(BaseHTTPRequestHandler):
    """A request that waits for its answer, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append(self.path)
        with contextlib.suppress(ConnectionError):  # the client was killed
            self.server.answer(self)

    def head(self, status: int = 200, **headers: object) -> None:
        """Sends the first lines of the answer. An underscore in the name of a header stands for a hyphen."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes) -> None:
        """Sends a part of the body, at once."""
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Not on the test's standard error."""


Answer = Callable[[Request], None]


class Server(ThreadingHTTPServer):
    """Answers every request by `answer`; `asked` has their paths with what follows the question mark."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.asked: list[str] = []
        self.answer: Answer = lambda request: request.head(404)
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def whole(body: bytes) -> Answer:
    """The answer that is the whole of `body`."""

    def answer(request: Request) -> None:
        request.head(content_length=len(body))
        request.send(body)

    return answer


def cut(body: bytes, length: int) -> Answer:
    """The answer that promises `body` and ends after its first `length` bytes."""

    def answer(request: Request) -> None:
        request.head(content_length=len(body))
        request.send(body[:length])

    return answer


def of_unknown_length(body: bytes) -> Answer:
    """The answer of a server that says no length: the body goes on until the connection ends."""

    def answer(request: Request) -> None:
        request.head(connection="close")
        request.send(body)

    return answer


def tar(folder: Path) -> bytes:
    """A tar of a module: first saved_model.pb, which a truncated one then has, and the other files by name."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        paths = sorted(folder.rglob("*"), key=lambda path: (path.name != "saved_model.pb", path))
        for path in paths:
            archive.add(path, f"./{path.relative_to(folder)}", recursive=False)
    return packed.getvalue()


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A gzipped tar of these members and their contents."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue())


def starts(packed: bytes) -> list[int]:
    """At which byte of a tar each of its members starts, and where the end of the archive does."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return [member.offset for member in archive] + [archive.offset]
