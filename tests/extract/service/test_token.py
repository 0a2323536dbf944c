"""A service with a token and a small limit: what each protocol's client makes of a refusal."""

import base64

import numpy as np
import openai
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.extract.service import serving


@pytest.fixture(scope="module")
def guarded(served, tmp_path_factory):
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text("secret\n")
    running = serving.Server(served, "--token_file", file, "--max_request_mb", 1)
    yield running
    assert running.stop() == 0


def uri(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_openai(guarded, served):
    [photo] = serving.photos(served, 1)
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="secret", max_retries=0) as client:
        assert len(client.embeddings.create(model="default", input=uri(photo)).data[0].embedding) == 8
        with pytest.raises(openai.APIStatusError, match="--max_request_mb 1") as caught:
            client.embeddings.create(model="default", input=uri(bytes(1 << 20)))
        assert caught.value.status_code == 413
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="--token_file") as caught:
            client.embeddings.create(model="default", input=uri(photo))
        assert (caught.value.code, caught.value.type) == ("invalid_api_key", "authentication_error")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_triton(guarded, served):
    client = triton.InferenceServerClient(f"127.0.0.1:{guarded.port}")
    tensor = triton.InferInput("image_bytes", [1], "BYTES")
    tensor.set_data_from_numpy(np.array(serving.photos(served, 1), np.object_))
    assert client.is_server_live() and client.is_server_ready()  # probes have no token
    assert not client.is_model_ready("things")  # which would tell the names of heads
    with pytest.raises(InferenceServerException, match="--token_file"):
        client.infer("things", [tensor])
    headers = {"Authorization": "Bearer secret"}
    assert client.is_model_ready("things", headers=headers)
    assert client.infer("things", [tensor], headers=headers).as_numpy("label").shape == (1,)
    client.close()


def test_tensorflow_serving(guarded):
    for path in ("/v1/models/things", "/v1/models/things/metadata"):
        assert guarded.get(path).status == 401 and "--token_file" in guarded.get(path).error
        assert guarded.get(path, {"Authorization": "Bearer secret"}).status == 200
    reply = guarded.post("/v1/models/things:predict", {"instances": []})
    assert reply.status == 401
