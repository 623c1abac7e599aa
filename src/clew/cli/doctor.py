"""``clew doctor``: tells what is wrong with the telemetry of this environment, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import platform
import tempfile
from collections.abc import Iterable, Iterator
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from clew import clock
from clew.cli.findings import Finding
from clew.cli.surroundings import clocks, database, rivals
from clew.cli.terminal import make_console, show
from clew.pipeline.probe import probe
from clew.pipeline.providers import spool_of
from clew.pipeline.spool import Spool
from clew.settings import SIGNALS, Settings, SettingsError

_STYLES: Final = {"ok": "green", "note": "yellow", "wrong": "red"}
_OTEL_PACKAGES: Final = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-proto")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", help="Tell what is wrong with this environment's telemetry, and how to mend it.")(doctor)


def doctor(
    *, timeout_s: Annotated[float, typer.Option(help="Seconds to wait for an endpoint.", min=0.1, max=60)] = 3.0
) -> None:
    """Run every check; exit with 1 when something is wrong."""
    findings = list(examine(timeout_s=timeout_s))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(Text(finding.verdict, style=_STYLES[finding.verdict]), finding.check, finding.text)
        if finding.mend:
            table.add_row("", "", Text.assemble(("mend:", "bold"), f" {finding.mend}"))
    console = make_console()
    show(console, table)
    wrong = sum(finding.verdict == "wrong" for finding in findings)
    console.print(f"\n{wrong} of {len(findings)} checks found something wrong." if wrong else "\nAll is well.")
    raise typer.Exit(1 if wrong else 0)


def examine(*, timeout_s: float) -> Iterator[Finding]:
    """Yield what each check finds.

    Args:
        timeout_s: how long to wait for an endpoint.
    """
    try:
        settings = Settings.load()
    except SettingsError as error:
        yield Finding(check="settings", verdict="wrong", text=str(error), mend="set the variable to what is allowed")
        settings, _ = Settings.load_or_default()
    else:
        yield Finding(check="settings", text=f"read for service {settings.service_name or 'unknown_service:python'!r}")
        if not settings.service_name and "service.name" not in settings.resource_attributes:
            yield Finding(
                check="service name",
                verdict="note",
                text="none is set, so every service is called unknown_service:python",
                mend="set OTEL_SERVICE_NAME, or call clew.configure(service_name=...)",
            )
    yield from _versions()
    yield from _signals(settings, timeout_s)
    yield from clocks(settings, timeout_s)
    yield from _spool(settings)
    yield from database(settings, timeout_s)
    yield from rivals()


def _versions() -> Iterable[Finding]:
    found = {name: importlib.metadata.version(name) for name in _OTEL_PACKAGES}
    minors = {version.rsplit(".", 1)[0] for version in found.values()}
    text = f"Python {platform.python_version()}, " + ", ".join(f"{name} {version}" for name, version in found.items())
    if len(minors) > 1:
        mend = f"pip install {' '.join(f'{name}~={max(minors)}.0' for name in _OTEL_PACKAGES)}"
        return [Finding(check="versions", verdict="wrong", text=f"{text} do not belong together", mend=mend)]
    return [Finding(check="versions", text=text)]


def _signals(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    for signal in SIGNALS:
        url = settings.destination(signal).url
        if not settings.enabled(signal):
            yield Finding(check=signal, verdict="note", text="off, as the environment says")
            continue
        started = clock.monotonic_s()
        outcome = probe(settings, signal, timeout_s=timeout_s)
        took_ms = (clock.monotonic_s() - started) * 1000
        if outcome.delivered and outcome.rejected:
            yield Finding(
                check=signal,
                verdict="wrong",
                text=f"{url} answers, but refused the item{': ' + outcome.problem if outcome.problem else ''}",
                mend="see what the endpoint's own log says",
            )
        elif outcome.delivered:
            yield Finding(check=signal, text=f"{url} took one item in {took_ms:.0f} ms")
        else:
            yield Finding(check=signal, verdict="wrong", text=f"{url}: {outcome.problem}", mend=_mend(outcome.problem))


def _mend(problem: str) -> str:
    answers: dict[str, str] = {
        "pip install": "run the line above",
        "401": "give the endpoint's token with OTEL_EXPORTER_OTLP_HEADERS='Authorization=Bearer%20...'",
        "403": "give the endpoint's token with OTEL_EXPORTER_OTLP_HEADERS='Authorization=Bearer%20...'",
        "UNAUTHENTICATED": "give the endpoint's token with OTEL_EXPORTER_OTLP_HEADERS='Authorization=Bearer%20...'",
        "PERMISSION_DENIED": "give the endpoint's token with OTEL_EXPORTER_OTLP_HEADERS='Authorization=Bearer%20...'",
        "404": "check the path of OTEL_EXPORTER_OTLP_ENDPOINT: /v1/traces and its siblings are added to it",
        "UNAVAILABLE": "start a Collector there, and check that the port speaks OTLP over gRPC (4317), not HTTP (4318)",
        "refused": "start a Collector there, or 'clew console', or set OTEL_EXPORTER_OTLP_ENDPOINT",
        "CERTIFICATE": "name the authority's certificate with OTEL_EXPORTER_OTLP_CERTIFICATE",
        "redirects to": "set OTEL_EXPORTER_OTLP_ENDPOINT to where it redirects to: redirects are not followed",
        "closed the connection": "check that the port speaks OTLP over HTTP (4318), not gRPC (4317)",
    }
    for sign, mend in answers.items():
        if sign in problem:
            return mend
    return "check OTEL_EXPORTER_OTLP_ENDPOINT and what listens there"


def _spool(settings: Settings) -> Iterator[Finding]:
    spool: Spool | None = spool_of(settings)
    if spool is None:
        yield Finding(
            check="spool",
            verdict="note",
            text="off: an outage of the endpoint loses telemetry",
            mend="set CLEW_SPOOL_MAX_BYTES above 0",
        )
        return
    try:
        spool.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=spool.folder):
            pass
    except OSError as error:
        text = f"{spool.folder} can't be written ({error.strerror})"
        mend = "make it writable, or name another with CLEW_SPOOL_DIR"
        yield Finding(check="spool", verdict="wrong", text=text, mend=mend)
        return
    yield _waiting(spool)
    others = [folder for folder in spool.folder.parent.iterdir() if folder.is_dir() and folder != spool.folder]
    elsewhere = sum(Spool(folder, max_bytes=0, max_age_s=spool.max_age_s).waiting_bytes() for folder in others)
    if elsewhere:
        yield Finding(
            check="spool",
            verdict="note",
            text=f"{_size(elsewhere)} for other addresses wait in {spool.folder.parent}",
            mend="start an app that sends there, as they were set then; or delete what nobody wants any more",
        )


def _waiting(spool: Spool) -> Finding:
    waiting = spool.waiting_bytes()
    if not waiting:
        return Finding(check="spool", text=f"nothing waits in {spool.folder}")
    text = (
        f"{_size(waiting)} of {_size(spool.max_bytes)} wait in {spool.folder}; "
        f"the oldest for {_age(spool.oldest_age_s())}, and after {_age(spool.max_age_s)} it is given up"
    )
    mend = "bring the endpoint back: any process that sends there takes it along"
    if waiting > 0.8 * spool.max_bytes or spool.oldest_age_s() > 0.8 * spool.max_age_s:
        return Finding(check="spool", verdict="wrong", text=text, mend=mend)
    return Finding(check="spool", verdict="note", text=text, mend=mend)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.1f} kB"


def _age(age_s: float) -> str:
    for unit, length_s in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if age_s >= 2 * length_s:
            return f"{age_s / length_s:.0f} {unit}"
    return f"{age_s:.0f} seconds"
