"""SIGTERM to a server while a run goes on: uvicorn, and the workers of gunicorn. The run ends or is marked, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest

from tests.integration.job_history import History, eventually
from tests.integration.server_process import ROOT, ServerProcess, uvicorn
from tests.otlp_sink import OtlpSink

APP: Final = "tests.integration.ending_scheduler_app"
GUNICORN: Final = ("gunicorn", "-b", "127.0.0.1:{port}", "-w", "1", "--no-control-socket")
# A worker that is no ASGI server's waits for the threads of pools for as long as gunicorn lets it, with and without clew
WAITING: Final = (*GUNICORN, "--graceful-timeout", "8")
SERVERS: Final = {
    "uvicorn": uvicorn(f"{APP}:app"),
    "gunicorn-uvicorn": [*GUNICORN, "-k", "uvicorn.workers.UvicornWorker", f"{APP}:app"],
    "gunicorn-uvicorn-preloaded": [*GUNICORN, "--preload", "-k", "uvicorn.workers.UvicornWorker", f"{APP}:app"],
    "gunicorn-sync": [*WAITING, "-k", "sync", f"{APP}:wsgi()"],
    "gunicorn-gthread": [*WAITING, "-k", "gthread", "--threads", "2", f"{APP}:wsgi()"],
}
ASGI: Final = ("uvicorn", "gunicorn-uvicorn", "gunicorn-uvicorn-preloaded")
WSGI: Final = ("gunicorn-sync", "gunicorn-gthread")
# Less than gunicorn gives the others by default, and far less than a long run takes
ENDED_WITHIN_S: Final = 25.0
LONG_S: Final = "300"


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History(f"sqlite:///{tmp_path / 'history.db'}") as opened:
        yield opened


@cache
def status_without_clew(server: str) -> int:
    """Return the exit code of a server that is asked to end, and has no clew."""
    with TemporaryDirectory() as folder:
        return ended(server, Path(folder), BARE="1", SCHEDULER="background", AT_END="shutdown", WORK_S="0.1")[0]


def ended(server: str, folder: Path, **environment: str) -> tuple[int, list[str]]:
    """Start a server, ask it to end when its run has begun, and return its exit code and what it said."""
    chosen = {"CLEW_LOG_FORMAT": "json", "OTEL_SERVICE_NAME": "ending", "PYTHONPATH": str(ROOT), **environment}
    with ServerProcess(SERVERS[server], cwd=folder, environment=chosen, timeout_s=90) as process:
        eventually(lambda: "started" in process.said.splitlines(), "the run begins")
        status = process.stop(timeout_s=ENDED_WITHIN_S)
        return status, process.said.splitlines()


def check(history: History, sink: OtlpSink, status: str) -> None:
    """Assert that the run's record, its span, its metric and its event say the same, and that no more waits to be sent."""
    (run,) = history.runs("long")
    assert run["status"] == status
    assert history.scheduled() == []
    history.check_totals("long")
    (span,) = sink.named("run long")
    assert (span.trace_id, span.span_id) == (run["trace_id"], run["span_id"])
    assert span.attributes["clew.job.status"] == status
    assert sink.total("clew.job.duration", clew__job__status=status) == 1
    events = [log.body for log in sink.logs if log.trace_id == run["trace_id"] and str(log.body).startswith("job_")]
    assert events == ["job_start", "job_end"]


CASES: Final = [
    # The app waits for its run, or cancels it
    *((server, "background", "shutdown", "2", "completed") for server in ASGI),
    *((server, "asyncio", "shutdown", LONG_S, "cancelled") for server in ASGI),
    # clew waits for it, until its deadline
    *((server, scheduler, "leaves", "2", "completed") for server in ASGI for scheduler in ("background", "asyncio")),
    *((server, scheduler, "leaves", LONG_S, "cancelled") for server in ASGI for scheduler in ("background", "asyncio")),
    *(
        (server, "background", "leaves", work_s, status)
        for server in WSGI
        for work_s, status in (("2", "completed"), (LONG_S, "cancelled"))
    ),
]


@pytest.mark.parametrize(("server", "scheduler", "at_end", "work_s", "status"), CASES)
def test_sigterm_to_a_server(
    history: History,
    otlp_sink: OtlpSink,
    tmp_path: Path,
    server: str,
    scheduler: str,
    at_end: str,
    work_s: str,
    status: str,
) -> None:
    code, said = ended(
        server,
        tmp_path,
        **otlp_sink.environment,
        SCHEDULER=scheduler,
        AT_END=at_end,
        WORK_S=work_s,
        CLEW_SHUTDOWN_TIMEOUT_S="20" if status == "completed" else "4",
    )
    assert ("ended" in said) == (status == "completed")
    assert code == status_without_clew(server)
    check(history, otlp_sink, status)
