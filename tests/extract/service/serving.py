"""A real cache and heads to serve, the service as a child process, and a client that sends whatever it is given."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cache import head
from tests import modules, small_cache
from tests.processes import REPO

HEAD = "things"  # the name of the head in `make`
LABELS = small_cache.LABELS
TEMPERATURE = 2.0  # of that head
PHOTOS = 12  # of each of the labels
PATIENCE = 60  # seconds, many times what any answer takes
_AS_EXTRACTED = ("--engine", "tensorflow", "--precision", "float32")


def make(root: Path) -> None:
    """`root`/photos, their bottlenecks with thumbnails in `root`/cache, and the classifier `root`/things."""
    from extract.run import extract
    from extract.settings import Settings
    from train.run import train
    from train.settings import TrainSettings

    names = [f"{label}/{number:02}.png" for label in LABELS for number in range(PHOTOS)]
    small_cache.write_photos(root / "photos", names, np.repeat(np.arange(len(LABELS)), PHOTOS), noise=40)
    module = modules.make_tf2_hub_module(root / "module")
    settings = {"engine": "tensorflow", "precision": "float32", "dtype": "float32", "thumbnails": True}
    extract(Settings(str(root / "photos"), str(root / "cache"), module, **settings))  # type: ignore[arg-type]
    train(TrainSettings(root / "cache", root / HEAD, l2=0.01))
    # So that answers show which temperature they have.
    trained = head.read(root / HEAD)
    head.write(head.find(root / HEAD), replace(trained, temperature=TEMPERATURE))


@dataclass(frozen=True)
class Reply:
    """What the service answered."""

    status: int
    headers: Mapping[str, str]  # their names in small letters
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The sentence of an error, in the form that most of the protocols give it."""
        return self.json["error"]


class Server:
    """The service in a process of its own, on a free port of this machine. Usable once it has said its address."""

    def __init__(self, root: Path, *flags: object, head: bool = True):
        """Serves what `make(root)` has made, without its head if so told; the `flags` come last, so that they win."""
        command = [sys.executable, "-m", "extract.serve", "--cache_dir", root / "cache"]
        command += [*(["--head", root / HEAD] if head else []), "--port", "0", *_AS_EXTRACTED, *flags]
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said: list[str] = []  # lines
        self.port = self._wait_for_port()
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stdout or ()), daemon=True)
        self._reader.start()

    def _wait_for_port(self) -> int:
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"http://[^/ ]*:(\d+)/", line):
                return int(found[1])
        raise AssertionError(f"the service has not started:\n{''.join(self.said)}")

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Reply:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """Sends bytes as they are, and anything else as JSON."""
        if not isinstance(body, bytes):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})}
        return self.ask("POST", path, body, headers)

    def ask(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None) -> Reply:
        """One request, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def stop(self, kind: int = signal.SIGTERM) -> int:
        """Sends a signal; returns the exit status, once all that it said is in `said`."""
        if self.process.poll() is None:
            self.process.send_signal(kind)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(PATIENCE)
        return status


def photo_paths(count: int) -> list[str]:
    """The paths of `count` photos in `root`/photos, of one label after the other."""
    return [f"{LABELS[n % len(LABELS)]}/{n // len(LABELS):02}.png" for n in range(count)]


def photos(root: Path, count: int = 3) -> list[bytes]:
    """The files of these photos."""
    return [(root / "photos" / path).read_bytes() for path in photo_paths(count)]
