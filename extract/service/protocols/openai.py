"""OpenAI's embeddings: the bottlenecks of images, for clients and vector stores that speak this protocol.

The specification is OpenAI's API reference, "Create embeddings" and "List models", except that an input is an image as
a data URI and not a text. The model is the backbone, by its module's name or its fingerprint, or `default`. As numbers,
a bottleneck is float32 [D]; as base64, its bytes, little-endian. Errors are {"error": {"message", "type", "param",
"code"}}.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from starlette.responses import Response

from cache.layout import BackboneInfo
from extract.service.call import Call
from extract.service.endpoint import (
    FINGERPRINT,
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
    which,
)
from extract.service.refused import Refused

DEFAULT = "default"
_TAG = "OpenAI"
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class _ParameterRefused(Refused):
    """A parameter of the request that is wrong."""

    def __init__(self, parameter: str, message: str, status: int = 400, reason: str = "malformed"):
        super().__init__(status, message, reason)
        self.parameter = parameter


def refuse(refused: Refused) -> Response:
    """The body that this protocol gives with an error."""
    kind = _TYPES.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    parameter = refused.parameter if isinstance(refused, _ParameterRefused) else None
    code = "invalid_api_key" if refused.status == 401 else refused.reason
    error = {"message": refused.message, "type": kind, "param": parameter, "code": code}
    return Json({"error": error}, refused.status)


async def embeddings(call: Call) -> Response:
    backbone = call.service.ready_backbone
    images, encoding = await _read(call, backbone)
    vectors = await call.service.bottlenecks(images, call.deadline)
    try:
        raise_for_any(vectors)
    except Refused as refused:
        raise refused if refused.status >= 500 else _of_input(refused) from None
    rows = [
        {"object": "embedding", "index": place, "embedding": _encoded(vector, encoding)}
        for place, vector in enumerate(vectors)
        if not isinstance(vector, Refused)
    ]
    content = {"object": "list", "model": backbone.module, "usage": {"prompt_tokens": 0, "total_tokens": 0}}
    numbers = len(rows) * backbone.dimension
    return await json_of_rows(content, "data", rows, numbers, {FINGERPRINT: backbone.fingerprint})


async def _read(call: Call, backbone: BackboneInfo) -> tuple[list[bytes], str]:
    """The image files of a request, and how it wants their vectors: as float or base64. Raises Refused."""
    body = await parse_json(await call.body(), call.service.settings.max_images)
    _check_model(body.get("model"), backbone)
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _ParameterRefused("encoding_format", "encoding_format is float or base64")
    dimensions = body.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions != backbone.dimension):
        raise _ParameterRefused("dimensions", f"the vectors of this model have {backbone.dimension} dimensions")
    texts = _texts(body.get("input"))
    call.take_images(len(texts))
    try:
        return await images_of_base64(texts), encoding
    except Refused as refused:
        raise _of_input(refused) from None


async def models(call: Call) -> Response:
    backbone = call.service.ready_backbone
    names = [backbone.module, backbone.fingerprint, DEFAULT]
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "bottleneck-retrain"} for name in names]
    return Json({"object": "list", "data": listed})


def _check_model(model: Any, backbone: BackboneInfo) -> None:
    names = [backbone.module, backbone.fingerprint, DEFAULT]
    if not isinstance(model, str):
        raise _ParameterRefused("model", f"the model is a string, one of: {', '.join(names)}")
    if model not in names:
        message = f"no model {quoted(model)}; there are: {', '.join(names)}"
        raise _ParameterRefused("model", message, 404, "model_not_found")


def _texts(images: Any) -> list[str]:
    """The data URIs of an input. Raises Refused."""
    texts = [images] if isinstance(images, str) else images
    if not isinstance(texts, list) or not texts:
        raise _ParameterRefused("input", "the input is an image as a data URI, or a list of at least one")
    for place, text in enumerate(texts):
        if isinstance(text, str) and is_place(text):
            raise _of_input(which(not_fetched(), place, len(texts)))
        if not isinstance(text, str) or text[:5].lower() != "data:":
            message = "this service embeds images, and no text: send data URIs such as data:image/jpeg;base64,..."
            raise _ParameterRefused("input", message)
    return texts


def _of_input(refused: Refused) -> Refused:
    return _ParameterRefused("input", refused.message, refused.status, refused.reason)


def _encoded(vector: np.ndarray, encoding: str) -> list[float] | str:
    return vector.tolist() if encoding == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()


ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/embeddings",
        embeddings,
        "The bottleneck of each image, as OpenAI's embeddings.",
        _TAG,
        takes=(JSON,),
        refuse=refuse,
    ),
    Endpoint("GET", "/v1/models", models, "The names of the backbone, as OpenAI lists models.", _TAG, refuse=refuse),
]
