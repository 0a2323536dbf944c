"""Clients of an HTTP service, in processes of their own which import no TensorFlow.

They speak HTTP over plain streams, so that they take little of the processors that they share with the service. Each
request is made before the clock starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cache.errors import UserError

PROCESSES = 2
_BOUNDARY = "the-next-photo"


@dataclass(frozen=True)
class Load:
    """What to ask of a service, and how fast."""

    port: int
    paths: Sequence[str]  # one for each request, again from the first one after the last
    photos: Sequence[str]  # files, each of which is sent once
    accept: str = "application/json"
    photos_in_a_request: int = 1  # above 1, as multipart/form-data
    connections: int = 1
    rate: float | None = None  # requests a second, at random moments; None: as fast as the answers come


@dataclass(frozen=True)
class Done:
    """What came of a load."""

    seconds: float  # in all
    latencies: Sequence[float]  # of each request, from the moment when it was due


class Clients:
    """A few processes, among which a load is spread."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "benchmarks.clients"]
        pipe = subprocess.PIPE
        self._processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(PROCESSES)]

    def run(self, load: Load) -> Done:
        """Sends all of a load. Raises UserError if any request is not answered with 200."""
        used = self._processes[: min(load.connections, len(self._processes))]
        for number, process in enumerate(used):
            share = {
                **asdict(load),
                "photos": load.photos[number :: len(used)],
                "paths": load.paths[number:] + load.paths[:number],  # type: ignore[operator]
                "connections": len(range(number, load.connections, len(used))),
                "rate": load.rate and load.rate / len(used),
            }
            _say(process, share)
        for process in used:
            _hear(process)  # all requests are made
        began = time.perf_counter()
        for process in used:
            _say(process, "go")
        answers = [_hear(process) for process in used]
        seconds = time.perf_counter() - began
        for answer in answers:
            if answer["failed"]:
                raise UserError(f"the service answered {answer['failed'][0]!r}; give --image_dir without broken photos")
        return Done(seconds, [latency for answer in answers for latency in answer["latencies"]])

    def close(self) -> None:
        for process in self._processes:
            process.communicate()


@contextlib.contextmanager
def clients() -> Iterator[Clients]:
    """Clients, for the time of the block."""
    with contextlib.closing(Clients()) as started:
        yield started


def _say(process: subprocess.Popen, message: object) -> None:
    print(json.dumps(message), file=process.stdin, flush=True)


def _hear(process: subprocess.Popen) -> dict:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@functools.cache
def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _requests(load: Load) -> list[bytes]:
    made: list[bytes] = []
    for start in range(0, len(load.photos), load.photos_in_a_request):
        contents = [_read(path) for path in load.photos[start : start + load.photos_in_a_request]]
        if load.photos_in_a_request == 1:
            kind, body = "application/octet-stream", contents[0]
        else:
            kind = f"multipart/form-data; boundary={_BOUNDARY}"
            head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
            body = b"".join(head + content + b"\r\n" for content in contents) + f"--{_BOUNDARY}--\r\n".encode()
        path = load.paths[len(made) % len(load.paths)]
        made.append(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {load.accept}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    return made


async def _send(load: Load, requests: list[bytes]) -> dict:
    """Sends the requests over kept connections, and reads the answers."""
    latencies: list[float] = []
    failed: list[str] = []
    began, due = time.perf_counter(), 0.0
    moments = random.Random(0)
    waiting: asyncio.Queue[tuple[bytes, float] | None] = asyncio.Queue()

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
        while (item := await waiting.get()) is not None:
            request, at = item
            sent = at if load.rate else time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            [length] = [line[15:] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
            body = await reader.readexactly(int(length))
            latencies.append(time.perf_counter() - sent)
            if not head.startswith("HTTP/1.1 200"):
                failed.append(f"{head.splitlines()[0]} {body[:200].decode(errors='replace')}")
        writer.close()

    connections = [asyncio.create_task(connection()) for _ in range(load.connections)]
    for request in requests:
        if load.rate:
            due += moments.expovariate(load.rate)
            await asyncio.sleep(began + due - time.perf_counter())
        waiting.put_nowait((request, began + due))
    for _ in connections:
        waiting.put_nowait(None)
    await asyncio.gather(*connections)
    return {"latencies": latencies, "failed": failed}


def _main() -> None:
    for line in sys.stdin:
        load = Load(**json.loads(line))
        requests = _requests(load)
        print("{}", flush=True)
        sys.stdin.readline()
        print(json.dumps(asyncio.run(_send(load, requests))), flush=True)


if __name__ == "__main__":
    _main()
