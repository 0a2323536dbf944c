"""The OpenAPI description of the table of endpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from extract.service.endpoint import JSON, MULTIPART, Endpoint

_ERRORS = {
    "400": "The body cannot be understood.",
    "401": "The token is missing or wrong.",
    "404": "There is no such head, version or model.",
    "413": "The body, an image or its pixels are above a limit.",
    "415": "The body is compressed.",
    "422": "The image cannot be decoded.",
    "429": "Too much waits already; Retry-After says for how long.",
    "503": "The service is loading, ending, or the deadline has passed.",
}


def describe(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The description as OpenAPI 3.1, to be sent as JSON."""
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(_plain(endpoint.path), {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Bottleneck extraction",
            "version": "1",
            "description": "Photos in; bottlenecks or labels out.",
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": paths,
    }


def _plain(path: str) -> str:
    """Without Starlette's types of parameters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", path)


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)(?::\w+)?\}", endpoint.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in (endpoint.query or {}).items()
    ]
    operation: dict[str, Any] = {
        "operationId": f"{endpoint.method} {_plain(endpoint.path)}",
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "parameters": parameters,
        "responses": {"200": {"description": "The answer.", "content": {kind: {} for kind in endpoint.gives}}},
    }
    if endpoint.takes:
        binary = {"schema": {"type": "string", "format": "binary"}}
        form = {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        }
        schemas = {MULTIPART: form, JSON: {"schema": {"type": "object"}}}
        content = {kind: schemas.get(kind, binary) for kind in endpoint.takes}
        operation["requestBody"] = {"required": True, "content": content}
        operation["responses"] |= {status: {"description": text} for status, text in _ERRORS.items()}
    if not endpoint.is_free:
        operation["security"] = [{}, {"token": []}]
    return operation
