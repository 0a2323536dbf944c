"""The protocols that the service speaks: each turns requests into operations of `service.Service`, and answers back.

ENDPOINTS is the one table of all, from which the routes and the OpenAPI description are made.
"""

from starlette.responses import Response

from extract.service import openapi
from extract.service.call import Call
from extract.service.endpoint import Endpoint, Json
from extract.service.protocols import inference, learning, native, openai, page, tfserving


async def _describe(call: Call) -> Response:
    return Json(openapi.describe(ENDPOINTS))


ENDPOINTS = [
    *native.ENDPOINTS,
    *learning.ENDPOINTS,
    *tfserving.ENDPOINTS,
    *inference.ENDPOINTS,
    *openai.ENDPOINTS,
    *page.ENDPOINTS,
    Endpoint("GET", "/openapi.json", _describe, "This description.", "native"),
]
