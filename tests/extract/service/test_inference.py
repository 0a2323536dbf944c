"""The Open Inference Protocol, by Triton's own client and byte by byte."""

import base64
import json
import struct

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.extract.service import reference, serving

INFER = "/v2/models/things/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def client(server):
    made = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield made
    made.close()


def b64(content):
    return base64.b64encode(content).decode()


def asked(contents, binary):
    """The input for Triton's client, which sends JSON strings as they are."""
    elements = contents if binary else [b64(content) for content in contents]
    tensor = triton.InferInput("image_bytes", [len(contents)], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, np.object_), binary_data=binary)
    return [tensor]


def request(*data, **others):
    return {"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": [len(data)], "data": data, **others}]}


def binary_body(elements, count=None, size=None, **others):
    """A body with binary data, and its headers."""
    data = b"".join(struct.pack("<I", len(one)) + one for one in elements)
    count, size = len(elements) if count is None else count, len(data) if size is None else size
    tensor = {"name": "image_bytes", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor | others]}).encode()
    return text + data, {LENGTH: str(len(text))}


def test_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("things") and client.is_model_ready("things", "1")
    assert not client.is_model_ready("other") and not client.is_model_ready("things", "2")
    metadata = client.get_server_metadata()
    assert metadata["name"] == "bottleneck-retrain"
    assert metadata["extensions"] == ["binary_tensor_data", "classification"]
    for version in ("", "1"):
        model = client.get_model_metadata("things", version)
        assert (model["name"], model["versions"]) == ("things", ["1"])
        [tensor] = model["inputs"]
        assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("image_bytes", "BYTES", [-1])
        assert model["outputs"] == [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ]


def check(result, wanted):
    probabilities, labels = result.as_numpy("probabilities"), result.as_numpy("label")
    assert (probabilities.dtype, probabilities.shape) == (np.float32, wanted.probabilities.shape)
    reference.assert_probabilities(probabilities, wanted.probabilities)
    assert [label.decode() if isinstance(label, bytes) else label for label in labels] == wanted.labels


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_infer(client, wanted, version, binary_in, binary_out):
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]
    inputs = asked(wanted.contents, binary_in)
    result = client.infer("things", inputs, version, outputs, request_id="caf\u00e9 42")
    check(result, wanted)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("caf\u00e9 42", "things", "1")
    is_binary = ["binary_data_size" in output.get("parameters", {}) for output in response["outputs"]]
    assert is_binary == [binary_out is not False] * 2


def test_each_output_may_be_binary_or_not(client, wanted):
    outputs = [triton.InferRequestedOutput("label", True), triton.InferRequestedOutput("probabilities", False)]
    check(client.infer("things", asked(wanted.contents, True), outputs=outputs), wanted)
    result = client.infer("things", asked(wanted.contents, True), outputs=outputs[:1])
    assert result.as_numpy("probabilities") is None and len(result.as_numpy("label")) == len(wanted.contents)


def test_classification(client, wanted):
    for binary in (False, True):
        outputs = [triton.InferRequestedOutput("probabilities", binary, class_count=2)]
        found = client.infer("things", asked(wanted.contents, True), outputs=outputs).as_numpy("probabilities")
        assert found.shape == (len(wanted.contents), 2)
        for row, scores in zip(found, wanted.probabilities, strict=True):
            texts = [text.decode() if isinstance(text, bytes) else text for text in row]
            values, places, labels = zip(*(text.split(":") for text in texts), strict=True)
            best = np.argsort(-scores)[:2]
            assert [int(place) for place in places] == best.tolist()
            assert list(labels) == [serving.LABELS[c] for c in best]
            np.testing.assert_allclose(
                [float(value) for value in values], scores[best], atol=1e-6 + reference.ROUNDING_OF_PROBABILITIES
            )


def test_json_takes_objects_too(server, wanted):
    reply = server.post(INFER, request(*({"b64": b64(content)} for content in wanted.contents)))
    assert reply.status == 200 and reply.headers["content-type"] == "application/json" and "id" not in reply.json
    probabilities, label = reply.json["outputs"]
    assert (probabilities["shape"], label["shape"]) == ([5, 3], [5])
    reference.assert_probabilities(np.reshape(probabilities["data"], [5, 3]), wanted.probabilities)


def test_raw_body(server, wanted):
    reply = server.post(INFER, wanted.contents[1], {LENGTH: "0", "Content-Type": "application/octet-stream"})
    assert reply.status == 200, reply.body
    assert reply.json["outputs"][1]["data"] == wanted.labels[1:2]
    reference.assert_probabilities([reply.json["outputs"][0]["data"]], wanted.probabilities[1:2])


def test_binary_output_of_json_input(server, wanted):
    body = request(b64(wanted.contents[0])) | {"parameters": {"binary_data_output": True}}
    reply = server.post(INFER, body)
    length = int(reply.headers[LENGTH.lower()])
    outputs = json.loads(reply.body[:length])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == [12, 4 + len(wanted.labels[0])]
    reference.assert_probabilities([np.frombuffer(reply.body[length:][:12], "<f4")], wanted.probabilities[:1])
    assert reply.body[length + 12 :] == struct.pack("<I", len(wanted.labels[0])) + wanted.labels[0].encode()


@pytest.mark.parametrize(
    "body, words",
    [
        ({}, "only input: image_bytes"),
        ({"inputs": []}, "only input: image_bytes"),
        ({"inputs": [1]}, "only input: image_bytes"),
        ({"inputs": request("a")["inputs"] * 2}, "only input: image_bytes"),
        (request("AAAA", name="images"), "there is: image_bytes"),
        (request("AAAA", name=[[]]), "there is: image_bytes"),
        (request("AAAA", datatype="UINT8"), "BYTES"),
        (request("AAAA", shape=[1, 1]), "shape"),
        (request("AAAA", shape=[True]), "shape"),
        (request("AAAA", shape=[-1]), "shape"),
        (request("AAAA", shape=[1.0]), "shape"),
        (request(shape=[0]), "shape"),
        (request("AAAA", shape=[2]), "as many images"),
        (request("AAAA", data="AAAA"), "as many images"),
        (request("text"), "not a JPEG"),
        (request("a text"), "base64"),
        (request(""), "without bytes"),
        (request(7), "base64"),
        (request({"b64": "AAAA", "more": 1}), "base64"),
        (request("https://example.org/a.jpg"), "no URL"),
        (request("/etc/passwd"), "no path"),
        (request("AAAA", parameters=[]), "parameters"),
        (request("AAAA", parameters={"shared_memory_region": "x"}), "no memory"),
        (request("AAAA", parameters={"binary_data_size": 4}), "both data and"),
        (request("AAAA") | {"id": 7}, "the id"),
        (request("AAAA") | {"parameters": {"binary_data_output": 1}}, "true or false"),
        (request("AAAA") | {"outputs": {}}, "list of objects"),
        (request("AAAA") | {"outputs": [1]}, "list of objects"),
        (request("AAAA") | {"outputs": [{"name": "logits"}]}, "there are: probabilities, label"),
        (request("AAAA") | {"outputs": [{"name": {}}]}, "there are: probabilities, label"),
        (request("AAAA") | {"outputs": [{"name": "label"}] * 2}, "twice"),
        (request("AAAA") | {"outputs": [{"name": "label", "parameters": {"classification": 1}}]}, "classes"),
        (request("AAAA") | {"outputs": [{"name": "probabilities", "parameters": {"classification": "2"}}]}, "classes"),
        (request("AAAA") | {"outputs": [{"name": "label", "parameters": {"binary_data": "yes"}}]}, "true or false"),
        ([], "no JSON object"),
        (b"", "no JSON"),
        (b"\x89PNG", "no JSON"),
    ],
)
def test_wrong_bodies(server, body, words):
    check_refused(server.post(INFER, body), words)


def check_refused(reply, words, status=400):
    assert reply.status == status and words in reply.error, reply.body
    assert reply.json.keys() == {"error"} and "\n" not in reply.error


@pytest.mark.parametrize(
    "body, words",
    [
        (binary_body([b"abc"], size=8), "not what follows the JSON, 7 bytes"),
        (binary_body([b"abc"], size="7"), "not what follows"),
        (binary_body([b"abc"], size=True), "not what follows"),
        (binary_body([b"abc"], size=-1), "not what follows"),
        (binary_body([b"abc"], size=None, parameters={}), "no input has a binary_data_size"),
        (binary_body([b"abc"], count=2), "within element 2 of 2"),
        (binary_body([b"abc", b"de"], count=1), "6 bytes more"),
        (binary_body([b"abc", b""]), "element 2 of 2"),
        (binary_body([b"abc"], data=["AAAA"]), "both data and"),
        ((binary_body([b"abc"])[0], {LENGTH: "9999"}), "up to the length"),
        ((binary_body([b"abc"])[0], {LENGTH: "-1"}), "up to the length"),
        ((binary_body([b"abc"])[0], {LENGTH: "\u00b2"}), "up to the length"),
        ((binary_body([b"abc"])[0], {LENGTH: "9" * 5000}), "up to the length"),
        ((binary_body([b"abc"])[0], {LENGTH: "5"}), "no JSON"),
        ((binary_body([b"abc"])[0], {}), "no JSON"),
        ((binary_body([])[0].replace(b"[0]", b"[1]"), {}), "need the header"),
        ((b"", {LENGTH: "0"}), "empty"),
        ((b"no image", {LENGTH: "0"}), "not a JPEG"),
    ],
)
def test_wrong_binary_data(server, body, words):
    content, headers = body
    check_refused(server.post(INFER, content, headers), words)


def test_broken_images_fail_the_request(client, wanted):
    contents = [wanted.contents[0], wanted.contents[1][:-30]]
    for binary in (False, True):
        with pytest.raises(InferenceServerException, match="image 2 of 2: ") as caught:
            client.infer("things", asked(contents, binary))
        assert caught.value.status() == "400"


def test_too_many_images(server):
    for body, headers in (binary_body([b"x"] * 257), binary_body([b"x"], count=10**18)):
        check_refused(server.post(INFER, body, headers), "--max_images", 413)


def test_what_is_not_there(server, client, wanted):
    for path in ("/v2/models/other", "/v2/models/things/versions/2", "/v2/models/things/versions/x/ready"):
        assert server.get(path).status == 404 and server.get(path).error
    for name, version in (("other", ""), ("things", "2")):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, asked(wanted.contents, True), version)
        assert caught.value.status() == "404"


def test_half_of_a_surrogate_pair_is_echoed(server, wanted):
    reply = server.post(INFER, request(b64(wanted.contents[0])) | {"id": "\ud800"})
    assert reply.status == 200 and reply.json["id"] == "\ud800"
