"""Bodies that nobody meant: each is refused with a sentence and in time, and the server still answers."""

import base64
import io
import json
import struct
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

PICTURE = io.BytesIO()
Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(PICTURE, "PNG")
B64 = base64.b64encode(PICTURE.getvalue()).decode()
SECONDS = 5  # far above what a refusal takes, and far below the deadline of the service
LENGTH = "Inference-Header-Content-Length"
PATHS = {
    "tfserving": "/v1/models/things:predict",
    "inference": "/v2/models/things/infer",
    "openai": "/v1/embeddings",
    "classify": "/v1/classify/things",
    "bottlenecks": "/v1/bottlenecks",
}
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([B64, "", "AAAA", "/"])
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
# Right in most places, so that what is wrong is found late.
keys = st.sampled_from(
    [
        "instances",
        "inputs",
        "outputs",
        "input",
        "model",
        "id",
        "parameters",
        "signature_name",
        "b64",
        "image_bytes",
        "name",
        "datatype",
        "shape",
        "data",
        "binary_data_size",
        "binary_data",
        "encoding_format",
        "dimensions",
        "classification",
        "binary_data_output",
    ]
)
likely = st.recursive(
    scalars
    | st.sampled_from(["image_bytes", "BYTES", "default", "label", "probabilities", f"data:image/png;base64,{B64}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)


@pytest.fixture(autouse=True)
def lives(server):
    """Whatever a test has sent, the server answers as before."""
    yield
    reply = server.post("/v1/models/things:predict", {"instances": [{"b64": B64}]})
    assert reply.status == 200, reply.body
    assert server.process.poll() is None
    assert not any("Traceback" in line for line in server.said)


def ask(server, path, body, headers=None):
    began = time.monotonic()
    reply = server.post(path, body, headers)
    assert time.monotonic() - began < SECONDS
    return reply


def refused(server, path, body, headers=None, may_succeed=False):
    reply = ask(server, path, body, headers)
    assert 400 <= reply.status < 500 or (may_succeed and reply.status == 200), (reply.status, reply.body)
    if reply.status != 200:
        error = reply.json["error"]
        message = error if isinstance(error, str) else error["message"]
        assert message and "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@few
@given(st.binary(max_size=200))
@example(b"")
@example(b"[" * 100_000)
@example(b'{"inputs":' * 50_000)
@example(b"\xef\xbb\xbf{}")
def test_bytes(server, path, body):
    refused(server, path, body)


@pytest.mark.parametrize("path", [PATHS["tfserving"], PATHS["inference"], PATHS["openai"]])
@few
@given(values)
def test_any_json(server, path, value):
    refused(server, path, json.dumps(value).encode())


@pytest.mark.parametrize("path", [PATHS["tfserving"], PATHS["inference"], PATHS["openai"]])
@few
@given(st.dictionaries(keys, likely, max_size=6))
@example({"instances": [{"b64": "\ud800"}]})
@example({"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [10**400], "data": []}]})
@example({"model": "default", "input": ["data:image/png;base64," + "A" * 3]})
def test_json_that_is_nearly_right(server, path, value):
    refused(server, path, json.dumps(value).encode(), may_succeed=True)


@few
@given(st.dictionaries(keys, likely, max_size=5), st.binary(max_size=60), st.integers(-5, 5))
def test_binary_data(server, tensor, binary, off):
    fixed = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(binary)}}
    text = json.dumps({"inputs": [{**tensor, **fixed}]}).encode()
    refused(server, PATHS["inference"], text + binary, {LENGTH: str(len(text) + off)})


@few
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4), st.binary(max_size=30))
def test_lengths_of_binary_elements(server, lengths, content):
    binary = b"".join(struct.pack("<I", length) + content for length in lengths)
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [len(lengths)]}
    text = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(binary)}}]}).encode()
    refused(server, PATHS["inference"], text + binary, {LENGTH: str(len(text))})


@few
@given(st.binary(min_size=1, max_size=40), st.integers(0, len(PICTURE.getvalue()) - 1))
def test_a_picture_with_other_bytes_in_it(server, other, place):
    """Some of them can be decoded still."""
    picture = PICTURE.getvalue()
    content = picture[:place] + other + picture[place + len(other) :]
    refused(server, PATHS["inference"], content, {LENGTH: "0"}, may_succeed=True)
    refused(server, PATHS["classify"], content, may_succeed=True)
    refused(
        server,
        PATHS["openai"],
        {"model": "default", "input": f"data:;base64,{base64.b64encode(content).decode()}"},
        may_succeed=True,
    )


@few
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30), st.binary(max_size=200))
@example("x", b"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\n")
def test_multipart(server, boundary, body):
    refused(server, PATHS["classify"], body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
