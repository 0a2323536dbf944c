"""The service as a forked process whose network waits while a file is there: tests say what happens meanwhile."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cache import console
from extract.engines import Engine, Fetch
from tests import processes
from tests.extract.service import serving
from tests.extract.service.serving import PATIENCE, Reply

HOLD, FAIL = "hold", "fail"  # files: bottlenecks are not fetched, and starting a batch fails


class GatedEngine(Engine):
    """An engine that obeys the files in a folder."""

    def __init__(self, inner: Engine, folder: Path):
        self.name, self.batch_size, self.in_flight = inner.name, inner.batch_size, inner.in_flight
        self._inner, self._folder = inner, folder

    def start(self, images: object) -> Fetch:
        if (self._folder / FAIL).exists():
            raise RuntimeError("the device has fallen off the bus")
        fetch = self._inner.start(images)  # type: ignore[arg-type]

        def fetch_later() -> np.ndarray:
            while (self._folder / HOLD).exists():
                time.sleep(0.005)
            return fetch()

        return fetch_later


class GatedServer(serving.Server):
    """`serving.Server`, forked, with gates in `folder`. `first` happens in the process before anything else."""

    def __init__(self, root: Path, folder: Path, *flags: object, first: Callable[[], object] = bool):
        self.folder = folder
        arguments = ["--cache_dir", root / "cache", "--head", root / serving.HEAD, "--port", 0]
        arguments += ["--engine", "tensorflow", "--precision", "float32", *flags]
        self.forked = processes.Process(_serve, list(map(str, arguments)), folder, first)
        self.said, self.erred = [], []
        self.port = self._read_port()
        streams = ((self.forked.stdout, self.said), (self.forked.stderr, self.erred))
        self._readers = [threading.Thread(target=_collect, args=stream, daemon=True) for stream in streams]
        for reader in self._readers:
            reader.start()
        self._pool = ThreadPoolExecutor(80)

    def _read_port(self) -> int:
        for line in self.forked.stdout:
            self.said.append(line)
            if found := re.search(r"http://[^/ ]*:(\d+)/", line):
                return int(found[1])
        raise AssertionError(f"the service has not started:\n{''.join(self.said)}{self.forked.stderr.read()}")

    def later(self, body: bytes, path: str = "/v1/bottlenecks", **headers: str) -> Future[Reply]:
        """The answer to a request that is sent now."""
        return self._pool.submit(self.post, path, body, headers)

    def hold(self) -> None:
        (self.folder / HOLD).touch()

    def release(self) -> None:
        (self.folder / HOLD).unlink(missing_ok=True)

    def metric(self, name: str) -> float:
        """A line of /metrics; 0 if it is not there."""
        for line in self.get("/metrics").body.decode().splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        return 0.0

    def wait_until(self, name: str, value: float) -> None:
        """Until a line of /metrics has that value."""
        wait_until(lambda: self.metric(name) == value, lambda: f"{name} is {self.metric(name)}, not {value}")

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.get("/readyz").status == 200, lambda: f"not ready: {self.said} {self.erred}")

    def ended(self) -> int:
        """Waits for its end; returns the exit status."""
        status = self.forked._child.wait()
        for reader in self._readers:
            reader.join(PATIENCE)
        return status

    def stop(self, kind: int = signal.SIGTERM) -> int:
        self.release()
        self.forked.send_signal(kind)
        return self.ended()


def wait_until(is_so: Callable[[], bool], problem: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, problem()
        time.sleep(0.01)


def multipart(contents: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """The body of a request for several images, and its headers."""
    head = b'--next\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = b"".join(head + content + b"\r\n" for content in contents) + b"--next--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=next"}


def vectors(reply: Reply) -> np.ndarray:
    """The bottlenecks in an answer, float32 [n, D]."""
    assert reply.status == 200, reply.body
    return np.array([image["bottleneck"] for image in reply.json["images"]], np.float32)


def _collect(stream, lines) -> None:  # type: ignore[no-untyped-def]
    lines.extend(stream)


def _serve(arguments: list[str], folder: Path, first: Callable[[], object]) -> int:
    from extract import engines, serve

    first()
    build = engines.build
    engines.build = lambda *given, **named: GatedEngine(build(*given, **named), folder)
    return console.run(serve.main, arguments, is_job=True)
