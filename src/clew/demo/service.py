"""How each of the demo's services lives: configured from the environment, ready when it says so, gone soon after a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

import clew
from clew.demo.settings import READY_FD_VARIABLE

# They announce each request and each run, which spans and clew's own events do already
_TALKATIVE: Final = ("httpx", "httpx2", "apscheduler", "demo.streams", "openai", "celery", "kombu")
_FLUSH_TIMEOUT_S: Final = 1.0
_STOP_TIMEOUT_S: Final = 2.8
_GRACEFUL_TIMEOUT_S: Final = 1


def run(name: str, serve: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run a service until SIGTERM or SIGINT, and return its exit status.

    Args:
        name: its name, where ``OTEL_SERVICE_NAME`` gives no other.
        serve: starts it, calls :func:`announce_ready`, waits for the event, and stops it.
    """
    os.environ.setdefault("OTEL_SERVICE_NAME", name)
    clew.configure()
    for library in _TALKATIVE:
        logging.getLogger(library).setLevel(logging.WARNING)
    log = clew.get_logger("clew.demo.service")
    try:
        asyncio.run(_until_signal(serve))
    except (clew.ClewError, OSError) as error:
        # One sentence for a person, on the last line of the log; the traceback would say no more
        log.error("service.failed", error=str(error))  # noqa: TRY400 - as the comment says
        print(error, file=sys.stderr, flush=True)
        return 1
    finally:
        clew.shutdown(_FLUSH_TIMEOUT_S)
    return 0


def announce_ready() -> None:
    """Tell the process that started this one that the service takes work from now on."""
    clew.get_logger("clew.demo.service").info("service.ready", pid=os.getpid())
    number = os.environ.pop(READY_FD_VARIABLE, "")
    if number.isdecimal():
        # Whoever starts a service by hand with a copied environment has some file of its own under this number
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.fstat(int(number)).st_mode):
                os.write(int(number), b"ready\n")
                os.close(int(number))


async def serve_http(app: ASGIApp, *, host: str, port: int, stop: asyncio.Event) -> None:
    """Serve an app until the event, and let it finish the requests at hand.

    Args:
        app: a FastAPI or other ASGI app.
        host: the address to listen on.
        port: the port to listen on.
        stop: set when it is to end.

    Raises:
        OSError: the port is in use, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=256) as listener:
        config = uvicorn.Config(
            app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACEFUL_TIMEOUT_S, server_header=False
        )
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            server.should_exit = True
            await serving


class _Server(uvicorn.Server):
    """A server that leaves signals to the service, so that telemetry is flushed after the last request."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            announce_ready()


async def _until_signal(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wanted() -> None:
        if not stop.is_set():
            # Whatever hangs, the process ends: what it had accepted is in the stream and the database
            last_resort = threading.Timer(_STOP_TIMEOUT_S, os._exit, args=(1,))
            last_resort.daemon = True
            last_resort.start()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, wanted)
    await serve(stop)
