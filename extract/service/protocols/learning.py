"""What the page asks for beside answers: why, what a head knows, corrections, and a new head from them."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from starlette.responses import Response

from cache import near, thumbnails
from cache.reader import Cache
from extract.service.call import Call
from extract.service.corrections import Corrections
from extract.service.endpoint import IMAGES, Endpoint, Json
from extract.service.protocols.native import SURE, contents, raise_if_alone, whole_number
from extract.service.refused import Refused
from extract.service.training import Training

_NEAR = 6


async def nearest(call: Call) -> Response:
    service = call.service
    cache = service.cache
    if cache is None:
        raise Refused(404, "the cache has no bottlenecks of photos, so none is near", "unknown")
    count = min(100, whole_number(call, "k", _NEAR))
    names, images = await contents(call)
    vectors = await service.bottlenecks(images, call.deadline)
    raise_if_alone(vectors)
    answers = iter(await asyncio.to_thread(_near, cache, [v for v in vectors if not isinstance(v, Refused)], count))
    body = [
        {"name": name, "error": vector.message}
        if isinstance(vector, Refused)
        else {"name": name, "near": next(answers)}
        for name, vector in zip(names, vectors, strict=True)
    ]
    return Json({"images": body})


def _near(cache: Cache, vectors: list[np.ndarray], count: int) -> list[list[dict[str, Any]]]:
    """For each bottleneck, float32 [D], the `count` nearest photos, nearest first."""
    if not vectors:
        return []
    rows, cosines = near.nearest(cache, np.stack(vectors), count)
    pictures = iter(thumbnails.find(cache, rows.reshape(-1)))
    return [
        [
            {**near.photo(cache, row), "cosine": cosine, "thumbnail": _data_uri(next(pictures))}
            for row, cosine in zip(of_image, of_cosines, strict=True)
        ]
        for of_image, of_cosines in zip(rows.tolist(), cosines.tolist(), strict=True)
    ]


async def describe_head(call: Call) -> Response:
    loaded = call.service.heads.find(call.request.path_params["head"])
    head, calibration = loaded.head, loaded.head.calibration
    edges = np.linspace(0, 1, len(calibration.counts) + 1).tolist()
    bins = zip(edges, edges[1:], calibration.counts.tolist(), calibration.hits.tolist(), strict=False)
    return Json(
        {
            "name": loaded.name,
            "version": loaded.version,
            "labels": list(head.labels),
            "test_accuracy": head.test_accuracy,
            "test_photos": head.test_photos,
            "temperature": head.temperature,
            "not_sure_below": calibration.doubtful_below(SURE),
            "calibration": [
                {"from": low, "to": high, "count": count, "accuracy": hits / count}
                for low, high, count, hits in bins
                if count
            ],
            "examples": [
                {"label": head.labels[example.label_id], "thumbnail": _data_uri(example.thumbnail)}
                for example in head.examples
            ],
        }
    )


async def correct(call: Call) -> Response:
    corrections = _corrections(call)
    label = corrections.label(call.request.query_params.get("label", ""), call.service.labels())
    names, images = await contents(call)
    rows: list[dict[str, Any]] = []
    for name, content in zip(names, images, strict=True):
        if problem := call.service.problem(content):
            rows.append({"name": name, "error": problem.message})
            continue
        corrected = await asyncio.to_thread(corrections.add, label, content, call.service.labels())
        rows.append({"name": name, "path": corrected.path.name})
    return Json({"label": label, "images": rows})


async def list_corrections(call: Call) -> Response:
    counts: dict[str, int] = {}
    for corrected in await asyncio.to_thread(list, _corrections(call)):
        counts[corrected.label] = counts.get(corrected.label, 0) + 1
    return Json({"labels": [{"label": label, "count": count} for label, count in counts.items()]})


async def take_back(call: Call) -> Response:
    query = call.request.query_params
    await asyncio.to_thread(_corrections(call).remove, query.get("label", ""), query.get("path", ""))
    return Json({})


async def train(call: Call) -> Response:
    service, training = call.service, _training(call)
    assert service.directory is not None
    training.start(
        call.request.query_params.get("head", ""), service.directory, service.ready_backbone, service.one_bottleneck
    )
    return Json(training.describe(), 202)


async def describe_training(call: Call) -> Response:
    return Json(_training(call).describe())


async def swap(call: Call) -> Response:
    loaded = _training(call).swap()
    return Json({"name": loaded.name, "version": loaded.version})


async def discard(call: Call) -> Response:
    _training(call).discard()
    return Json({})


def _corrections(call: Call) -> Corrections:
    if call.service.corrections is None:
        raise Refused(404, "this service takes no corrections: start it with --corrections DIR", "unknown")
    return call.service.corrections


def _training(call: Call) -> Training:
    _corrections(call)
    _ = call.service.ready_backbone
    assert call.service.training is not None
    return call.service.training


def _data_uri(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


_LABEL = {"label": "the class that the photos are of, known or new"}
ENDPOINTS = [
    Endpoint(
        "POST",
        "/v1/near",
        nearest,
        "The photos of the cache whose bottlenecks are nearest to those of the images, with thumbnails.",
        "native",
        takes=IMAGES,
        query={"k": f"photos for each image, up to 100 (default: {_NEAR})"},
    ),
    Endpoint("GET", "/v1/heads/{head}", describe_head, "What a head knows, and how good it is.", "native"),
    Endpoint(
        "POST",
        "/v1/corrections",
        correct,
        "Keeps images as photos of a class, for the next training.",
        "learning",
        takes=IMAGES,
        query=_LABEL,
        writes=True,
    ),
    Endpoint("GET", "/v1/corrections", list_corrections, "How many photos were kept, by class.", "learning"),
    Endpoint(
        "DELETE",
        "/v1/corrections",
        take_back,
        "Takes back a photo that was kept.",
        "learning",
        query=_LABEL | {"path": "what the answer called `path` when it was kept"},
        writes=True,
    ),
    Endpoint(
        "POST",
        "/v1/training",
        train,
        "Begins to train a head on the cache and the corrections.",
        "learning",
        query={"head": "its name; a new one makes a new head"},
        writes=True,
    ),
    Endpoint("GET", "/v1/training", describe_training, "How far the training is, and its result.", "learning"),
    Endpoint(
        "POST", "/v1/training/swap", swap, "Puts the new head in the place of the old one.", "learning", writes=True
    ),
    Endpoint("POST", "/v1/training/discard", discard, "Forgets the new head.", "learning", writes=True),
]
