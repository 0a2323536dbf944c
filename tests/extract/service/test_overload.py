"""Limits, and what the service does with more than it can take."""

import http.client
import io
import itertools
import os
import socket

import numpy as np
import pytest
from PIL import Image

from extract.service import images
from tests import pictures
from tests.extract.service import serving
from tests.extract.service.gated import GatedServer, multipart, vectors
from tests.extract.service.reference import ROUNDING

TOKEN = "open-sesame"
MB = 1 << 20
SLOTS = 2  # batches at once of the engine tensorflow
KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")
DECODED = "retrain_decode_seconds_count"
RUN = "retrain_images_total"
WAITING = "retrain_waiting_images"


class GuardedServer(GatedServer):
    """Asks with the token unless told otherwise."""

    def ask(self, method, path, body, headers=None):
        return super().ask(method, path, body, {"Authorization": f"Bearer {TOKEN}", **(headers or {})})


@pytest.fixture(scope="module")
def guarded(served, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\nnothing else\n")
    flags = ["--max_waiting", 8, "--max_images", 4, "--max_request_mb", 2, "--max_waiting_mb", 3, "--max_image_mb", 1]
    flags += ["--max_megapixels", 1, "--token_file", folder / "token", "--allow_host", "photos.example"]
    running = GuardedServer(served, folder, *flags, "--corrections", folder / "corrections")
    running.wait_until_ready()
    yield running
    assert running.stop() == 0, running.erred
    assert "Traceback" not in "".join(running.erred)


@pytest.fixture
def held(guarded):
    """The same server, whose network waits until `release`."""
    guarded.hold()
    yield guarded
    guarded.release()
    guarded.wait_until(WAITING, 0)


@pytest.fixture(scope="module")
def photo(served):
    return serving.photos(served, 1)[0]


def black(kind, width, height):
    """A small file of many pixels; a BMP in shades of grey, which takes least of the kinds that TensorFlow reads."""
    return pictures.encoded(Image.new("L" if kind == "BMP" else "RGB", (width, height)), kind)


def padded(content, size):
    """The same image in a file of so many bytes: no decoder reads behind the end of a PNG."""
    return content + bytes(size - len(content))


def test_a_body_above_the_limit(guarded, photo):
    reply = guarded.post("/v1/bottlenecks", padded(photo, 2 * MB + 1))
    assert (reply.status, "--max_request_mb 2" in reply.error) == (413, True)


def test_who_sends_far_more_gets_the_answer_and_no_broken_connection(guarded, photo):
    reply = guarded.post("/v1/bottlenecks", padded(photo, 50 * MB))
    assert (reply.status, "--max_request_mb 2" in reply.error) == (413, True)


def test_a_body_above_the_limit_that_does_not_say_its_length(guarded, photo):
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=serving.PATIENCE)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    chunks = [padded(photo, MB), bytes(MB), b"\0"]
    connection.request("POST", "/v1/bottlenecks", iter(chunks), headers, encode_chunked=True)
    reply = connection.getresponse()
    assert (reply.status, b"--max_request_mb 2" in reply.read()) == (413, True)
    connection.close()


def test_an_image_above_the_limit(guarded, photo):
    reply = guarded.post("/v1/bottlenecks", padded(photo, MB + 1))
    assert (reply.status, "--max_image_mb" in reply.error) == (413, True)
    assert guarded.post("/v1/bottlenecks", padded(photo, MB)).status == 200


def test_more_images_than_the_limit(guarded, photo):
    reply = guarded.post("/v1/bottlenecks", *multipart([photo] * 5))
    assert (reply.status, "--max_images 4" in reply.error) == (413, True)
    assert vectors(guarded.post("/v1/bottlenecks", *multipart([photo] * 4))).shape[0] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_above_the_limit_are_never_decoded(guarded, kind):
    before = guarded.metric(DECODED)
    reply = guarded.post("/v1/bottlenecks", black(kind, 1001, 1000))
    assert (reply.status, "--max_megapixels" in reply.error) == (413, True)
    assert guarded.metric(DECODED) == before
    width = 500 if kind == "GIF" else 1000  # the screen of a GIF counts beside its frame
    assert guarded.post("/v1/bottlenecks", black(kind, width, 1000)).status == 200
    assert guarded.metric(DECODED) == before + 1


def test_a_bomb_of_kilobytes(guarded):
    """A PNG of 65,000 x 65,000 pixels that says so and has few bytes."""
    small = bytearray(black("PNG", 8, 8))
    small[16:24] = (65_000).to_bytes(4, "big") * 2
    before = guarded.metric(DECODED)
    reply = guarded.post("/v1/bottlenecks", bytes(small))
    assert (reply.status, "4,225,000,000 pixels" in reply.error) == (413, True)
    assert guarded.metric(DECODED) == before


def test_the_frames_of_a_gif_count_together(guarded):
    def gif(count):
        frames = [Image.new("RGB", (200, 200), (9 * seed, 0, 0)) for seed in range(count)]
        return pictures.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert guarded.post("/v1/bottlenecks", gif(23)).status == 200
    before = guarded.metric(DECODED)
    reply = guarded.post("/v1/bottlenecks", gif(25))
    assert (reply.status, "--max_megapixels" in reply.error) == (413, True)
    assert guarded.metric(DECODED) == before


def test_one_image_of_a_request_is_refused_alone(guarded, served):
    first, second = serving.photos(served, 2)
    reply = guarded.post("/v1/bottlenecks", *multipart([first, black("PNG", 1001, 1000), second]))
    assert reply.status == 200
    assert ["error" in image for image in reply.json["images"]] == [False, True, False]
    assert reply.json["images"][0] != reply.json["images"][2]


def test_when_too_many_images_wait_more_are_sent_away_and_those_accepted_are_answered(held, served, wanted):
    contents = wanted.contents
    accepted = [held.later(contents[n % len(contents)]) for n in range(6)]
    held.wait_until(WAITING, 6)
    several = held.post("/v1/bottlenecks", *multipart(contents[:3]))
    accepted += [held.later(contents[n % len(contents)]) for n in (6, 7)]
    held.wait_until(WAITING, 8)
    one = held.post("/v1/bottlenecks", contents[0])
    for reply in (several, one):
        assert (reply.status, "--max_waiting" in reply.error) == (429, True)
        assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert held.get("/livez").status == held.get("/readyz").status == 200
    held.release()
    found = np.concatenate([vectors(answer.result(serving.PATIENCE)) for answer in accepted])
    np.testing.assert_allclose(found, wanted.bottlenecks[np.arange(8) % len(contents)], rtol=0, atol=ROUNDING)
    assert held.post("/v1/bottlenecks", contents[0]).status == 200


def test_when_too_many_bytes_wait(held, photo):
    large = padded(photo, MB)
    accepted = [held.later(large) for _ in range(3)]
    held.wait_until("retrain_waiting_bytes", 3 * MB)
    reply = held.post("/v1/bottlenecks", photo)
    assert (reply.status, "--max_waiting_mb" in reply.error) == (429, True)
    assert int(reply.headers["retry-after"]) >= 1
    held.release()
    assert [answer.result(serving.PATIENCE).status for answer in accepted] == [200] * 3
    held.wait_until("retrain_waiting_bytes", 0)


def test_an_image_of_which_the_client_is_gone_is_not_run(held, photo):
    decoded, run, started = (held.metric(name) for name in (DECODED, RUN, "retrain_batch_images_count"))
    gone = 'retrain_requests_total{endpoint="/v1/bottlenecks",status="499"}'
    were_gone = held.metric(gone)
    accepted = []
    for number in range(SLOTS):
        accepted.append(held.later(photo))
        held.wait_until("retrain_batch_images_count", started + number + 1)
    head = f"POST /v1/bottlenecks HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", held.port)) as client:
        client.sendall(f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo)
        held.wait_until(DECODED, decoded + SLOTS + 1)
    held.wait_until(gone, were_gone + 1)
    held.wait_until(WAITING, SLOTS)
    held.release()
    assert [answer.result(serving.PATIENCE).status for answer in accepted] == [200] * SLOTS
    assert held.post("/v1/bottlenecks", photo).status == 200
    held.wait_until(RUN, run + SLOTS + 1)


def test_what_is_not_done_by_the_deadline_is_told_so_and_not_run(served, tmp_path, photo):
    running = GatedServer(served, tmp_path, "--deadline_seconds", 1)
    running.wait_until_ready()
    running.hold()
    started = running.metric("retrain_batch_images_count")
    late = []
    for number in range(SLOTS):
        late.append(running.later(photo))
        running.wait_until("retrain_batch_images_count", started + number + 1)
    late.append(running.later(photo))  # is decoded, and never gets a slot
    for answer in late:
        reply = answer.result(serving.PATIENCE)
        assert (reply.status, "--deadline_seconds" in reply.error) == (503, True)
        assert int(reply.headers["retry-after"]) >= 1
    running.release()
    assert running.post("/v1/bottlenecks", photo).status == 200
    running.wait_until(RUN, SLOTS + 1)
    running.wait_until(WAITING, 0)
    assert running.stop() == 0


@pytest.mark.parametrize("given", ["", "Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe4"])
def test_without_the_token(guarded, photo, given):
    before = guarded.metric(DECODED)
    for reply in (
        guarded.post("/v1/bottlenecks", photo, {"Authorization": given}),
        guarded.get("/v1", {"Authorization": given}),
    ):
        assert (reply.status, "--token_file" in reply.error) == (401, True)
    assert guarded.get("/livez", {"Authorization": given}).status == 200
    assert guarded.metric(DECODED) == before
    assert guarded.get("/v1", {"Authorization": f"bearer {TOKEN}"}).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8501", 200),
        ("photos.example", 200),
        ("evil.example", 421),
        ("photos.example.evil.example", 421),
        ("localhost.evil.example:8501", 421),
        ("", 421),
    ],
)
def test_only_known_names_are_answered(guarded, host, status):
    assert guarded.get("/v1", {"Host": host}).status == status


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}])
def test_a_page_of_another_origin_may_not_write(guarded, photo, headers):
    label = serving.LABELS[0].replace(" ", "%20")
    reply = guarded.post(f"/v1/corrections?label={label}", photo, headers)
    assert (reply.status, "origin" in reply.error) == (403, True)


SIZES = [(1, 1), (1, 7), (7, 1), (16, 16), (33, 65), (300, 2), (255, 257)]


def variants(kind):
    """Files of that kind, with the numbers of pixels that decoding them writes."""
    modes = {"JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "RGBA", "L", "P", "1"], "GIF": ["RGB", "L"]}
    modes |= {"BMP": ["RGB", "L", "P", "1"], "WEBP": ["RGB", "RGBA"]}
    options = {"JPEG": [{}, {"progressive": True}, {"comment": b"\xff\xc0" * 9, "exif": Image.Exif()}]}
    options |= {
        "WEBP": [{}, {"lossless": True}, {"quality": 5}],
        "GIF": [{}, {"interlace": 0}, {"comment": b"x" * 600}],
    }
    for (width, height), mode, more in itertools.product(SIZES, modes[kind], options.get(kind, [{}])):
        picture = pictures.smooth(width, height).convert(mode)
        yield pictures.encoded(picture, kind, **more), width * height


@pytest.mark.parametrize("kind", KINDS)
def test_headers_say_what_pillow_says(kind):
    for content, pixels in variants(kind):
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.width * opened.height == pixels
        assert images.pixels(content) == (2 * pixels if kind == "GIF" else pixels)


def test_frames_are_counted_as_pillow_counts_them():
    frames = [Image.fromarray(pictures.noise(seed, 20)) for seed in range(9)]
    for kind, each in (("GIF", 400), ("WEBP", 0)):
        content = pictures.encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.n_frames == 9
        assert images.pixels(content) == 400 + 9 * each


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_that_is_cut_off(kind):
    """It is either refused, or says what the whole one says; and never anything else."""
    content = pictures.encoded(pictures.smooth(40, 30), kind)
    whole = images.pixels(content)
    refusals = 0
    for length in range(min(len(content), 1000)):
        try:
            found = images.pixels(content[:length])
        except ValueError:
            refusals += 1
        else:
            assert found == whole or (kind == "GIF" and found == whole // 2)
    assert refusals >= 10


def test_random_bytes_behind_the_first_ones_never_do_harm():
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"):
        for _ in range(300):
            try:
                assert images.pixels(start + os.urandom(60)) > 0
            except ValueError as error:
                assert str(error)
