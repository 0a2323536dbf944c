"""A mixed load, for minutes with LONG=1 in the environment: good, broken, huge, slow and leaving clients."""

import contextlib
import itertools
import os
import random
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import pictures
from tests.extract.service import serving
from tests.extract.service.gated import GatedServer, multipart, vectors
from tests.extract.service.reference import ROUNDING

SECONDS = 180 if os.environ.get("LONG") else 5
# By how much the process may grow after the first third: allocators round up and threads come late. A body that is
# kept from every request would take many times that in minutes, and so would an image that is kept.
GROWTH = 64 << 20  # bytes


def good(server, wanted, draw):
    places = [draw.randrange(len(wanted.contents)) for _ in range(draw.choice([1, 1, 1, 5, 20]))]
    contents = [wanted.contents[place] for place in places]
    asked = multipart(contents) if len(contents) > 1 else (contents[0],)
    reply = server.post("/v1/bottlenecks", *asked)
    if reply.status == 429:
        assert int(reply.headers["retry-after"]) >= 1
        return "busy"
    np.testing.assert_allclose(vectors(reply), wanted.bottlenecks[places], rtol=0, atol=ROUNDING)
    return "good"


def broken(server, wanted, draw):
    content = wanted.contents[0]
    reply = server.post("/v1/bottlenecks", draw.choice([content[:-30], content[:20], b"GIF89a", os.urandom(5000)]))
    assert reply.status in (422, 429), reply.body
    return "broken"


def mixed(server, wanted, draw):
    """A broken image between two good ones."""
    reply = server.post("/v1/bottlenecks", *multipart([wanted.contents[0], b"no image", wanted.contents[1]]))
    if reply.status == 200:
        first, wrong, last = reply.json["images"]
        assert "error" in wrong
        found = [first["bottleneck"], last["bottleneck"]]
        np.testing.assert_allclose(np.array(found), wanted.bottlenecks[:2], rtol=0, atol=ROUNDING)
        return "mixed"
    assert reply.status == 429
    return "busy"


def huge(server, wanted, draw):
    """Too many bytes, or too many pixels."""
    many = pictures.encoded(Image.new("L", (2000, 1000)), "PNG")
    reply = server.post("/v1/bottlenecks", draw.choice([many, wanted.contents[0] + bytes(3 << 20)]))
    assert reply.status in (413, 429), reply.body
    return "huge"


def large(server, wanted, draw):
    """Nearly as many bytes as are taken."""
    reply = server.post("/v1/bottlenecks", wanted.contents[0] + bytes(1 << 20))
    assert reply.status in (200, 429), reply.body
    return "large"


def leaving(server, wanted, draw):
    """Goes amid the headers, amid the body, or without waiting for the answer."""
    content = wanted.contents[0]
    head = f"POST /v1/bottlenecks HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    whole = head + content
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(whole[: draw.choice([10, len(head), len(head) + 9, len(whole)])])
        time.sleep(draw.random() / 50)
    return "leaving"


def slow(server, wanted, draw):
    """Sends byte after byte, and comes to no end."""
    content = wanted.contents[0]
    head = f"POST /v1/bottlenecks HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    start = draw.choice([0, len(head)])
    with (
        socket.create_connection(("127.0.0.1", server.port)) as client,
        # It may be thrown out meanwhile.
        contextlib.suppress(BrokenPipeError, ConnectionResetError),
    ):
        client.sendall(head[:start])
        for byte in (head + content)[start : start + 20]:
            client.sendall(bytes([byte]))
            time.sleep(0.1)
    return "slow"


def resident(pid):
    """Bytes in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from /proc")
def test_a_mixed_load_is_answered_right_and_leaves_nothing_behind(served, wanted, tmp_path):
    limits = ["--max_waiting", 40, "--max_images", 20, "--max_request_mb", 2, "--max_waiting_mb", 16]
    server = GatedServer(served, tmp_path, *limits, "--max_megapixels", 1)
    server.wait_until_ready()
    end = time.monotonic() + SECONDS
    problems, counts = [], dict.fromkeys(["good", "busy", "broken", "mixed", "huge", "large", "leaving", "slow"], 0)
    changing = threading.Lock()

    def client(work, seed):
        draw = random.Random(seed)
        while time.monotonic() < end and not problems:
            try:
                done = work(server, wanted, draw)
            except Exception as error:
                problems.append((work.__name__, repr(error)))
                return
            with changing:
                counts[done] += 1
            time.sleep(draw.random() / 20)

    kinds = [*[good] * 8, broken, mixed, huge, large, *[leaving] * 2, *[slow] * 4]
    threads = [threading.Thread(target=client, args=pair) for pair in zip(kinds, itertools.count())]
    for thread in threads:
        thread.start()
    sizes = []
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end + serving.PATIENCE:
        time.sleep(SECONDS / 60)
        sizes.append(resident(server.forked._child._process.pid))
    assert not any(thread.is_alive() for thread in threads), "a client hangs"
    assert problems == [], server.erred
    assert all(counts[kind] for kind in counts if kind != "busy"), counts
    server.wait_until("retrain_waiting_images", 0)
    server.wait_until("retrain_waiting_bytes", 0)
    third = len(sizes) // 3
    growth = np.median(sizes[-third:]) - max(sizes[: third + 1])
    assert growth < GROWTH, f"{growth / 2**20:.0f} MiB more than after a third of the time"
    assert good(server, wanted, random.Random(0)) == "good"
    assert server.stop() == 0
    assert "Traceback" not in "".join(server.erred), server.erred
