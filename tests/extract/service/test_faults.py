"""Ends of the service: asked for, forced, and because the network fails or hangs."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from extract.service.app import build
from extract.service.endpoint import Endpoint
from extract.service.heads import Heads
from extract.service.service import Service
from extract.service.settings import ServeSettings
from tests.extract.service import serving
from tests.extract.service.gated import FAIL, GatedServer, multipart, vectors, wait_until
from tests.extract.service.reference import ROUNDING
from tests.processes import REPO

WAITING = "retrain_waiting_images"


@pytest.fixture
def start(served, tmp_path):
    """`start(*flags)` is a server that is ready. What still runs at the end is killed."""
    running = []

    def make(*flags, **options):
        running.append(GatedServer(served, tmp_path, *flags, **options))
        running[-1].wait_until_ready()
        return running[-1]

    yield make
    for server in running:
        server.release()
        server.forked.kill()


def assert_dead(server, reason):
    """It ends with status 1 by itself, and its last word is one line."""
    assert server.ended() == 1, server.erred
    assert [line for line in server.erred if line.startswith("error: ")] == [f"error: {reason}\n"]
    assert "Traceback" not in "".join(server.erred)
    with pytest.raises(ConnectionError):
        server.get("/livez")


def test_after_sigterm_all_that_was_accepted_is_answered(start, wanted):
    server = start()
    server.hold()
    contents = wanted.contents
    places = [n % len(contents) for n in range(40)]
    accepted = [server.later(contents[place]) for place in places]
    several = server._pool.submit(server.post, "/v1/bottlenecks", *multipart(contents))
    server.wait_until(WAITING, len(places) + len(contents))
    server.forked.send_signal(signal.SIGTERM)
    wait_until(lambda: server.get("/readyz").status == 503, lambda: "it still says that it is ready")
    assert server.get("/livez").status == 200
    late = server.post("/v1/bottlenecks", contents[0])
    assert (late.status, int(late.headers["retry-after"]) > 0) == (503, True)
    assert not any(answer.done() for answer in accepted)
    server.release()
    found = np.concatenate([vectors(answer.result(serving.PATIENCE)) for answer in [*accepted, several]])
    expected = wanted.bottlenecks[[*places, *range(len(contents))]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING)
    assert server.ended() == 0, server.erred
    assert server.said[-1].startswith("ended: ") and server.erred == []


def test_one_port_is_for_one_and_free_at_once_after_a_kill(start, served, wanted):
    first = start()
    connection = http.client.HTTPConnection("127.0.0.1", first.port, timeout=serving.PATIENCE)
    connection.request("GET", "/livez")
    assert connection.getresponse().read() == b"live\n"  # and stays open
    command = [sys.executable, "-m", "extract.serve", "--cache_dir", str(served / "cache"), "--port", str(first.port)]
    second = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=serving.PATIENCE)
    assert (second.returncode, second.stdout) == (2, "")
    [line] = second.stderr.splitlines()
    assert line.startswith("error: ") and str(first.port) in line and "--port" in line
    first.forked.kill()
    assert first.ended() == -signal.SIGKILL
    third = start("--port", first.port)
    assert third.port == first.port
    reply = third.post("/v1/bottlenecks", wanted.contents[0])
    np.testing.assert_allclose(vectors(reply), wanted.bottlenecks[:1], rtol=0, atol=ROUNDING)
    connection.close()
    assert third.stop() == 0


def test_a_network_that_fails_ends_the_service(start, wanted):
    server = start()
    assert server.post("/v1/bottlenecks", wanted.contents[0]).status == 200
    (server.folder / FAIL).touch()
    # A client that is still sending its body keeps the process for as long as that takes: time to ask.
    with (
        socket.create_connection(("127.0.0.1", server.port)) as slow,
        socket.create_connection(("127.0.0.1", server.port)) as probe,
    ):
        slow.sendall(b"POST /v1/bottlenecks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        server.wait_until(WAITING, 1)
        probe.sendall(b"GET /livez HTTP/1.1\r\nHost: local")  # so that it is no idle connection
        reply = server.post("/v1/bottlenecks", wanted.contents[0])
        assert (reply.status, "fallen off the bus" in reply.error) == (500, True)
        probe.sendall(b"host\r\n\r\n")
        assert probe.recv(1000).startswith(b"HTTP/1.1 500")
    assert_dead(server, "the network failed: the device has fallen off the bus")


def be_impatient():
    from extract.service import batcher

    batcher.STUCK, batcher._LEAST_STUCK = 1.0, 0.5


def test_a_network_that_hangs_ends_the_service(start, wanted):
    server = start(first=be_impatient)
    server.hold()
    accepted = [server.later(content) for content in wanted.contents]
    for answer in accepted:
        reply = answer.result(serving.PATIENCE)
        assert (reply.status, "a batch takes more than" in reply.error) == (500, True)
    assert_dead(server, "a batch takes more than ten times as long as the slowest before it")


def test_a_defect_fails_one_request_and_is_counted(capsys):
    async def defective(call):
        return 1 // 0

    service = Service(ServeSettings(), Heads([]))
    app = build(service, [Endpoint("GET", "/defect", defective, "A defect.", "test")], None)
    sent = []

    async def ask():
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/defect", "query_string": b"", "root_path": ""}
        await app({**scope, "headers": [(b"host", b"localhost")], "client": None, "server": None}, receive, send)

    asyncio.run(ask())
    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"]) == {"error": "a defect of this service: ZeroDivisionError"}
    assert 'retrain_requests_total{endpoint="/defect",status="500"} 1.0' in service.metrics.text().decode()
    assert "1 // 0" in capsys.readouterr().err
