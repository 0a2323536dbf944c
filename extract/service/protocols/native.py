"""The service's own protocol: an image, or several, as they are on the disk."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from starlette.responses import PlainTextResponse, Response

from extract.service import metrics
from extract.service.call import Call
from extract.service.endpoint import (
    FINGERPRINT,
    IMAGES,
    JSON,
    MULTIPART,
    NPY,
    Endpoint,
    Json,
    json_of_rows,
    not_fetched,
    which,
)
from extract.service.heads import Loaded
from extract.service.refused import Refused
from extract.service.service import DEAD, READY, Answer

SURE = 0.8  # answers below `not_sure_below` are right less often than this, by the calibration
_TOP_K = 5


async def contents(call: Call) -> tuple[list[str], list[bytes]]:
    """The names and the contents of the image files in a body: one raw, or a multipart body. Raises Refused."""
    if call.content_type == MULTIPART:
        files = await call.files()
    elif call.content_type == "application/x-www-form-urlencoded" and call.length == 0:
        files = []
    else:
        body = await call.body()
        if b"://" in body[:16] and len(body) < 4096:
            raise not_fetched()
        files = [("", body)] if body else []
    if not files:
        raise Refused(400, "no image: send its bytes as the body, or files as multipart/form-data", "malformed")
    call.take_images(len(files))
    return [name for name, _ in files], [content for _, content in files]


async def classify(call: Call) -> Response:
    top_k = whole_number(call, "top_k", _TOP_K)
    name = call.request.path_params["head"]
    call.service.heads.find(name)
    names, images = await contents(call)
    loaded, answers = await call.service.classify(name, images, call.deadline)
    raise_if_alone(answers)
    rows = [_described(loaded, answer, top_k) for answer in answers]
    return Json(
        {
            "head": name,
            "version": loaded.version,
            "fingerprint": loaded.head.backbone.fingerprint,
            "not_sure_below": loaded.head.calibration.doubtful_below(SURE),
            "images": [{"name": file, **row} for file, row in zip(names, rows, strict=True)],
        }
    )


def _described(loaded: Loaded, answer: Answer | Refused, top_k: int) -> dict[str, Any]:
    if isinstance(answer, Refused):
        return {"error": answer.message}
    best = (-answer.probabilities).argsort(kind="stable")[:top_k].tolist()
    head = loaded.head
    return {"labels": [{"label": head.labels[c], "probability": float(answer.probabilities[c])} for c in best]}


async def bottlenecks(call: Call) -> Response:
    backbone = call.service.ready_backbone
    names, images = await contents(call)
    vectors = await call.service.bottlenecks(images, call.deadline)
    raise_if_alone(vectors)
    headers = {FINGERPRINT: backbone.fingerprint}
    if NPY in call.request.headers.get("accept", ""):
        for place, vector in enumerate(vectors):
            if isinstance(vector, Refused):
                raise which(vector, place, len(vectors))
        file = io.BytesIO()
        np.save(file, np.stack(vectors))  # type: ignore[arg-type]
        return Response(file.getvalue(), media_type=NPY, headers=headers)
    rows = [
        {"error": vector.message} if isinstance(vector, Refused) else {"bottleneck": vector.tolist()}
        for vector in vectors
    ]
    named = [{"name": name, **row} for name, row in zip(names, rows, strict=True)]
    body = {"fingerprint": backbone.fingerprint, "dimension": backbone.dimension}
    return await json_of_rows(body, "images", named, len(named) * backbone.dimension, headers)


async def describe(call: Call) -> Response:
    """Heads, backbone and limits."""
    service = call.service
    backbone = service.backbone
    heads = [
        {
            "name": loaded.name,
            "version": loaded.version,
            "labels": list(loaded.head.labels),
            "test_accuracy": loaded.head.test_accuracy,
            "test_photos": loaded.head.test_photos,
            "not_sure_below": loaded.head.calibration.doubtful_below(SURE),
        }
        for loaded in service.heads.by_name.values()
    ]
    network = None
    if backbone:
        network = {
            "module": backbone.module,
            "fingerprint": backbone.fingerprint,
            "preprocessing": backbone.preprocessing,
            "image_height": backbone.image_height,
            "image_width": backbone.image_width,
            "dimension": backbone.dimension,
            "runs": service.ran,
        }
    return Json(
        {
            "state": service.state,
            "backbone": network,
            "photos": len(service.cache or ()),
            "heads": heads,
            "limits": service.limits(),
            "corrects": service.corrections is not None,
        }
    )


async def live(call: Call) -> Response:
    is_dead = call.service.state == DEAD
    return PlainTextResponse(f"{call.service.death or 'live'}\n", 500 if is_dead else 200)


async def ready(call: Call) -> Response:
    return PlainTextResponse(f"{call.service.state}\n", 200 if call.service.state == READY else 503)


async def measurements(call: Call) -> Response:
    return Response(call.service.metrics.text(), media_type=metrics.CONTENT_TYPE)


async def verdict(call: Call) -> Response:
    _ = call.service.ready_backbone
    return Json({"verdict": call.service.verdict(), "runs": call.service.ran})


def raise_if_alone(answers: list[Any]) -> None:
    """A request for one image that fails fails as a whole. So does one of which no image can be done now."""
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    if len(refused) == len(answers) and (len(answers) == 1 or all(one.status >= 500 for one in refused)):
        raise refused[0]


def whole_number(call: Call, name: str, default: int) -> int:
    """The parameter `name` of the query. Raises Refused where it is no whole number from 1 on."""
    text = call.request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise Refused(400, f"{name}={text!r} is not a whole number from 1 on", "malformed")
    return int(text)


ENDPOINTS = [
    Endpoint("GET", "/v1", describe, "The heads, the backbone and the limits of this service.", "native"),
    Endpoint(
        "POST",
        "/v1/classify/{head}",
        classify,
        "The most likely labels of one image, or of each file of a multipart body.",
        "native",
        takes=IMAGES,
        query={"top_k": f"labels for each image (default: {_TOP_K})"},
    ),
    Endpoint(
        "POST",
        "/v1/bottlenecks",
        bottlenecks,
        "The bottleneck of one image, or of each file of a multipart body; as .npy where that is accepted.",
        "native",
        takes=IMAGES,
        gives=(JSON, NPY),
    ),
    Endpoint("GET", "/v1/verdict", verdict, "Where the time goes, and what would help.", "native"),
    Endpoint(
        "GET", "/livez", live, "Whether the process does its work.", "probes", gives=("text/plain",), is_free=True
    ),
    Endpoint("GET", "/readyz", ready, "Whether requests are answered.", "probes", gives=("text/plain",), is_free=True),
    Endpoint(
        "GET", "/metrics", measurements, "Measurements for Prometheus.", "probes", gives=("text/plain",), is_free=True
    ),
]
