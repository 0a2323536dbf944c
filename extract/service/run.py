"""The flow of the service: check, listen, load, answer, drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time

from cache import process
from cache.console import print
from cache.errors import UserError, first_line
from extract.service import network, server
from extract.service.app import build
from extract.service.corrections import made_heads
from extract.service.heads import Heads
from extract.service.protocols import ENDPOINTS
from extract.service.service import DEAD, DRAINING, Service
from extract.service.settings import ServeSettings

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(settings: ServeSettings) -> None:
    """Answers requests until SIGTERM or Ctrl-C. Raises UserError for what keeps it from starting.

    Ends the process with status 1 where the network fails, so that whoever supervises it starts another.
    """
    settings.check()
    token = _token(settings)
    if token is None and settings.host not in _LOOPBACK:
        print(f"warning: whoever reaches {settings.host} may ask, since there is no --token_file", file=sys.stderr)
    found = network.find(settings)
    made = made_heads(settings.corrections) if settings.corrections else []
    heads = Heads([*(settings.head or ()), *made])
    if found.backbone:
        heads.check(found.backbone)
    listening = server.listen(settings.host, settings.port)  # uvicorn closes it
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, found, heads, token, listening))


async def _serve(settings: ServeSettings, found: network.Found, heads: Heads, token: str | None, listening) -> None:  # type: ignore[no-untyped-def]
    service, began = Service(settings, heads), time.monotonic()
    web = server.Server(build(service, ENDPOINTS, token), settings.drain_seconds, lambda: _drain(service, web, tasks))
    tasks = [asyncio.create_task(web.serve([listening]))]
    with contextlib.ExitStack() as open_until_the_end:
        try:
            loaded = await _unless_ended(tasks[0], asyncio.to_thread(_load, settings, found, open_until_the_end))
            if loaded is None:
                return
            heads.check(loaded.backbone)
            await _start(service, loaded, web)
            tasks += [asyncio.create_task(heads.watch()), asyncio.create_task(_watch(service))]
            where = server.address(listening, settings.host)
            print(f"ready after {time.monotonic() - began:.1f} s: {service.ran}", flush=True)
            print(f"open {where} in a browser, or ask: curl --data-binary @photo.jpg {where}v1/bottlenecks", flush=True)
            await tasks[0]
        finally:
            web.should_exit = True
            await asyncio.wait(tasks[:1])
            for task in tasks[1:]:
                task.cancel()
            if service.training:
                service.training.end()
            if service.batcher:
                service.batcher.close()
    if service.state == DEAD:
        print(f"error: {service.death}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # a thread that waits for the device would keep the process from ending
    print(f"ended: {service.verdict()}", flush=True)


def _load(settings: ServeSettings, found: network.Found, open_until_the_end: contextlib.ExitStack) -> network.Network:
    process.import_tensorflow()  # first: its logger would keep the standard error that is replaced below
    with process.quiet_libraries():
        return network.load(settings, found, open_until_the_end)


async def _start(service: Service, loaded: network.Network, web: server.Server) -> None:
    """Compiles the ladder, and says that the service is ready."""
    from extract.service.batcher import Batcher  # TensorFlow

    def die(reason: str) -> None:
        service.state, service.death = DEAD, reason
        web.should_exit = True

    batcher = Batcher(loaded.ladder, loaded.decode, loaded.setup.threads, service.metrics, die)
    await asyncio.to_thread(batcher.open)
    service.metrics.watch_gpus(loaded.gpus, loaded.gpu_names)
    service.begin(loaded, batcher)


async def _unless_ended(ending: asyncio.Task[None], work):  # type: ignore[no-untyped-def]
    """The result of `work`; None if the service ends before that."""
    task = asyncio.ensure_future(work)
    await asyncio.wait([task, ending], return_when=asyncio.FIRST_COMPLETED)
    return task.result() if task.done() else None


async def _watch(service: Service) -> None:
    """Ends the service when a batch takes far longer than any before it: the device does not answer any more."""
    assert service.batcher is not None
    while service.batcher.seconds_stuck() <= 0:
        await asyncio.sleep(0.5)
    service.batcher.die("a batch takes more than ten times as long as the slowest before it")


def _drain(service: Service, web: server.Server, tasks: list[asyncio.Task[None]]) -> None:
    """After a signal: takes nothing new, answers what was accepted, ends. A second signal ends at once."""
    if service.state == DRAINING:
        web.force_exit = True
        web.should_exit = True
        return
    if service.state != DEAD:
        service.state = DRAINING
    tasks.append(asyncio.create_task(_end_when_done(service, web)))


async def _end_when_done(service: Service, web: server.Server) -> None:
    end = time.monotonic() + service.settings.drain_seconds
    while service.admission.requests and time.monotonic() < end:
        await asyncio.sleep(0.05)
    web.should_exit = True


def _token(settings: ServeSettings) -> str | None:
    if settings.token_file is None:
        return None
    try:
        text = settings.token_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read --token_file {settings.token_file}: {first_line(error)}") from None
    first = text.splitlines()[0].strip() if text else ""
    if not first:
        raise UserError(f"--token_file {settings.token_file} is empty; put a token of your own on its first line")
    return first


def _loop_factory():  # type: ignore[no-untyped-def]
    """uvloop, where it installs; otherwise asyncio's own loop."""
    try:
        import uvloop
    except ModuleNotFoundError:  # on Windows
        return None
    return uvloop.new_event_loop
