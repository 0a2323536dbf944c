"""The service's own protocol, as far as the other protocols rest on it."""

from tests.extract.service import serving


def test_the_head_answers(server, served):
    [photo] = serving.photos(served, 1)
    reply = server.post("/v1/classify/things", photo)
    assert reply.status == 200
    assert reply.json["images"][0]["labels"][0]["label"] == serving.LABELS[0]
