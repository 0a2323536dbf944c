"""The Open Inference Protocol, version 2, over HTTP: what KServe and Triton speak. Each head is a model.

The specifications are "Open Inference Protocol, HTTP/REST" and Triton's two extensions "binary tensor data" and
"classification". A model has the tensors of the classifier that a training exports: `image_bytes` BYTES [N], image
files, in; `probabilities` FP32 [N, C], at temperature 1, and `label` BYTES [N] out. In JSON, an element of
`image_bytes` is base64 as a string, which the metadata say as the content type of the input, or {"b64": base64}. Binary
elements are the files themselves, each behind its length. A body with `Inference-Header-Content-Length: 0` is one file.
Errors are {"error": sentence}.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from starlette.responses import Response

from extract.service.call import Call
from extract.service.endpoint import JSON, OCTETS, Endpoint, Json, images_of_base64, parse_json, quoted
from extract.service.protocols.tfserving import INPUT, LABEL, PROBABILITIES, classified, find
from extract.service.refused import Refused
from extract.service.service import DEAD, READY

HEADER_LENGTH = "Inference-Header-Content-Length"  # of the JSON before the binary data
_EXTENSIONS = ["binary_tensor_data", "classification"]
_TAG = "Open Inference"


class _Output(NamedTuple):
    """An output that a request asks for."""

    name: str
    is_binary: bool
    best: int | None = None  # as strings VALUE:INDEX:LABEL, so many of the most likely classes


async def server(call: Call) -> Response:
    return Json({"name": "bottleneck-retrain", "version": "1", "extensions": _EXTENSIONS})


async def live(call: Call) -> Response:
    is_live = call.service.state != DEAD
    return Json({"live": is_live}, 200 if is_live else 500)


async def ready(call: Call) -> Response:
    is_ready = call.service.state == READY
    return Json({"ready": is_ready}, 200 if is_ready else 503)


async def model_ready(call: Call) -> Response:
    loaded = find(call)
    is_ready = call.service.state == READY
    return Json({"name": loaded.name, "ready": is_ready}, 200 if is_ready else 503)


async def model(call: Call) -> Response:
    loaded = find(call)
    return Json(
        {
            "name": loaded.name,
            "versions": [str(loaded.version)],
            "platform": "bottleneck-retrain",
            "inputs": [
                {"name": INPUT, "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "base64"}},
            ],
            "outputs": [
                {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(loaded.head.labels)]},
                {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
            ],
        }
    )


async def infer(call: Call) -> Response:
    find(call)
    images, outputs, identity = await _read(call)
    loaded, probabilities, labels = await classified(call, images)
    tensors, binary = [], []
    for output in outputs:
        tensor, data = _tensor(output, probabilities, labels, loaded.head.labels)
        tensors.append(tensor)
        binary.append(data)
    answer = {"model_name": loaded.name, "model_version": str(loaded.version), "outputs": tensors}
    written = Json(answer if identity is None else {**answer, "id": identity})
    if not any(output.is_binary for output in outputs):
        return written
    headers = {HEADER_LENGTH: str(len(written.body))}
    return Response(b"".join([written.body, *binary]), media_type=OCTETS, headers=headers)


async def _read(call: Call) -> tuple[list[bytes], list[_Output], str | None]:
    """The image files of a request, what it asks for, and its id. Raises Refused."""
    body = await call.body()
    length = _header_length(call, len(body))
    if length == 0:
        call.take_images(1)
        if not body:
            raise _malformed("no image: the body is empty")
        return [body], _outputs({}), None
    request = await parse_json(body if length is None else body[:length], call.service.settings.max_images)
    outputs, identity = _outputs(request), request.get("id")
    if not isinstance(identity, str | None):
        raise _malformed("the id of a request is a string")
    return await _images(call, request, None if length is None else memoryview(body)[length:]), outputs, identity


def _header_length(call: Call, most: int) -> int | None:
    text = call.request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 16) or int(text) > most:
        raise _malformed(f"{HEADER_LENGTH} is not a number of bytes up to the length of the body, {most}")
    return int(text)


async def _images(call: Call, request: Mapping[str, Any], binary: memoryview | None) -> list[bytes]:
    """The image files of a request, whose binary data follow the JSON. Raises Refused."""
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _malformed(f'"inputs" is a list of the only input: {INPUT}')
    [tensor] = inputs
    if tensor.get("name") != INPUT:
        raise _malformed(f"no input {quoted(tensor.get('name'))}; there is: {INPUT}")
    if tensor.get("datatype") != "BYTES":
        raise _malformed(f"the datatype of {INPUT} is BYTES: image files")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 1:
        raise _malformed(f"the shape of {INPUT} is a list of one number, how many images there are")
    [count] = shape
    call.take_images(count)
    parameters = _parameters(tensor)
    if "shared_memory_region" in parameters:
        raise _malformed("this service shares no memory with its clients: send the bytes of the images")
    size = parameters.get("binary_data_size")
    if size is None:
        return await _from_json(tensor, count, 0 if binary is None else len(binary))
    if "data" in tensor:
        raise _malformed(f"{INPUT} has both data and binary_data_size")
    if binary is None:
        raise _malformed(f"binary data need the header {HEADER_LENGTH}, the length of the JSON before them")
    if type(size) is not int or size != len(binary):
        raise _malformed(f"binary_data_size is not what follows the JSON, {len(binary)} bytes")
    return _elements(binary, count)


async def _from_json(tensor: Mapping[str, Any], count: int, behind: int) -> list[bytes]:
    if behind:
        raise _malformed(f"{behind} bytes follow the JSON, and no input has a binary_data_size")
    data = tensor.get("data")
    if not isinstance(data, list) or len(data) != count:
        raise _malformed(f"the data of {INPUT} are a list of as many images as its shape says, {count}")
    texts = [one["b64"] if isinstance(one, dict) and one.keys() == {"b64"} else one for one in data]
    return await images_of_base64(texts)


def _elements(binary: memoryview, count: int) -> list[bytes]:
    """The elements of a BYTES tensor: before each is its length, 4 bytes, little-endian. Raises Refused."""
    images, place = [], 0
    for number in range(1, count + 1):
        length = int.from_bytes(binary[place : place + 4], "little")
        end = place + 4 + length
        if end > len(binary):
            raise _malformed(f"the binary data end within element {number} of {count}")
        if not length:
            raise _malformed(f"element {number} of {count} is an image without bytes")
        images.append(bytes(binary[place + 4 : end]))
        place = end
    if place < len(binary):
        raise _malformed(f"the binary data have {len(binary) - place} bytes more than their {count} elements")
    return images


def _outputs(request: Mapping[str, Any]) -> list[_Output]:
    """What a request asks for, or else all that there is. Raises Refused."""
    is_binary = _flag(_parameters(request), "binary_data_output", False)
    asked = request.get("outputs")
    if asked is None or asked == []:
        return [_Output(PROBABILITIES, is_binary), _Output(LABEL, is_binary)]
    if not isinstance(asked, list) or not all(isinstance(one, dict) for one in asked):
        raise _malformed('"outputs" is a list of objects')
    found: list[_Output] = []
    for one in asked:
        name, parameters = one.get("name"), _parameters(one)
        if name not in (PROBABILITIES, LABEL):
            raise _malformed(f"no output {quoted(name)}; there are: {PROBABILITIES}, {LABEL}")
        if name in (output.name for output in found):
            raise _malformed(f"the output {name} is asked for twice")
        if "shared_memory_region" in parameters:
            raise _malformed("this service shares no memory with its clients")
        best = parameters.get("classification") or None
        if best is not None and (type(best) is not int or best < 1 or name != PROBABILITIES):
            raise _malformed(f"classification is a number of classes, of the output {PROBABILITIES}")
        found.append(_Output(name, _flag(parameters, "binary_data", is_binary), best))
    return found


def _parameters(of: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = of.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _malformed('"parameters" is an object')
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _malformed(f"{name} is true or false")
    return value


def _tensor(
    output: _Output, probabilities: np.ndarray, labels: list[str], classes: Any
) -> tuple[dict[str, Any], bytes]:
    """An output tensor for the JSON, and its binary data, if it is to have such."""
    if output.name == PROBABILITIES and output.best is None:
        tensor: dict[str, Any] = {"name": PROBABILITIES, "datatype": "FP32", "shape": list(probabilities.shape)}
        data: Any = probabilities.astype("<f4").tobytes() if output.is_binary else probabilities.ravel().tolist()
    else:
        rows = [[label] for label in labels]
        if output.best is not None:
            rows = [_best(row, classes, output.best) for row in probabilities]
        shape = [len(rows)] if output.best is None else [len(rows), len(rows[0])]
        tensor = {"name": output.name, "datatype": "BYTES", "shape": shape}
        data = [text for row in rows for text in row]
        if output.is_binary:
            encoded = [text.encode("utf-8", "surrogateescape") for text in data]
            data = b"".join(struct.pack("<I", len(element)) + element for element in encoded)
    if output.is_binary:
        return {**tensor, "parameters": {"binary_data_size": len(data)}}, data
    return {**tensor, "data": data}, b""


def _best(row: np.ndarray, classes: Any, count: int) -> list[str]:
    best = (-row).argsort(kind="stable")[:count].tolist()
    return [f"{row[c]:.6f}:{c}:{classes[c]}" for c in best]


def _malformed(message: str) -> Refused:
    return Refused(400, message, "malformed")


def _endpoints() -> list[Endpoint]:
    found = [
        Endpoint("GET", "/v2", server, "The name of this server, and its extensions.", _TAG),
        Endpoint("GET", "/v2/health/live", live, "Whether the process does its work.", _TAG, is_free=True),
        Endpoint("GET", "/v2/health/ready", ready, "Whether requests are answered.", _TAG, is_free=True),
    ]
    for path in ("/v2/models/{head}", "/v2/models/{head}/versions/{version}"):
        found += [
            Endpoint("GET", path, model, "The tensors of a head.", _TAG),
            Endpoint("GET", f"{path}/ready", model_ready, "Whether a head answers.", _TAG),
            Endpoint(
                "POST",
                f"{path}/infer",
                infer,
                "Probabilities and label of each image, as the exported classifier gives them.",
                _TAG,
                takes=(JSON, OCTETS),
                gives=(JSON, OCTETS),
            ),
        ]
    return found


ENDPOINTS = _endpoints()
