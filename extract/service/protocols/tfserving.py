"""TensorFlow Serving's REST interface: each head answers as its exported classifier would under TensorFlow Serving.

The specification is TensorFlow Serving's page "RESTful API": model status, model metadata and predict, the latter with
`instances` (rows) or `inputs` (columns). The model is the SavedModel that a training exports, with its signature
`serving_default`: `image_bytes` string [N] in; `probabilities` float32 [N, C] and `label` string [N] out. Those
probabilities have the temperature 1, unlike those of `/v1/classify`. A version is how often the head was replaced,
from 1 on, and only the newest is there. Errors are {"error": sentence}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from starlette.responses import Response

from extract.service.call import Call
from extract.service.endpoint import (
    JSON,
    Endpoint,
    Json,
    images_of_base64,
    is_place,
    json_of_rows,
    not_fetched,
    parse_json,
    quoted,
    raise_for_any,
)
from extract.service.heads import Loaded
from extract.service.refused import Refused
from extract.service.service import DEAD, DRAINING, LOADING, READY

INPUT, PROBABILITIES, LABEL = "image_bytes", "probabilities", "label"
SIGNATURE = "serving_default"
_TAG = "TensorFlow Serving"
_STATES = {LOADING: "LOADING", READY: "AVAILABLE", DRAINING: "UNLOADING", DEAD: "END"}


def find(call: Call) -> Loaded:
    """The head that the path names, in the version that it names, if any. Raises Refused, 404."""
    loaded = call.service.heads.find(call.request.path_params["head"])
    check_version(call, loaded)
    return loaded


def check_version(call: Call, loaded: Loaded) -> None:
    """Raises Refused, 404, where the path names another version than the one that is loaded."""
    version = call.request.path_params.get("version")
    if version is not None and version != str(loaded.version):
        raise Refused(
            404, f"no version {quoted(version)} of head {loaded.name!r}; there is: {loaded.version}", "unknown"
        )


async def classified(call: Call, images: list[bytes]) -> tuple[Loaded, np.ndarray, list[str]]:
    """The head that answered; as its exported classifier gives them, probabilities float32 [N, C] and N labels.

    Raises Refused where one of the images has no answer.
    """
    loaded, answers = await call.service.classify(call.request.path_params["head"], images, call.deadline)
    raise_for_any(answers)
    check_version(call, loaded)  # a training may have replaced it meanwhile
    bottlenecks = np.stack([answer.bottleneck for answer in answers])  # type: ignore[union-attr]
    probabilities = loaded.head.probabilities(bottlenecks, 1)
    return loaded, probabilities, [loaded.head.labels[c] for c in probabilities.argmax(axis=1).tolist()]


async def status(call: Call) -> Response:
    loaded = find(call)
    version = {
        "version": str(loaded.version),
        "state": _STATES[call.service.state],
        "status": {"error_code": "OK", "error_message": ""},
    }
    return Json({"model_version_status": [version]})


async def metadata(call: Call) -> Response:
    loaded = find(call)
    signature = {
        "inputs": {INPUT: _tensor(f"{SIGNATURE}_{INPUT}:0", "DT_STRING", -1)},
        "outputs": {
            PROBABILITIES: _tensor("StatefulPartitionedCall:1", "DT_FLOAT", -1, len(loaded.head.labels)),
            LABEL: _tensor("StatefulPartitionedCall:0", "DT_STRING", -1),
        },
        "method_name": "tensorflow/serving/predict",
    }
    return Json(
        {
            "model_spec": {"name": loaded.name, "signature_name": "", "version": str(loaded.version)},
            "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
        }
    )


def _tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    sizes = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}


async def predict(call: Call) -> Response:
    find(call)
    images, is_in_rows = await _read(call)
    _, probabilities, labels = await classified(call, images)
    if not is_in_rows:
        return Json({"outputs": {PROBABILITIES: probabilities.tolist(), LABEL: labels}})
    rows = [{PROBABILITIES: row, LABEL: label} for row, label in zip(probabilities.tolist(), labels, strict=True)]
    return await json_of_rows({}, "predictions", rows, probabilities.size)


async def _read(call: Call) -> tuple[list[bytes], bool]:
    """The image files of a request, and whether they came in rows. Raises Refused."""
    body = await parse_json(await call.body(), call.service.settings.max_images)
    name = body.get("signature_name", SIGNATURE)
    if name not in (SIGNATURE, ""):
        raise _malformed(f"no signature {quoted(name)}; there is: {SIGNATURE}")
    if ("instances" in body) == ("inputs" in body):
        raise _malformed('send either "instances", a list of images, or "inputs", and not both')
    texts = _rows(body["instances"]) if "instances" in body else _column(body["inputs"])
    call.take_images(len(texts))
    return await images_of_base64(texts), "instances" in body


def _rows(instances: Any) -> list[Any]:
    """The base64 of each image in row format. Raises Refused."""
    return [
        _text(one[INPUT] if isinstance(one, dict) and one.keys() == {INPUT} else one)
        for one in _listed(instances, "instances")
    ]


def _column(inputs: Any) -> list[Any]:
    """The base64 of each image in column format. Raises Refused."""
    if isinstance(inputs, dict):
        if inputs.keys() != {INPUT}:
            raise _malformed(f'"inputs" is a list of images, or an object with the only input: {INPUT}')
        inputs = inputs[INPUT]
    return [_text(one) for one in _listed(inputs, "inputs")]


def _listed(images: Any, name: str) -> list[Any]:
    if not isinstance(images, list) or not images:
        raise _malformed(f'"{name}" is a list of at least one image')
    return images


def _text(image: Any) -> Any:
    if isinstance(image, str) and is_place(image):
        raise not_fetched()
    if not isinstance(image, dict) or image.keys() != {"b64"}:
        raise _malformed('an image is {"b64": base64 of its file}')
    return image["b64"]


def _malformed(message: str) -> Refused:
    return Refused(400, message, "malformed")


def _endpoints() -> list[Endpoint]:
    found = []
    for model in ("/v1/models/{head}", "/v1/models/{head}/versions/{version}"):
        found += [
            Endpoint("GET", f"{model}/metadata", metadata, "The signature of a head's exported classifier.", _TAG),
            Endpoint("GET", model, status, "The version of a head, and whether it answers.", _TAG),
            Endpoint(
                "POST",
                f"{model}:predict",
                predict,
                "Probabilities and label of each image, as the exported classifier gives them.",
                _TAG,
                takes=(JSON,),
            ),
        ]
    return found


ENDPOINTS = _endpoints()
