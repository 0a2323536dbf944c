"""What an endpoint is: the entry of one table, from which come the routes and the OpenAPI description alike."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
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
LARGE = 1 << 20  # bytes from which a thread decodes, so that the event loop serves others meanwhile
_PIECE = 1 << 22  # characters of base64, a multiple of four: threads take turns between pieces, not within one
_VALUES_OF_AN_IMAGE = 16  # in JSON, generously
_MANY_NUMBERS = 20_000  # to be written as JSON, which takes some 20 ms


class Json(JSONResponse):
    """JSON in UTF-8. A byte of a label that is no text, and half of a surrogate pair, are escaped as JSON has it."""

    def render(self, content: Any) -> bytes:
        return _written(content)


def _written(content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


async def json_of_rows(
    content: Mapping[str, Any], name: str, rows: Sequence[Any], numbers: int, headers: Mapping[str, str] | None = None
) -> Response:
    """`content` with the list `rows` under the last key, `name`. Where they hold many `numbers`, a thread writes them.

    It writes them one by one, since threads take turns between rows only.
    """

    def body() -> bytes:
        return _written({**content, name: []})[:-2] + b",".join(map(_written, rows)) + b"]}"

    written = await asyncio.to_thread(body) if numbers > _MANY_NUMBERS else body()
    return Response(written, media_type=JSON, headers=dict(headers or {}))


def refusal(refused: Refused) -> Response:
    """The body that most endpoints give with an error."""
    return Json({"error": refused.message}, refused.status)


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


async def parse_json(body: bytes, images: int) -> dict[str, Any]:
    """The JSON object of a body that may hold so many images. Raises Refused.

    The values are counted before they are parsed: 60 MB of brackets would become gigabytes of lists.
    """
    most = _VALUES_OF_AN_IMAGE * (images + 64)
    if sum(body.count(mark) for mark in (b",", b"[", b"{")) > most:
        raise Refused(413, f"JSON of more than {most} values, which no request needs", "request_bytes")
    found = await asyncio.to_thread(_parsed, body) if len(body) > LARGE else _parsed(body)
    if not isinstance(found, dict):
        raise Refused(400, "the body is no JSON object", "malformed")
    return found


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON", "malformed") from None


async def images_of_base64(texts: Sequence[Any]) -> list[bytes]:
    """The bytes of images from base64, or from data URIs with it. Raises Refused, which says which one is wrong."""

    def decoded() -> list[bytes]:
        images = []
        for place, text in enumerate(texts):
            try:
                images.append(image_of_base64(text))
            except Refused as refused:
                raise which(refused, place, len(texts)) from None
        return images

    large = sum(len(text) for text in texts if isinstance(text, str)) > LARGE
    return await asyncio.to_thread(decoded) if large else decoded()


def image_of_base64(text: Any) -> bytes:
    """The bytes of an image from base64, or from a data URI with it. Raises Refused."""
    if not isinstance(text, str):
        raise Refused(400, "an image is a string in base64", "malformed")
    start = 0
    if text[:5].lower() == "data:":
        comma = text.find(",", 0, 256)  # a media type and its parameters are short
        if comma < 0 or not text[:comma].lower().endswith(";base64"):
            raise Refused(400, "a data URI of an image ends its head with ;base64", "malformed")
        start = comma + 1
    elif is_place(text):
        raise not_fetched()
    if start == len(text):
        raise Refused(400, "an image without bytes", "malformed")
    try:
        if (len(text) - start) % 4 or "=" in text[start:-2]:  # which would be right at the end of a piece
            raise ValueError
        pieces = range(start, len(text), _PIECE)
        return b"".join([base64.b64decode(text[at : at + _PIECE], validate=True) for at in pieces])
    except (binascii.Error, ValueError):
        raise Refused(400, "an image is a string in base64, and this is none", "malformed") from None


def is_place(text: str) -> bool:
    """Whether a text that should be an image is a URL or a path. In base64, every JPEG file starts with `/9j/`."""
    start = text[:32]
    return "://" in start or start[:1] in (".", "~") or (start[:1] == "/" and start[:4] != "/9j/")


def quoted(value: Any) -> str:
    """A name that a client sent, for a message: not all of a long one, and nothing of what is no name."""
    return repr(value[:100]) if isinstance(value, str) else "of that kind"


def not_fetched() -> Refused:
    """The answer to whoever sends the place of an image: the service reads no files and asks no other servers."""
    return Refused(400, "this service fetches no URL and opens no path: send the bytes of the image", "url")


def which(refused: Refused, place: int, count: int, status: int | None = None) -> Refused:
    """The same for the image at `place` of `count`, whose number the sentence then has; with another status, if any."""
    message = f"image {place + 1} of {count}: {refused.message}" if count > 1 else refused.message
    return Refused(status or refused.status, message, refused.reason, refused.retry_after)


def raise_for_any(answers: Sequence[Any]) -> None:
    """Raises Refused where an image of a request has no answer, in protocols in which it then has none at all.

    What cannot be decoded is 400 there, as whatever else is wrong with the input. Where the service itself is to blame
    for one of the images, that is said first, since it may be another time.
    """
    refused = [(place, one) for place, one in enumerate(answers) if isinstance(one, Refused)]
    for place, one in sorted(refused, key=lambda pair: pair[1].status < 500):
        raise which(one, place, len(answers), 400 if one.status == 422 else None)
