"""What ``clew doctor`` finds around the app: clocks, the database of the durable records, and others that instrument it."""

from __future__ import annotations

import http.client
import importlib.metadata
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from clew import clock
from clew.cli.findings import Finding
from clew.cli.recorded_work import recorded_work
from clew.pipeline.redaction import Redactor
from clew.settings import SIGNALS, Settings

# A Date header counts whole seconds, and the answer was on its way
_NOTED_S: Final = 2.0
_WRONG_S: Final = 30.0
_CONNECT_S: Final = 1.0

# What instruments the same libraries as clew does: with both, each request, statement or message would be told twice
_RIVALS: Final = {
    "FastAPI and other ASGI apps": (
        "opentelemetry-instrumentation-fastapi",
        "opentelemetry-instrumentation-starlette",
        "opentelemetry-instrumentation-asgi",
        "prometheus-fastapi-instrumentator",
    ),
    "SQLAlchemy": ("opentelemetry-instrumentation-sqlalchemy",),
    "redis": ("opentelemetry-instrumentation-redis",),
    "Celery": ("opentelemetry-instrumentation-celery",),
    "all of them": ("logfire", "ddtrace", "sentry-sdk", "elastic-apm", "newrelic"),
}


def clocks(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    """Yield how this machine's clock stands to that of the endpoint, by the date in its answer.

    Args:
        settings: the endpoint.
        timeout_s: how long to wait.
    """
    asked: set[str] = set()
    for signal in SIGNALS:
        destination = settings.destination(signal)
        if not settings.enabled(signal) or destination.protocol == "grpc" or destination.address in asked:
            # gRPC's answers have no date
            continue
        asked.add(destination.address)
        try:
            now, theirs = _date_of(destination.url, destination.certificate, timeout_s)
        except (OSError, http.client.HTTPException, ValueError):
            # That it does not answer is told with the signal
            continue
        if theirs is None:
            yield Finding(check="clock", verdict="note", text=f"{destination.address} does not say what time it has")
        else:
            yield _clock(f"the endpoint {destination.address}", (now - theirs).total_seconds())


def database(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    """Yield whether the database of the durable records answers, has the right tables, takes rows, and agrees on the time.

    Args:
        settings: which database.
        timeout_s: how long to wait.
    """
    if not settings.history:
        yield Finding(check="database", verdict="note", text="the history is off, as the environment says")
        return
    findings: list[Finding] = []
    problems: list[BaseException] = []

    def examine() -> None:
        try:
            findings.extend(_database(settings))
        except BaseException as error:
            problems.append(error)

    # A server that takes a connection and answers nothing would keep the doctor for ever
    asking = threading.Thread(target=examine, daemon=True)
    asking.start()
    asking.join(timeout_s + _CONNECT_S)
    yield from findings
    if asking.is_alive():
        yield _away("no answer in time")
    for problem in problems:
        yield _away(_line(settings, problem))


def rivals() -> Iterator[Finding]:
    """Yield which other packages are installed that can instrument what clew instruments."""
    found = {what: [name for name in names if _is_installed(name)] for what, names in _RIVALS.items()}
    found = {what: names for what, names in found.items() if names}
    for what, names in found.items():
        yield Finding(
            check="double instrumentation",
            verdict="note",
            text=f"{', '.join(names)} can instrument {what} as well",
            mend="call only one of them for an app, a library and a process",
        )
    if not found:
        yield Finding(
            check="double instrumentation", text="nothing else that instruments the same libraries is installed"
        )


def _clock(whose: str, ahead_s: float) -> Finding:
    if abs(ahead_s) <= _NOTED_S:
        return Finding(check="clock", text=f"within {_NOTED_S:g} s of that of {whose}")
    return Finding(
        check="clock",
        verdict="wrong" if abs(ahead_s) > _WRONG_S else "note",
        text=f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of {whose}",
        mend="keep both clocks by NTP: timedatectl set-ntp true; what is recorded is put in order by time",
    )


def _date_of(url: str, certificate: Any, timeout_s: float) -> tuple[datetime, datetime | None]:
    """Return the time here and there."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=str(certificate) if certificate else None)
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("HEAD", parts.path or "/")
        sent = connection.getresponse().headers.get("Date")
        now = clock.utc_now()
    finally:
        connection.close()
    if sent is None:
        return now, None
    theirs = parsedate_to_datetime(sent)
    return now, theirs if theirs.tzinfo is not None else theirs.replace(tzinfo=UTC)


def _database(settings: Settings) -> Iterator[Finding]:
    from sqlalchemy import insert, text
    from sqlalchemy.exc import SQLAlchemyError

    from clew.history.database import Database
    from clew.history.ids import new_id
    from clew.history.migrations import HEAD
    from clew.history.models import HealthCheck

    known = Database(settings.history_url())
    if known.is_sqlite and not _has_file(known):
        yield Finding(check="database", text=f"{known} is made when the first record is written")
        return
    started_s = clock.monotonic_s()
    revision = known.current()
    took_ms = (clock.monotonic_s() - started_s) * 1000
    yield Finding(check="database", text=f"{known} answers in {took_ms:.0f} ms")
    if revision == HEAD:
        yield Finding(check="database tables", text=f"at revision {HEAD}, as this version of clew needs")
    elif known.is_sqlite or settings.database_auto_upgrade:
        yield Finding(
            check="database tables",
            verdict="note",
            text=f"{_revision(revision)}; they are brought to {HEAD} when the next record is written",
        )
    else:
        yield Finding(
            check="database tables",
            verdict="wrong",
            text=f"{_revision(revision)}, and this version of clew needs {HEAD}: nothing is recorded",
            mend="run 'clew db upgrade', or set CLEW_DATABASE_AUTO_UPGRADE=true",
        )
    if revision != HEAD:
        return
    with known.engine.connect() as connection:
        row = {"id": new_id(), "name": "clew.doctor", "service": "", "instance": "", "status": "ok", "duration_s": 0.0}
        try:
            connection.execute(insert(HealthCheck), [{**row, "recorded_at": clock.utc_now()}])
        except SQLAlchemyError as error:
            yield Finding(
                check="database writes",
                verdict="wrong",
                text=f"it does not take rows: {_line(settings, error)}",
                mend="let the user of CLEW_DATABASE_URL write to the file or the tables",
            )
        else:
            yield Finding(check="database writes", text="it takes rows")
        finally:
            # The doctor leaves nothing behind
            connection.rollback()
        if not known.is_sqlite:
            theirs = connection.scalar(text("SELECT clock_timestamp()"))
            yield _clock("the database", (clock.utc_now() - theirs).total_seconds())
        yield from recorded_work(connection)


def _has_file(known: Any) -> bool:
    return Path(known.url.database or "").exists()


def _revision(revision: str | None) -> str:
    return f"at revision {revision}" if revision else "not there yet"


def _line(settings: Settings, error: BaseException) -> str:
    """Return the first line of what was raised, without secrets."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return Redactor(settings.redact_keys).text(line)


def _away(problem: str) -> Finding:
    return Finding(
        check="database",
        verdict="wrong",
        text=f"it can't be read: {problem}",
        mend="check CLEW_DATABASE_URL and what listens there; until it is back, records wait on disk",
    )


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
