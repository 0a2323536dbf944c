"""What an endpoint is: the entry of one table, from which come the routes and the OpenAPI description alike."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse, Response

from extract.service.call import Call
from extract.service.refused import Refused

JSON, NPY, OCTETS, MULTIPART = (
    "application/json",
    "application/x-npy",
    "application/octet-stream",
    "multipart/form-data",
)
IMAGES = ("image/jpeg", "image/png", "image/gif", "image/bmp", "image/webp", OCTETS, MULTIPART)
FINGERPRINT = "X-Backbone-Fingerprint"  # the header that says which vectors compare


def refusal(refused: Refused) -> Response:
    """The body that most endpoints give with an error."""
    return JSONResponse({"error": refused.message}, refused.status)


@dataclass(frozen=True)
class Endpoint:
    """A method and a path, and what answers there."""

    method: str
    path: str  # Starlette's form, such as /v1/classify/{head}
    answer: Callable[[Call], Awaitable[Response]]
    summary: str  # one sentence, for people
    tag: str  # the protocol
    takes: tuple[str, ...] = ()  # media types of the body; empty: there is none
    gives: tuple[str, ...] = (JSON,)
    query: Mapping[str, str] | None = None  # the parameters behind the question mark, and what they mean
    refuse: Callable[[Refused], Response] = refusal  # the form that errors have in this protocol
    is_free: bool = False  # answered without a token, while loading and when full: probes
    writes: bool = False  # refused to pages of other origins


def parse_json(body: bytes) -> Any:
    """The JSON of a body. Raises Refused."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON", "malformed") from None


def image_of_base64(text: Any) -> bytes:
    """The bytes of an image from base64, or from a data URI with it. Raises Refused."""
    import base64
    import binascii

    if not isinstance(text, str):
        raise Refused(400, "an image is a string in base64", "malformed")
    head, comma, data = text.partition(",")
    if head.lower().startswith("data:"):
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(400, "a data URI of an image ends its head with ;base64", "malformed")
        text = data
    elif "://" in text[:32] or text[:1] in ("/", ".", "~"):
        raise not_fetched()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "an image is a string in base64, and this is none", "malformed") from None


def not_fetched() -> Refused:
    """The answer to whoever sends the place of an image: the service reads no files and asks no other servers."""
    return Refused(400, "this service fetches no URL and opens no path: send the bytes of the image", "url")
