"""The page at `/`: static files of this package, under a policy that keeps the browser from loading anything else."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from dataclasses import dataclass

from starlette.responses import Response

from extract.service.call import Call
from extract.service.endpoint import Endpoint
from extract.service.refused import Refused

_KINDS = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_HOME = "index.html"
# Photos are previewed from memory (blob:), and thumbnails of the cache come inside answers (data:). Labels and names
# of files are what strangers chose; trusted types make the browser refuse any script that would write them as HTML.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A service that is updated must not run with half of the page before: the browser asks each time, and gets 304.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str  # media type
    tag: str  # for If-None-Match


@functools.cache
def _files() -> dict[str, _File]:
    """The page's files by name."""
    found = {}
    for entry in importlib.resources.files("extract.service").joinpath("page").iterdir():
        if kind := _KINDS.get(entry.name.rpartition(".")[2]):
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[entry.name] = _File(content, f"{kind}; charset=utf-8", tag)
    return found


async def home(call: Call) -> Response:
    return _send(call, _HOME)


async def part(call: Call) -> Response:
    return _send(call, call.request.path_params["name"])


def _send(call: Call, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise Refused(404, f"the page has no file {name[:100]!r}", "unknown")
    headers = {**_HEADERS, "ETag": file.tag}
    tags = call.request.headers.get("if-none-match", "")
    if file.tag in [tag.strip().removeprefix("W/") for tag in tags.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers={**headers, "Content-Type": file.kind})


# Without a token, since the page itself asks its user for it.
ENDPOINTS = [
    Endpoint("GET", "/", home, "A page to try this service.", "page", gives=("text/html",), is_free=True),
    Endpoint(
        "GET",
        "/page/{name}",
        part,
        "The page's scripts, styles and icon.",
        "page",
        gives=("text/javascript", "text/css", "image/svg+xml"),
        is_free=True,
    ),
]
