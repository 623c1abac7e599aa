"""What an app asks for to answer over HTTP; what it takes is imported then."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clew.diagnostics import ClewError, report
from clew.engine import runtime
from clew.engine.lifecycle import note_sigterm
from clew.health import loops
from clew.health.monitor import monitor

if TYPE_CHECKING:
    from fastapi import APIRouter

    from clew.http.worker import WorkerServer


def health_router() -> APIRouter:
    """Return a router with ``/health``, ``/healthz``, ``/livez``, ``/readyz``, ``/status``, ``/status/detailed`` and ``/scheduler``.

    The last two are for this machine, and for who sends ``CLEW_ADMIN_TOKEN`` as a bearer token.

    Raises:
        ClewError: FastAPI is not installed.

    Example:
        >>> from fastapi import FastAPI
        >>> import clew
        >>> app = FastAPI()
        >>> app.include_router(clew.health_router())
    """
    router: APIRouter = _load("health").make_router()
    return router


def jobs_router() -> APIRouter:
    """Return a router with ``/jobs``, ``/jobs/runs``, ``/jobs/runs/{run_id}``, ``/jobs/stats``, and control over jobs.

    It reads the history of every process that shares the database. It answers to this machine, and to who sends
    ``CLEW_ADMIN_TOKEN`` as a bearer token; where that is set, control is for who sends it alone.

    Raises:
        ClewError: FastAPI is not installed.

    Example:
        >>> from fastapi import FastAPI
        >>> import clew
        >>> app = FastAPI()
        >>> app.include_router(clew.jobs_router())
    """
    router: APIRouter = _load("jobs").make_router()
    return router


def llm_router() -> APIRouter:
    """Return a router with ``/llm/usage``, ``/llm/calls`` and ``/llm/calls/{call_id}``.

    It reads the history of every process that shares the database. It answers to this machine, and to who sends
    ``CLEW_ADMIN_TOKEN`` as a bearer token.

    Raises:
        ClewError: FastAPI is not installed.

    Example:
        >>> from fastapi import FastAPI
        >>> import clew
        >>> app = FastAPI()
        >>> app.include_router(clew.llm_router())
    """
    router: APIRouter = _load("llm").make_router()
    return router


def serve_worker(*, port: int = 9464, host: str = "127.0.0.1") -> WorkerServer | None:
    """Answer ``/metrics``, ``/jobs`` and the routes of health over HTTP, in a thread, for a process that has no server.

    To be called in the main thread once the app's own signal handlers are in place: from SIGTERM on, ``/readyz`` says that the
    process ends. In a coroutine, the running event loop is the one that ``/livez`` asks.

    Args:
        port: where it listens; 0 takes any port that is free. The default is the one that Prometheus exporters of OpenTelemetry have.
        host: the address it listens on; other machines need another than the default.

    Returns:
        The server, which has the ``port`` and the ``url``; ``None`` where it can't listen, which is said in the log: a worker works
        all the same.

    Example:
        >>> import clew
        >>> server = clew.serve_worker(port=0)
        >>> server.stop()
    """
    runtime.ready()
    loops.note_loop()
    monitor.prepare()
    try:
        note_sigterm()
        server: WorkerServer = _load("worker").WorkerServer(host=host, port=port)
    except (OSError, OverflowError, TypeError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        report("serve_worker", f"can't listen on {host}:{port} ({why}): choose another port, or 0 for any that is free")
        return None
    return server


def _load(module: str) -> Any:
    try:
        return importlib.import_module(f"clew.http.{module}")
    except ModuleNotFoundError as error:
        raise ClewError(f"{error.name} is missing, which a router needs: pip install 'clew[fastapi]'") from error
