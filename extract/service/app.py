"""From the table of endpoints to an application: who may ask, is there room, how long may it take."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import socket
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cache.console import print
from cache.errors import UserError
from extract.service.call import Call, GoneError, too_large
from extract.service.endpoint import Endpoint, refusal
from extract.service.refused import DeadError, Refused
from extract.service.service import Service

_GONE = 499  # in logs and metrics: the client did not wait for the answer


def build(service: Service, endpoints: Sequence[Endpoint], token: str | None) -> Starlette:
    """The ASGI application that answers at `endpoints`."""
    gate = _Gate(service, token)
    routes = [
        Route(
            endpoint.path, gate.guarded(endpoint), methods=[endpoint.method], name=f"{endpoint.method} {endpoint.path}"
        )
        for endpoint in endpoints
    ]
    middleware = []
    if origins := service.settings.cors_origin:
        middleware = [
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Content-Type"],
            )
        ]
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={404: _unknown_path, 405: _wrong_method},
    )
    app.router.redirect_slashes = False
    return app


class _Gate:
    """Through which every request goes to its endpoint."""

    def __init__(self, service: Service, token: str | None):
        self._service = service
        self._token = token.encode() if token else None
        settings = service.settings
        own = {"localhost", socket.gethostname().lower(), settings.host.lower()}
        self._hosts = own | {name.lower() for name in settings.allow_host or ()}

    def guarded(self, endpoint: Endpoint):  # type: ignore[no-untyped-def]
        """The endpoint as Starlette calls it."""

        async def handle(request: Request) -> Response:
            call = Call(self._service, request, time.monotonic())
            try:
                response = await self._answered(endpoint, call)
            except Refused as refused:
                self._service.metrics.rejections.labels(refused.reason).inc()
                response = endpoint.refuse(refused)
                if refused.retry_after is not None:
                    response.headers["Retry-After"] = str(refused.retry_after)
                if refused.status == 413 and not await call.is_read():
                    response.headers["Connection"] = "close"
            except UserError as error:  # such as a full disk
                response = endpoint.refuse(Refused(500, str(error), "disk"))
            except GoneError:
                response = Response(status_code=_GONE)
            except Exception as error:  # a defect: this request fails, counted as any other, and the rest go on
                traceback.print_exc()
                response = endpoint.refuse(Refused(500, f"a defect of this service: {type(error).__name__}", "defect"))
            finally:
                call.end()
            self._record(endpoint, call, response.status_code)
            return response

        return handle

    async def _answered(self, endpoint: Endpoint, call: Call) -> Response:
        self._check_host(call.request)
        if endpoint.is_free:
            return await endpoint.answer(call)
        self._check_token(call.request)
        if endpoint.writes:
            self._check_origin(call.request)
        if not endpoint.takes:
            return await endpoint.answer(call)
        _ = self._service.ready_backbone
        if call.request.headers.get("content-encoding", "identity").lower() != "identity":
            # Kilobytes could become gigabytes, and photos are compressed already.
            raise Refused(415, "this service takes no compressed bodies: send it without Content-Encoding", "malformed")
        if call.length > self._service.settings.max_request_mb << 20:
            raise too_large(self._service.settings.max_request_mb)
        with self._service.admission.entering(call.length) as call.ticket:
            return await self._in_time(endpoint, call)

    async def _in_time(self, endpoint: Endpoint, call: Call) -> Response:
        """Answers before the deadline; gives up when the client is gone."""
        work = asyncio.ensure_future(endpoint.answer(call))
        is_gone = False

        def on_gone() -> None:
            nonlocal is_gone
            is_gone = True
            work.cancel()

        call.on_gone = on_gone
        try:
            async with asyncio.timeout(self._service.settings.deadline_seconds):
                return await work
        except TimeoutError:
            raise Refused(503, "not done by --deadline_seconds; send fewer at once", "deadline", 1) from None
        except DeadError as error:
            raise Refused(500, str(error), "dead") from None
        except asyncio.CancelledError:
            if is_gone:
                raise GoneError from None
            raise
        finally:
            work.cancel()

    def _check_host(self, request: Request) -> None:
        """A page that a stranger's name server leads to this address sends that name: only known ones are answered."""
        name = request.headers.get("host", "").lower()
        name = name.rpartition("]")[0].removeprefix("[") if name.startswith("[") else name.partition(":")[0]
        if name in self._hosts:
            return
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return
        raise Refused(421, f"this service does not answer to the name {name[:100]!r}; see --allow_host", "host")

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):
            raise Refused(401, "send the token of --token_file, as Authorization: Bearer TOKEN", "token")

    def _check_origin(self, request: Request) -> None:
        """A page elsewhere may send a form here without being able to read the answer; so writing needs its own."""
        origin = request.headers.get("origin")
        if origin is None and request.headers.get("sec-fetch-site") in (None, "same-origin", "none"):
            return
        own = {f"http://{request.headers.get('host')}", f"https://{request.headers.get('host')}"}
        if origin not in own | set(self._service.settings.cors_origin or ()):
            raise Refused(403, "a page of another origin may not write here", "origin")

    def _record(self, endpoint: Endpoint, call: Call, status: int) -> None:
        metrics = self._service.metrics
        metrics.requests.labels(endpoint.path, str(status)).inc()
        if endpoint.takes:
            metrics.request_seconds.observe(call.seconds)
        if self._service.settings.access_log:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "client": call.request.client.host if call.request.client else None,
                "method": call.request.method,
                "path": call.request.url.path,
                "status": status,
                "images": call.images,
                "bytes": call.bytes,
                "milliseconds": round(1000 * call.seconds, 1),
            }
            print(json.dumps(line), flush=True)


async def _unknown_path(request: Request, _: Exception) -> Response:
    return refusal(Refused(404, f"nothing is at {request.url.path[:200]}; see /openapi.json", "unknown"))


async def _wrong_method(request: Request, _: Exception) -> Response:
    return refusal(
        Refused(405, f"{request.url.path[:200]} does not take {request.method}; see /openapi.json", "unknown")
    )
