"""OpenAI's embeddings, by OpenAI's own client."""

import base64
import json

import numpy as np
import openai
import pytest

from cache.layout import directories
from cache.store import read_info
from tests.extract.service import reference


def uri(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def backbone(served):
    [directory] = directories(served / "cache")
    return read_info(directory)


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_embeddings(client, wanted, backbone, encoding):
    options = {} if encoding is None else {"encoding_format": encoding}
    images = [uri(content) for content in wanted.contents]
    reply = client.embeddings.with_raw_response.create(model="default", input=images, **options)
    assert reply.headers["X-Backbone-Fingerprint"] == backbone.fingerprint
    answer = reply.parse()
    assert (answer.object, answer.model) == ("list", backbone.module)
    assert [row.index for row in answer.data] == list(range(len(images)))
    assert {row.object for row in answer.data} == {"embedding"}
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (0, 0)
    vectors = [row.embedding for row in answer.data]
    if encoding == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    reference.assert_bottlenecks(vectors, wanted.bottlenecks)


def test_numbers_and_base64_are_the_same_floats(server, wanted):
    rows = []
    for encoding in ("float", "base64"):
        body = {"input": uri(wanted.contents[0]), "model": "default", "encoding_format": encoding}
        rows.append(server.post("/v1/embeddings", body).json["data"][0]["embedding"])
    assert np.array(rows[0], "<f4").tobytes() == base64.b64decode(rows[1])


def test_each_name_of_the_backbone(client, wanted, backbone):
    for model in (backbone.module, backbone.fingerprint, "default"):
        answer = client.embeddings.create(model=model, input=uri(wanted.contents[0]), dimensions=backbone.dimension)
        reference.assert_bottlenecks([answer.data[0].embedding], wanted.bottlenecks[:1])
    assert [one.id for one in client.models.list()] == [backbone.module, backbone.fingerprint, "default"]


@pytest.mark.parametrize("model", ["text-embedding-3-small", "", "things"])
def test_other_models(client, wanted, backbone, model):
    with pytest.raises(openai.NotFoundError, match=r"there are: .*default") as caught:
        client.embeddings.create(model=model, input=uri(wanted.contents[0]))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert backbone.fingerprint in caught.value.message


@pytest.mark.parametrize(
    "body, parameter, words",
    [
        ({"model": "default"}, "input", "data URI"),
        ({"input": "a photo of a rose"}, "input", "no text"),
        ({"input": ["a", "b"]}, "input", "no text"),
        ({"input": [1, 2, 3]}, "input", "no text"),
        ({"input": [[1, 2, 3]]}, "input", "no text"),
        ({"input": []}, "input", "at least one"),
        ({"input": {"image": "x"}}, "input", "data URI"),
        ({"input": None}, "input", "data URI"),
        ({"input": "https://example.org/a.jpg"}, "input", "no URL"),
        ({"input": "file:///etc/passwd"}, "input", "no URL"),
        ({"input": "/etc/passwd"}, "input", "no path"),
        ({"input": "data:image/png;base64,?"}, "input", "base64"),
        ({"input": "data:image/png,abc"}, "input", "base64"),
        ({"input": uri(b"")}, "input", "without bytes"),
        ({"input": uri(b"no image")}, "input", "not a JPEG"),
        ({"input": uri(b"\xff\xd8\xff"), "encoding_format": "hex"}, "encoding_format", "float or base64"),
        ({"input": uri(b"\xff\xd8\xff"), "encoding_format": [1]}, "encoding_format", "float or base64"),
        ({"input": uri(b"\xff\xd8\xff"), "dimensions": 3}, "dimensions", "8 dimensions"),
        ({"input": uri(b"\xff\xd8\xff"), "dimensions": "8"}, "dimensions", "8 dimensions"),
        ({"input": uri(b"\xff\xd8\xff"), "model": None}, "model", "default"),
        ({"input": uri(b"\xff\xd8\xff"), "model": 7}, "model", "default"),
        ([], None, "no JSON object"),
        (b"{", None, "no JSON"),
    ],
)
def test_wrong_bodies(server, body, parameter, words):
    if isinstance(body, dict):
        body = {"model": "default", **body}
    reply = server.post("/v1/embeddings", body)
    assert reply.status == 400, reply.body
    error = reply.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", parameter)
    assert words in error["message"] and "\n" not in error["message"]


def test_one_broken_image_fails_the_request(client, wanted):
    images = [uri(wanted.contents[0]), uri(wanted.contents[1][:-30])]
    with pytest.raises(openai.BadRequestError, match="image 2 of 2: "):
        client.embeddings.create(model="default", input=images)


def test_too_many_images(client):
    with pytest.raises(openai.APIStatusError, match="--max_images") as caught:
        client.embeddings.create(model="default", input=[uri(b"x")] * 257)
    assert caught.value.status_code == 413


def test_many_images_at_once(client, wanted):
    images = [uri(content) for content in wanted.contents * 40]
    answer = client.embeddings.create(model="default", input=images)
    reference.assert_bottlenecks([row.embedding for row in answer.data], np.tile(wanted.bottlenecks, (40, 1)))


def test_a_long_body_is_answered(server, wanted):
    """Of more than a megabyte, so that a thread parses it."""
    body = {"model": "default", "input": uri(wanted.contents[0]), "user": "x" * 2_000_000}
    reply = server.post("/v1/embeddings", json.dumps(body).encode())
    reference.assert_bottlenecks([reply.json["data"][0]["embedding"]], wanted.bottlenecks[:1])
