"""TensorFlow Serving's REST interface, against the exported classifier as TensorFlow runs it."""

import base64

import numpy as np
import pytest

from tests.extract.service import reference, serving

PREDICT = "/v1/models/things:predict"


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


@pytest.fixture(scope="module")
def signature(served):
    """The signature of the exported classifier, as TensorFlow Serving reads it from the file."""
    from google.protobuf import json_format
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    model.ParseFromString((served / serving.HEAD / "latest/saved_model/saved_model.pb").read_bytes())
    return json_format.MessageToDict(
        model.meta_graphs[0].signature_def["serving_default"],
        always_print_fields_with_no_presence=True,
        preserving_proto_field_name=True,
    )


def test_status(server):
    version = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/things", "/v1/models/things/versions/1"):
        reply = server.get(path)
        assert (reply.status, reply.json) == (200, {"model_version_status": [version]})


def test_metadata_are_those_of_the_exported_classifier(server, signature):
    signature.pop("defaults", None)  # which only newer versions of TensorFlow have
    for path in ("/v1/models/things/metadata", "/v1/models/things/versions/1/metadata"):
        found = server.get(path).json
        assert found["model_spec"] == {"name": "things", "signature_name": "", "version": "1"}
        assert found["metadata"] == {"signature_def": {"signature_def": {"serving_default": signature}}}


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/things/versions/1:predict"])
@pytest.mark.parametrize("is_named", [False, True])
def test_rows(server, wanted, path, is_named):
    instances = [{"image_bytes": b64(c)} if is_named else b64(c) for c in wanted.contents]
    reply = server.post(path, {"instances": instances, "signature_name": "serving_default"})
    assert reply.status == 200 and reply.json.keys() == {"predictions"}
    assert [row["label"] for row in reply.json["predictions"]] == wanted.labels
    reference.assert_probabilities([row["probabilities"] for row in reply.json["predictions"]], wanted.probabilities)


@pytest.mark.parametrize("is_named", [False, True])
def test_columns(server, wanted, is_named):
    images = [b64(content) for content in wanted.contents]
    reply = server.post(PREDICT, {"inputs": {"image_bytes": images} if is_named else images})
    assert reply.status == 200 and reply.json.keys() == {"outputs"}
    assert reply.json["outputs"]["label"] == wanted.labels
    reference.assert_probabilities(reply.json["outputs"]["probabilities"], wanted.probabilities)


def test_the_temperature_is_1_and_not_that_of_the_head(server, wanted):
    row = server.post(PREDICT, {"instances": [b64(wanted.contents[0])]}).json["predictions"][0]["probabilities"]
    native = server.post("/v1/classify/things", wanted.contents[0]).json["images"][0]["labels"]
    assert native[0]["probability"] < max(row) - 0.01
    hotter = np.sort(np.power(row, 1 / serving.TEMPERATURE))[::-1]
    reference.assert_probabilities([one["probability"] for one in native], hotter / hotter.sum())


def test_the_type_of_the_body_does_not_matter(server, wanted):
    """curl -d says that it sends a form."""
    import json

    body = json.dumps({"instances": [b64(wanted.contents[0])]}).encode()
    reply = server.post(PREDICT, body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert reply.json["predictions"][0]["label"] == wanted.labels[0]


@pytest.mark.parametrize(
    "body, words",
    [
        ({}, "instances"),
        ({"instances": [], "inputs": []}, "not both"),
        ({"instances": []}, "at least one image"),
        ({"instances": {"b64": "AAAA"}}, "at least one image"),
        ({"inputs": {"b64": "AAAA"}}, "image_bytes"),
        ({"inputs": {"image_bytes": {"b64": "AAAA"}}}, "at least one image"),
        ({"inputs": {"image_bytes": [], "other": []}}, "image_bytes"),
        ({"instances": [1, 2]}, '{"b64"'),
        ({"instances": [[1.0, 2.0], [3.0, 4.0]]}, '{"b64"'),
        ({"instances": ["text"]}, '{"b64"'),
        ({"instances": [{"b64": "AAAA", "more": 1}]}, '{"b64"'),
        ({"instances": [{"images": {"b64": "AAAA"}}]}, '{"b64"'),
        ({"instances": [{"b64": 7}]}, "string in base64"),
        ({"instances": [{"b64": "?"}]}, "string in base64"),
        ({"instances": [{"b64": ""}]}, "without bytes"),
        ({"instances": ["https://example.org/a.jpg"]}, "no URL"),
        ({"instances": [{"b64": "https://example.org/a.jpg"}]}, "no URL"),
        ({"instances": [{"b64": "/etc/passwd"}]}, "no path"),
        ({"instances": [{"b64": "AAAA"}], "signature_name": "images"}, "there is: serving_default"),
        ({"instances": [{"b64": "AAAA"}], "signature_name": ["x"]}, "there is: serving_default"),
        ([], "no JSON object"),
        (b"", "no JSON"),
        (b"\xff\xd8\xff", "no JSON"),
    ],
)
def test_wrong_bodies(server, body, words):
    reply = server.post(PREDICT, body)
    assert reply.status == 400 and words in reply.error, reply.body
    assert reply.json.keys() == {"error"} and "\n" not in reply.error


def test_one_broken_image_fails_the_request(server, wanted):
    images = [b64(wanted.contents[0]), b64(wanted.contents[1][:-30]), b64(wanted.contents[2])]
    reply = server.post(PREDICT, {"instances": images})
    assert reply.status == 400 and reply.error.startswith("image 2 of 3: "), reply.body
    reply = server.post(PREDICT, {"instances": [b64(b"no image")]})
    assert reply.status == 400 and "not a JPEG" in reply.error


def test_too_many_images(server):
    reply = server.post(PREDICT, {"instances": [b64(b"x")] * 257})
    assert reply.status == 413 and "--max_images" in reply.error


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/other",
        "/v1/models/other/metadata",
        "/v1/models/things/versions/2",
        "/v1/models/things/versions/01",
        "/v1/models/things/versions/x/metadata",
        "/v1/models/things/labels/stable",
        "/v1/models/%ff%fe",
    ],
)
def test_what_is_not_there(server, path):
    reply = server.get(path)
    assert reply.status == 404 and reply.error, reply.body


def test_predictions_of_what_is_not_there(server):
    for path, words in (("other:predict", "there are: things"), ("things/versions/2:predict", "there is: 1")):
        reply = server.post(f"/v1/models/{path}", {"instances": [b64(b"x")]})
        assert reply.status == 404 and words in reply.error


def test_a_compressed_body_is_refused(server):
    reply = server.post(PREDICT, {"instances": []}, {"Content-Encoding": "gzip"})
    assert reply.status == 415 and "Content-Encoding" in reply.error
