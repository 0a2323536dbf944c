"""JSON and base64 in bodies, and JSON in answers, before any protocol."""

import asyncio
import base64
import json
import os
import time

import pytest

from extract.service import endpoint
from extract.service.refused import Refused

JPEG = b"\xff\xd8\xff\xe0 and so on"


def refused(text):
    with pytest.raises(Refused) as caught:
        endpoint.image_of_base64(text)
    assert caught.value.status == 400
    return caught.value.message


def parse(body, images=1):
    return asyncio.run(endpoint.parse_json(body, images))


def test_base64_of_a_jpeg_starts_like_a_path_and_is_none():
    text = base64.b64encode(JPEG).decode()
    assert text.startswith("/9j/")
    assert endpoint.image_of_base64(text) == JPEG
    assert endpoint.image_of_base64(f"data:image/jpeg;base64,{text}") == JPEG
    assert endpoint.image_of_base64(f"DATA:image/jpeg;name=x;BASE64,{text}") == JPEG


@pytest.mark.parametrize("place", ["http://a/b.png", "file:///etc/passwd", "/etc/passwd", "./a.png", "~/a.png"])
def test_a_place_is_not_fetched(place):
    assert "send the bytes" in refused(place)


@pytest.mark.parametrize(
    "text", ["AAA", "AA==AAAA", "A A=", "\u00e4\u00f6\u00fc", "\ud800aaa", "AAAA=", "a-_b", 7, None]
)
def test_no_base64(text):
    assert "base64" in refused(text)


@pytest.mark.parametrize("text", ["data:image/png,abc", "data:image/png;base64", "data:" + "a" * 999])
def test_data_uri_without_base64(text):
    assert "data URI" in refused(text)


def test_an_image_has_bytes():
    assert refused("") == refused("data:image/png;base64,") == "an image without bytes"


def test_long_base64_is_decoded_in_pieces_that_fit_together(monkeypatch):
    monkeypatch.setattr(endpoint, "_PIECE", 8)
    for length in range(1, 40):
        content = b"B" + os.urandom(length)
        text = base64.b64encode(content).decode()
        assert endpoint.image_of_base64(text) == content
        assert endpoint.image_of_base64(f"data:a;base64,{text}") == content
    assert refused("AAAAAA==AAAA")  # right padding at the end of a piece that is not the last


def test_the_wrong_one_of_many_is_named():
    with pytest.raises(Refused, match="image 2 of 3: "):
        asyncio.run(endpoint.images_of_base64(["AAAA", "?", "AAAA"]))


def test_the_event_loop_goes_on_while_a_large_body_is_decoded():
    texts = [base64.b64encode(os.urandom(8 << 20)).decode()] * 6
    body = json.dumps({"images": texts}).encode()
    gaps = []

    async def tick():
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            gaps.append(time.monotonic() - began)

    async def decode():
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        began = time.monotonic()
        found = await endpoint.images_of_base64((await endpoint.parse_json(body, 6))["images"])
        ticking.cancel()
        return found, time.monotonic() - began

    found, seconds = asyncio.run(decode())
    assert [len(image) for image in found] == [8 << 20] * 6
    assert len(gaps) > 3 and max(gaps) < seconds, (gaps, seconds)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[" * 1000, b'{"a": ' + b"9" * 5000 + b"}", b"nope"])
def test_no_json(body):
    with pytest.raises(Refused, match="the body is no JSON"):
        parse(body)


@pytest.mark.parametrize("body", [b"[]", b"7", b'"text"', b"null"])
def test_no_json_object(body):
    with pytest.raises(Refused, match="the body is no JSON object"):
        parse(body)


@pytest.mark.parametrize("value", [b"[]", b"{}", b"1"])
def test_small_json_does_not_become_large_lists(value):
    body = b'{"a": [' + b",".join([value] * 2_000_000) + b"]}"
    began = time.monotonic()
    with pytest.raises(Refused) as caught:
        parse(body, 256)
    assert caught.value.status == 413
    assert time.monotonic() - began < 1


def test_answers_hold_labels_that_are_no_text():
    label = os.fsdecode(b"caf\xe9")
    assert json.loads(endpoint.Json({"label": label}).body)["label"] == label


def test_rows_are_written_as_the_rest():
    rows = [{"a": [1.5, 2]}, {"b": os.fsdecode(b"\xe9")}]
    for numbers in (0, 1_000_000):
        response = asyncio.run(endpoint.json_of_rows({"c": 1}, "rows", rows, numbers, {"X-A": "b"}))
        assert response.body == endpoint.Json({"c": 1, "rows": rows}).body
        assert (response.headers["x-a"], response.media_type) == ("b", "application/json")
    assert asyncio.run(endpoint.json_of_rows({}, "rows", [], 0)).body == b'{"rows":[]}'
